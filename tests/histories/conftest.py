"""Decisions and feedback made by hand, as in the tests of the streams."""

from __future__ import annotations

from tests.streams.conftest import decision, feedback

__all__ = ["decision", "feedback"]
