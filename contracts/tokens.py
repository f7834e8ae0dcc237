"""Feedback tokens: an HMAC that binds feedback to a decision that was really served."""

from __future__ import annotations

import hmac
from hashlib import sha256

from contracts.codec import to_json


def feedback_token(secret: bytes, decision_id: str, session_id: str, user_id: str) -> str:
    """Return the token the gateway hands out with an answer (HMAC-SHA256, RFC 2104, hex)."""
    message = to_json([decision_id, session_id, user_id])
    return hmac.new(secret, message, sha256).hexdigest()


def token_is_valid(
    secret: bytes, token: str, decision_id: str, session_id: str, user_id: str
) -> bool:
    """Compare in constant time; text that has no UTF-8 form was never signed."""
    try:
        expected = feedback_token(secret, decision_id, session_id, user_id)
        return hmac.compare_digest(expected.encode(), token.encode())
    except UnicodeEncodeError:
        return False
