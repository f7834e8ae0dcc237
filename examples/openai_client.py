"""Talk to Headrace with the official OpenAI client, then rate the answer.

pip install openai
python examples/openai_client.py --url http://127.0.0.1:8080 "What does a new SIM card cost?"
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from typing import Any

from openai import OpenAI


def ask(url: str, user: str, session: str, question: str) -> tuple[str, dict[str, Any]]:
    """Return (answer, what Headrace says about it)."""
    client = OpenAI(base_url=f"{url}/v1", api_key="unused")
    completion = client.chat.completions.create(
        model="assistant",  # the gateway chooses the version; the answer says which
        messages=[{"role": "user", "content": question}],
        user=user,
        metadata={"session_id": session},
    )
    message = completion.choices[0].message
    calls = [f"{c.function.name}({c.function.arguments})" for c in functions(message)]
    about = (completion.model_extra or {})["headrace"]
    return message.content or ", ".join(calls), about


def functions(message: Any) -> list[Any]:
    """Return the function calls of a message."""
    return [call for call in message.tool_calls or [] if call.type == "function"]


def rate(url: str, user: str, about: dict[str, Any], score: float) -> str:
    """Send a rating in [-1, 1] with the token that came with the answer; return its event id."""
    body = {
        "decision_id": about["decision_id"],
        "session_id": about["session_id"],
        "user_id": user,
        "kind": "rating",
        "score": score,
        "token": about["feedback_token"],
    }
    request = urllib.request.Request(  # noqa: S310 - the address is the caller's own
        f"{url}/v1/feedback",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - as above
        return str(json.load(answer)["event_id"])


def main() -> None:
    """Ask one question and rate the answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--user", default="anna")
    parser.add_argument("--session", default="chat-17")
    parser.add_argument("--score", type=float, default=1.0)
    options = parser.parse_args()
    answer, about = ask(options.url, options.user, options.session, options.question)
    print(answer)
    print(f"version {about['policy_version']}, {about['arm']}, decision {about['decision_id']}")
    print(f"rated: {rate(options.url, options.user, about, options.score)}")


if __name__ == "__main__":
    main()
