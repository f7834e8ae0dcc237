"""A crash is read from a decision's error as it was written, whether content is kept or not."""

from __future__ import annotations

import pytest

from contracts.errors import EngineError
from serving.engine_failure import failure_text, is_crash
from serving.engine_wire import refusal


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("charged", ["canary: 9f2c: ", "stable: 9f2c: broke off: ", "shadow: n: "])
@pytest.mark.parametrize(("status", "crash"), [(500, True), (503, False), (504, False)])
def test_status_500_is_a_crash_with_content_and_without(
    content: bool, charged: str, status: int, crash: bool
) -> None:
    error = refusal(status, b'{"error": {"message": "CUDA error; bad luck"}}')
    said = failure_text(error, content=content)
    assert ("CUDA" in said) == content
    assert is_crash(charged + said) == crash
    assert is_crash(f"{charged}{said}; stable: old: no answer in 2 s") == crash


@pytest.mark.parametrize(
    ("reason", "crash"),
    [
        ("canary: 9f2c: logits are NaN", True),
        ("canary: 9f2c: no answer in 5 s", False),
        ("canary: 9f2c: no answer in 5 s; stable: old: the engine answered with status 500", False),
        ("", False),
    ],
)
def test_only_the_first_failure_counts(reason: str, crash: bool) -> None:
    assert is_crash(reason) == crash


@pytest.mark.parametrize("quoted", ["the engine answered with status 500", "status 500", "NaN"])
def test_what_an_engine_quotes_of_a_user_is_no_crash(quoted: str) -> None:
    error = EngineError(f"engine refused (503): {quoted}", 503)
    assert not is_crash(f"canary: 9f2c: {failure_text(error, content=True)}")
