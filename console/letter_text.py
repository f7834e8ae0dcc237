"""Dead letters as text for a terminal: what people wrote only when it is asked for."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from datetime import datetime

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from console.letter_log import LetterRow
from console.printable import printable
from console.table import table
from contracts.codec import to_json
from contracts.dead_letters import KEPT_TEXT
from contracts.events import DeadLetter

HEADS = ("id", "time", "from", "reason", "detail", "bytes", "replayed", "replay of")
SHORT_ID = 8
SHOWN_DETAIL = 60
SHOWN_FIELDS = 40
OPEN_HEADERS = ("ce_", "headrace_", "traceparent", "tracestate", "content-type")
"""Beginnings of the headers that hold ids, names of types and times."""

_QUOTE = re.compile("['\"]")
_QUOTED_NAME = re.compile(r"""(['"])[\w.$:/-]{0,64}\1""", re.ASCII)
_NAME = re.compile(r"[\w.:/+-]{1,128}", re.ASCII)


class LetterView(Struct, frozen=True, kw_only=True):
    """A whole letter: ``row`` with the full detail, and what it holds of the record.

    ``fields`` are the value's names with their kinds and sizes. ``kept_bytes`` are fewer than
    ``row.value_bytes`` when the letter holds the beginning alone. Without content ``value`` is
    None, and so is a key that is no plain id; ``hidden_headers`` were left out. ``encoding`` says
    how ``value`` is written: json, text or base64.
    """

    row: LetterRow
    kept_bytes: int
    key_bytes: int | None
    key: str | None
    headers: dict[str, str]
    hidden_headers: int
    fields: dict[str, str]
    encoding: str | None = None
    value: str | None = None


def rows_text(rows: Sequence[LetterRow]) -> str:
    """Return the table for people, with ids and details cut."""
    if not rows:
        return "no dead letters"
    cells = [
        (
            row.id[:SHORT_ID],
            _time(row.time),
            place_of(row),
            printable(row.reason),
            _cut(printable(row.detail)),
            row.value_bytes,
            f"{_time(row.replayed_at)} by {printable(row.operator)}" if row.replayed_at else "no",
            printable(row.replay_of[:SHORT_ID]) or "-",
        )
        for row in map(without_content, rows)
    ]
    return table(HEADS, cells)


def view_of(row: LetterRow, letter: DeadLetter, *, content: bool) -> LetterView:
    """Return the letter for showing; what people wrote only with ``content``."""
    value = b64decode(letter.value_base64)
    key = None if letter.key_base64 is None else b64decode(letter.key_base64)
    encoding, text = _as_text(value) if content else (None, None)
    key_text = None if key is None else _as_text(key)[1]
    headers = {
        name: found for name, found in letter.headers.items() if content or _is_open(name, found)
    }
    return LetterView(
        row=row if content else without_content(row),
        kept_bytes=len(value),
        key_bytes=None if key is None else len(key),
        key=key_text if content or (key_text and _NAME.fullmatch(key_text)) else None,
        headers=headers,
        hidden_headers=len(letter.headers) - len(headers),
        fields=fields_of(value),
        encoding=encoding,
        value=text,
    )


def view_text(view: LetterView) -> str:
    """Return the letter for people."""
    return "\n".join(_lines(view))


def _lines(view: LetterView) -> Iterator[str]:
    row = view.row
    yield f"dead letter {row.id}"
    yield f"time      {row.time.isoformat()}"
    yield f"from      {place_of(row)}"
    yield f"reason    {printable(row.reason)}"
    yield f"detail    {printable(row.detail)}"
    if row.replay_of:
        yield f"replay of {printable(row.replay_of)}"
    if row.replayed_at:
        when = f"{row.replayed_at.isoformat()} by {printable(row.operator)}"
        yield f"replayed  {when}" + (f", {row.replays} times in all" if row.replays > 1 else "")
    hidden = "none" if view.key_bytes is None else f"{view.key_bytes} bytes, not shown"
    yield f"key       {hidden if view.key is None else printable(view.key)}"
    for name, text in view.headers.items():
        yield f"header    {printable(name)}: {printable(text)}"
    if view.hidden_headers:
        yield f"headers   {view.hidden_headers} more, not shown"
    cut = f", of which the first {view.kept_bytes} are kept here"
    yield f"value     {row.value_bytes} bytes{cut if view.kept_bytes < row.value_bytes else ''}"
    if view.value is None:
        yield from (f"  {name}: {kind}" for name, kind in view.fields.items())
        yield "with --content the value is shown, and all that people wrote"
    else:
        yield f"({view.encoding})\n{view.value}"


def without_content(row: LetterRow) -> LetterRow:
    """Return the row with a detail that quotes nothing but names: errors quote what they saw."""
    if not _QUOTE.search(_QUOTED_NAME.sub("", row.detail)):
        return row
    places = [match.start() for match in _QUOTE.finditer(row.detail)]
    # A detail that was cut may have lost the quote that ends it.
    is_whole = len(places) > 1 and len(row.detail) < KEPT_TEXT
    first, last = places[0], places[-1] if is_whole else len(row.detail)
    told = f"{row.detail[:first]}'{last - first - 1} characters'{row.detail[last + 1 :]}"
    return replace(row, detail=told)


def fields_of(value: bytes) -> dict[str, str]:
    """Return what the fields of a JSON object are: kinds and sizes, no values.

    Names that could be text are counted and not told.
    """
    try:
        found = msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {"(not an object)": _kind(found)}
    names = [name for name in found if _NAME.fullmatch(name)][:SHOWN_FIELDS]
    told = {name: _kind(found[name]) for name in names}
    if others := len(found) - len(names):
        told["(others)"] = f"{others} fields"
    return told


def place_of(row: LetterRow) -> str:
    """Return where the refused record lies."""
    return f"{printable(row.topic)}/{row.partition}@{row.offset}"


def _kind(value: object) -> str:
    if isinstance(value, str):
        return f"string of {len(value)} characters"
    if isinstance(value, list):
        return f"list of {len(value)}"
    if isinstance(value, dict):
        return f"object of {len(value)} fields"
    if isinstance(value, bool):
        return "boolean"
    return "null" if value is None else "number"


def _as_text(raw: bytes) -> tuple[str, str]:
    try:
        return "json", msgspec.json.format(to_json(msgspec.json.decode(raw)), indent=2).decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return "text", "\n".join(map(printable, raw.decode().split("\n")))
    except UnicodeDecodeError:
        return "base64", b64encode(raw).decode()


def _is_open(name: str, text: str) -> bool:
    return name.startswith(OPEN_HEADERS) and _NAME.fullmatch(text) is not None


def _time(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S") if moment else "-"


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_DETAIL else f"{text[: SHOWN_DETAIL - 1]}…"
