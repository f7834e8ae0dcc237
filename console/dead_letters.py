"""``headrace dead-letters``: look at the records that were refused, and send them again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from console.command_line import AS_JSON, command, kafka_errors, write

if TYPE_CHECKING:
    from console.letter_log import LetterRow
    from console.letter_replay import Replay, Replayer
    from contracts.settings import Kafka, Settings

DONE, FAILED, NO_ANSWER = 0, 1, 3

REASON = click.option("--reason", default="", help="Those that were refused for this reason.")
TOPIC = click.option("--topic", default="", help="Those of this topic.")
SINCE = click.option("--since", default="", help="Those since then: 30m, 2h, 7d, or a date.")


@click.group(name="dead-letters")
def dead_letters() -> None:
    """Show records that were refused, and send them again once the cause is cured.

    Exit codes: 0 done, 1 not all could be sent, 2 wrong usage, 3 no broker in time.
    """


@dead_letters.command(name="list")
@REASON
@TOPIC
@SINCE
@AS_JSON
@command
def list_(settings: Settings, *, reason: str, topic: str, since: str, as_json: bool) -> None:
    """List the dead letters, oldest first."""
    from console.letter_text import rows_text, without_content

    with _log(settings) as kafka:
        rows = _matching(kafka, reason, topic, since)
    write([without_content(row) for row in rows]) if as_json else click.echo(rows_text(rows))


@dead_letters.command()
@click.argument("letter_id")
@click.option("--content", is_flag=True, help="Show what people wrote, too.")
@AS_JSON
@command
def show(settings: Settings, letter_id: str, *, content: bool, as_json: bool) -> None:
    """Show one letter; LETTER_ID may be a prefix that is unique."""
    from console.letter_log import CLIENT_ID, named, read_rows, whole_letter
    from console.letter_text import view_of, view_text
    from contracts.broker import Lookup

    with _log(settings) as kafka:
        (row,) = named(read_rows(kafka), [letter_id])
        lookup = Lookup(kafka, CLIENT_ID)
        try:
            view = view_of(row, whole_letter(lookup, row), content=content)
        finally:
            lookup.close()
    write(view) if as_json else click.echo(view_text(view))


@dead_letters.command()
@click.argument("letter_ids", nargs=-1)
@REASON
@TOPIC
@SINCE
@click.option("--because", default="", help="Why, for the audit; needed unless --dry-run.")
@click.option("--operator", default="", help="[default: the login name]")
@click.option("--again", is_flag=True, help="Send those, too, that were sent before.")
@click.option("--dry-run", is_flag=True, help="Send nothing, say what would be sent.")
@AS_JSON
@command
def replay(
    settings: Settings,
    letter_ids: tuple[str, ...],
    *,
    reason: str,
    topic: str,
    since: str,
    because: str,
    operator: str,
    again: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send refused records to their topics again, each once: by LETTER_IDS or by their reason.

    An id may be a prefix that is unique. What was sent once is not sent again without --again.
    """
    if bool(letter_ids) == bool(reason):
        raise click.UsageError("give LETTER_IDS, or --reason with --topic and --since as you like")
    if letter_ids and (topic or since):
        raise click.UsageError("--topic and --since go with --reason, not with LETTER_IDS")
    from console.letter_log import named, read_rows

    with _log(settings) as kafka:
        rows = (
            named(read_rows(kafka), letter_ids)
            if letter_ids
            else _matching(kafka, reason, topic, since)
        )
        who = ("", "") if dry_run else _person(operator, because)
        replayer = _replayer(settings, kafka, who)
        done = _replayed(replayer, rows, again=again, dry_run=dry_run, as_json=as_json)
    if not rows:
        click.echo(f"no dead letter was refused for {reason!r} there; see 'list'", err=True)
    failed = any(one.outcome == "failed" for one in done)
    raise click.exceptions.Exit(FAILED if failed else DONE)


def _person(operator: str, because: str) -> tuple[str, str]:
    from console.operators import checked_reason, operator_name

    return operator_name(operator), checked_reason(because, "--because")


def _replayer(settings: Settings, kafka: Kafka, who: tuple[str, str]) -> Replayer:
    from console.letter_replay import Replayer
    from console.log_access import newest
    from console.stack import FEEDBACK_SECRET_FILE
    from contracts.clock import SystemClock
    from contracts.ids import uuid7_ids

    clock, kept = SystemClock(), newest(settings).state_dir / "secrets" / FEEDBACK_SECRET_FILE
    secret = settings.gateway.feedback_secret or (kept.read_text().strip() if kept.exists() else "")
    return Replayer(kafka, clock, uuid7_ids(clock), operator=who[0], because=who[1], secret=secret)


def _replayed(
    replayer: Replayer, rows: list[LetterRow], *, again: bool, dry_run: bool, as_json: bool
) -> list[Replay]:
    """Replay and tell what became of each letter, also when the broker goes away in between."""
    from console.letter_replay import replays_text

    done: list[Replay] = []
    try:
        for one in replayer.replay(rows, again=again, dry_run=dry_run):
            done.append(one)  # noqa: PERF402 - what was sent is told when the broker goes away
    finally:
        replayer.close()
        if done or as_json:
            write(done) if as_json else click.echo(replays_text(done))
    return done


def _matching(kafka: Kafka, reason: str, topic: str, since: str) -> list[LetterRow]:
    from console.letter_log import moment_of, read_rows, select
    from contracts.clock import SystemClock

    after = moment_of(since, SystemClock().now()) if since else None
    rows = read_rows(kafka)
    return select(rows, reason=reason, topic=topic, since=after, prefix=kafka.prefix)


@contextmanager
def _log(settings: Settings) -> Iterator[Kafka]:
    """Give the broker that has the log; wrong words exit with 2, a broker that is away with 3."""
    from console.log_access import newest, open_log
    from contracts.errors import DeadlineError, SettingsError

    try:
        with open_log(newest(settings)) as kafka:
            yield kafka
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    except DeadlineError as error:
        click.echo(f"Error: {error}", err=True)
        raise click.exceptions.Exit(NO_ANSWER) from error
    except kafka_errors() as error:
        click.echo(
            f"Error: the broker refused or is away: {error}; look at it with 'headrace doctor', "
            "then run this again: what was sent above is not sent twice",
            err=True,
        )
        raise click.exceptions.Exit(NO_ANSWER) from error
