"""``headrace rollout``: look at a policy's rollout, and overrule it with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from console.command_line import AS_JSON, command, kafka_errors, write

if TYPE_CHECKING:
    from contracts.events import RolloutAction
    from contracts.settings import Settings

DONE, REFUSED, NO_ANSWER = 0, 1, 3
WAIT_SECONDS = 60.0

POLICY = click.option("--policy", default="", help="[default: policy.name of the settings]")


@click.group()
def rollout() -> None:
    """Show a policy's rollout, or overrule it: each word of a person goes into the audit.

    Exit codes: 0 done, 1 refused by the controller, 2 wrong usage, 3 no answer in time.
    """


@rollout.command()
@POLICY
@AS_JSON
@command
def show(settings: Settings, policy: str, as_json: bool) -> None:
    """Show the rollout under way, what was counted, and what a promotion still lacks."""
    from console.log_access import newest, open_log
    from console.rollout_text import view_text
    from console.rollout_view import read_state, view_of

    settings = of_policy(newest(settings), policy)
    with open_log(settings) as kafka:
        state = read_state(kafka, settings.policy.name)
    view = view_of(state, settings.rollout, settings.policy.name)
    write(view) if as_json else click.echo(view_text(view))


@rollout.command()
@POLICY
@AS_JSON
@command
def history(settings: Settings, policy: str, as_json: bool) -> None:
    """List what people asked for and what the controller did, newest last."""
    from console.log_access import newest, open_log
    from console.rollout_history import history_text, read_history

    settings = of_policy(newest(settings), policy)
    with open_log(settings) as kafka:
        lines = read_history(kafka, settings.policy.name)
    write(lines) if as_json else click.echo(history_text(lines))


def of_policy(settings: Settings, policy: str) -> Settings:
    """Return the settings of one policy; a usage error for one that is not configured."""
    from contracts.errors import SettingsError
    from contracts.settings import settings_for

    try:
        return settings_for(settings, policy or settings.policy.name)
    except SettingsError as error:
        raise click.UsageError(str(error)) from error


def overruling(action: RolloutAction, help_text: str, *, takes_version: bool) -> None:
    """Add the subcommand that asks the controller for ``action``."""

    @POLICY
    @AS_JSON
    @click.option("--reason", required=True, help="Why, for the audit.")
    @click.option("--operator", default="", help="[default: the login name]")
    @click.option(
        "--wait",
        "seconds",
        type=click.FloatRange(0, 3600),
        default=WAIT_SECONDS,
        show_default=True,
        help="Seconds to wait for the effect.",
    )
    @command
    def run(settings: Settings, *, version: str = "", **options: Any) -> None:
        ask_controller(settings, action, version, **options)

    wrapped: Callable[..., None] = run
    if takes_version:
        wrapped = click.argument("version", default="")(wrapped)
    rollout.command(action, help=help_text)(wrapped)


overruling(
    "promote",
    "Serve VERSION to everyone at once; without it the candidate under way.",
    takes_version=True,
)
overruling(
    "rollback",
    "End the rollout under way, or go back to VERSION.",
    takes_version=True,
)
overruling(
    "pin",
    "Serve VERSION, or the present one, and take no release until unpin.",
    takes_version=True,
)
overruling("unpin", "Take releases again.", takes_version=False)
overruling(
    "pause",
    "Keep the present shares and advance nothing; harm still rolls back.",
    takes_version=False,
)
overruling("resume", "Go on after a pause.", takes_version=False)


def unanswered() -> tuple[type[Exception], ...]:
    """Return the errors that mean that nobody was there to take the command."""
    from contracts.errors import DeadlineError, UnavailableError

    return (DeadlineError, UnavailableError, *kafka_errors())


def ask_controller(
    settings: Settings,
    action: RolloutAction,
    version: str,
    *,
    policy: str,
    as_json: bool,
    reason: str,
    operator: str,
    seconds: float,
) -> None:
    """Send the command, show what became of it, and exit with its code."""
    from console.log_access import newest, open_log
    from console.rollout_request import answer_text, ask, make_command, refuse_stopped
    from console.rollout_versions import full_version
    from contracts.errors import SettingsError

    settings = of_policy(newest(settings), policy)
    policy = settings.policy.name
    try:
        refuse_stopped(settings)
        with open_log(settings) as kafka:
            version = full_version(kafka, policy, version)
            asked = make_command(policy, action, version, reason=reason, operator=operator)
            answer = ask(kafka, asked, seconds)
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    except unanswered() as error:
        click.echo(f"Error: {error}", err=True)
        raise click.exceptions.Exit(NO_ANSWER) from error
    write(answer) if as_json else click.echo(answer_text(answer))
    codes = {"done": DONE, "refused": REFUSED, "no answer": NO_ANSWER}
    raise click.exceptions.Exit(codes[answer.outcome])
