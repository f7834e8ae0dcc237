"""Feedback tokens: an HMAC that binds feedback to a decision that was really served."""

from __future__ import annotations

import hmac
from hashlib import sha256

from contracts.codec import to_json
from contracts.events import Feedback

RELEASE_HEADER = "headrace_release"
"""Header of feedback that a person let go on out of the quarantine; it holds a `release_mark`."""


def feedback_token(secret: bytes, decision_id: str, session_id: str, user_id: str) -> str:
    """Return the token the gateway hands out with an answer (HMAC-SHA256, RFC 2104, hex).

    With an empty ``decision_id`` it is for feedback on the session.
    """
    message = to_json([decision_id, session_id, user_id])
    return hmac.new(secret, message, sha256).hexdigest()


def acceptance_mark(
    secret: bytes, feedback_id: str, decision_id: str, session_id: str, user_id: str
) -> str:
    """Return what the gateway puts in the place of a token it has checked.

    It holds for this one feedback, so that a reader of the topic cannot rate with it.
    """
    message = to_json(["accepted", feedback_id, decision_id, session_id, user_id])
    return hmac.new(secret, message, sha256).hexdigest()


def release_mark(secret: bytes, value: bytes) -> str:
    """Return the mark that lets a record's value out of the quarantine, whatever it was kept for.

    It holds for these very bytes, so that a reader of the topic cannot let out others with it.
    """
    return hmac.new(secret, b"released " + value, sha256).hexdigest()


def is_proven(secret: bytes, feedback: Feedback) -> bool:
    """Say whether feedback carries the token of its decision, or the gateway's mark.

    Without a secret nothing is proven.
    """
    if not secret:
        return False
    event, token = feedback, feedback.token or ""
    try:
        mark = acceptance_mark(secret, event.id, event.decision_id, event.session_id, event.user_id)
        if hmac.compare_digest(mark.encode(), token.encode()):
            return True
    except UnicodeEncodeError:
        return False
    return token_is_valid(secret, token, event.decision_id, event.session_id, event.user_id)


def token_is_valid(
    secret: bytes, token: str, decision_id: str, session_id: str, user_id: str
) -> bool:
    """Compare in constant time; text that has no UTF-8 form was never signed."""
    try:
        expected = feedback_token(secret, decision_id, session_id, user_id)
        return hmac.compare_digest(expected.encode(), token.encode())
    except UnicodeEncodeError:
        return False
