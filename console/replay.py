"""``headrace replay``: make versions again from the log and compare, or leave a user out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from console.command_line import AS_JSON, command, kafka_errors, write

if TYPE_CHECKING:
    from contracts.settings import Settings

DONE, DIFFERENT, NO_ANSWER = 0, 1, 3


@click.command()
@click.option("--to", "end", required=True, metavar="VERSION", help="The last version to make.")
@click.option(
    "--from",
    "start",
    default="",
    metavar="VERSION",
    help="Start from this one's kept state, or from 'base'. [default: the nearest that can be]",
)
@click.option("--without-user", "user", metavar="ID", help="Leave this user out.")
@click.option("--policy", default="", help="[default: policy.name of the settings]")
@click.option("--model", default="", help="The base model. [default: policy.model, or the stack's]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="A new directory. [default: one below state_dir/replays]",
)
@AS_JSON
@command
def replay(
    settings: Settings,
    *,
    end: str,
    start: str,
    user: str | None,
    policy: str,
    model: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Make the versions after one up to another again from the log, and compare every byte.

    With --without-user: as if that user had never been there. What is made lies in a directory of
    its own, signed by no key that is trusted: nothing is released. A VERSION may be a prefix that
    is unique.

    Exit codes: 0 every version came out the same, or the user was left out and what ends before
    their first sample came out the same; 1 not the same, nothing left out, whether the user taught
    the start cannot be told, or not possible; 2 wrong usage, as a user without a sample; 3 no
    broker in time.
    """
    from console.log_access import newest, open_log
    from console.replay_run import order_of, run_replay, with_model
    from console.replay_text import report_text
    from console.rollout import of_policy
    from console.waiting import Shown
    from contracts.errors import DeadlineError, SettingsError

    if user == "":
        raise click.UsageError(
            "--without-user is empty, as where a variable is not set; give the id of a user as it "
            "stands in the events, or leave the option out"
        )
    try:
        settings = with_model(of_policy(newest(settings), policy), model)
        order = order_of(settings, start, end, user, out)
        with open_log(settings) as kafka:
            report = run_replay(settings, kafka, order, Shown(sys.stderr if as_json else None))
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    except DeadlineError as error:
        click.echo(f"Error: {error}", err=True)
        raise click.exceptions.Exit(NO_ANSWER) from error
    except kafka_errors() as error:
        click.echo(
            f"Error: the broker refused or is away: {error}; see 'headrace doctor'", err=True
        )
        raise click.exceptions.Exit(NO_ANSWER) from error
    write(report) if as_json else click.echo(report_text(report))
    raise click.exceptions.Exit(DONE if report.is_done else DIFFERENT)
