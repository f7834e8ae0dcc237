"""What keys, tokens and other secrets of well-known services look like in text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from guard.hit import Hit

_FORMATS: dict[str, tuple[tuple[str, ...], str]] = {
    "aws-access-key": (("AKIA", "ASIA"), r"(?:AKIA|ASIA)[0-9A-Z]{16}(?![\w-])"),
    "github-token": (
        ("gh", "github_pat_"),
        r"(?:gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9_]{60,251})(?!\w)",
    ),
    "gitlab-token": (("glpat-",), r"glpat-[\w-]{20,64}(?!\w)"),
    "slack-token": (("xox",), r"xox[abposr]-[A-Za-z0-9-]{10,250}(?!\w)"),
    "slack-webhook": (
        ("hooks.slack.com",),
        r"hooks\.slack\.com/services/T[A-Z0-9]{6,20}/B[A-Z0-9]{6,20}/[A-Za-z0-9]{20,40}",
    ),
    "google-api-key": (("AIza",), r"AIza[\w-]{35}(?![\w-])"),
    "model-api-key": (("sk-",), r"sk-(?:ant-|proj-)?[A-Za-z0-9_-]{20,200}(?!\w)"),
    "stripe-key": (("k_live_", "k_test_"), r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,250}(?!\w)"),
    "npm-token": (("npm_",), r"npm_[A-Za-z0-9]{36}(?!\w)"),
    "pypi-token": (("pypi-AgE",), r"pypi-AgE[\w-]{50,300}"),
    "hub-token": (("hf_",), r"hf_[A-Za-z]{30,40}(?!\w)"),
    "sendgrid-key": (("SG.",), r"SG\.[\w-]{20,24}\.[\w-]{39,50}(?!\w)"),
    "telegram-token": ((":AA",), r"[0-9]{8,10}:AA[\w-]{32,33}(?![\w-])"),
    "json-web-token": (("eyJ",), r"eyJ[\w-]{8,200}\.eyJ[\w-]{8,200}"),
    "password-in-url": (
        ("://",),
        r"[a-z][a-z0-9+.-]{1,20}://[\w.%+-]{1,64}:[!-.0-9;-?A-~]{3,64}@[\w.-]{3,64}",
    ),
    "private-key": (("-----BEGIN",), r"-----BEGIN (?:[A-Z]{2,10} ){0,2}PRIVATE KEY-----"),
}
"""For each rule what its secrets surely hold, and their form."""

_rules = [
    (name, literals, re.compile(rf"(?<![\w-])(?:{form})", re.ASCII))
    for name, (literals, form) in _FORMATS.items()
]


SHORTEST = 14
"""Characters of a word that every secret holds at least, but for the head of a private key, which has spaces."""


def secrets(text: str) -> Iterator[Hit]:
    """Yield keys and tokens in the formats of well-known services."""
    if "-----BEGIN" not in text and max(map(len, text.split()), default=0) < SHORTEST:
        return
    for name, literals, pattern in _rules:
        for literal in literals:
            if literal in text:
                for match in pattern.finditer(text):
                    yield Hit(name, match[0], match.start())
                break
