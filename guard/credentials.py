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
        r"hooks\.slack\.com/services/T\w{6,20}/B\w{6,20}/\w{20,40}",
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
    "amazon-mws-token": (("amzn.mws.",), r"amzn\.mws\.[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"),
    "braintree-token": (
        ("access_token$",),
        r"access_token\$(?:production|sandbox)\$[0-9a-z]{16}\$[0-9a-f]{32}",
    ),
    "digitalocean-token": (("do",), r"do[opr]_v1_[0-9a-f]{64}"),
    "discord-webhook": (
        ("/api/webhooks/",),
        r"discord(?:app)?\.com/api/webhooks/[0-9]{1,20}/[\w-]{8,80}",
    ),
    "dynatrace-token": (("dt0",), r"dt0[a-zA-Z][0-9]{2}\.[A-Z0-9]{24}\.[A-Z0-9]{64}"),
    "google-oauth-token": (("ya29.",), r"ya29\.[\w-]{16,250}"),
    "firebase-server-key": (("AAAA",), r"AAAA[\w-]{7}:[\w-]{140}"),
    "mailchimp-key": (("-us",), r"[0-9a-f]{32}-us[0-9]{1,2}(?!\w)"),
    "mailgun-key": (("key-",), r"key-[0-9a-zA-Z]{32}(?!\w)"),
    "new-relic-key": (("NR",), r"NR(?:AA|AK|II|IQ|RA|SP)-[\w-]{27,42}"),
    "notion-token": (("secret_", "ntn_"), r"(?:secret|ntn)_[a-zA-Z0-9]{43,46}(?!\w)"),
    "nuget-key": (("oy2",), r"oy2[a-z0-9]{43}(?!\w)"),
    "riot-key": (("RGAPI-",), r"RGAPI-[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"),
    "shopify-token": (("shp",), r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    "square-token": (("sq0", "sqO"), r"(?:sandbox-)?sq[0O][a-z]{3}-[\w-]{22,43}"),
    "stackhawk-key": (("hawk.",), r"hawk\.[\w-]{20}\.[\w-]{20}"),
    "teams-webhook": (
        (".office.com/webhook",),
        r"[\w.]{3,40}\.office\.com/webhook\w{0,4}/[\w@-]{8,80}/IncomingWebhook/[\w/-]{8,80}",
    ),
    "twilio-key": (("SK", "AC"), r"(?:SK|AC)[0-9a-f]{32}(?!\w)"),
    "zapier-webhook": (("hooks.zapier.com",), r"hooks\.zapier\.com/hooks/catch/\w{4,20}/\w{4,20}"),
    "private-key": (("-----BEGIN",), r"-----BEGIN (?:[A-Z]{2,10} ){0,2}PRIVATE KEY-----"),
}
"""For each rule what its secrets surely hold, and their form."""

_rules = [
    (name, literals, re.compile(rf"(?<![\w-])(?:{form})", re.ASCII))
    for name, (literals, form) in _FORMATS.items()
]


SHORTEST = 14
"""Characters of the least word that every secret holds, but for the head of a private key."""


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
