"""``headrace releases``: which versions there are, and what one of them is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.command_line import AS_JSON, command, write

if TYPE_CHECKING:
    from contracts.settings import Settings

NOT_SOUND = 1


@click.group(invoke_without_command=True)
@AS_JSON
@click.pass_context
def releases(context: click.Context, *, as_json: bool) -> None:
    """List the policy versions, or show what one is made of. Alone it is the same as `list`."""
    if context.invoked_subcommand is None:
        context.invoke(list_, as_json=as_json)
    elif as_json:
        raise click.UsageError(f"give --json after {context.invoked_subcommand}")


@releases.command(name="list")
@AS_JSON
@command
def list_(settings: Settings, *, as_json: bool) -> None:
    """List the versions on disk and in the log: what became of each, and what needs it."""
    from console.evidence import manifests, readable, version_directories
    from console.log_access import newest, open_log
    from console.releases import read_versions, versions_text

    own = newest(settings)
    with open_log(own) as kafka:
        found = version_directories(own.state_dir / "versions")
        rows = read_versions(kafka, readable(manifests(found)))
    write(rows) if as_json else click.echo(versions_text(rows))


@releases.command()
@click.argument("version")
@click.option("--samples", is_flag=True, help="With its ledger: every sample read, and its fate.")
@AS_JSON
@command
def show(settings: Settings, version: str, *, samples: bool, as_json: bool) -> None:
    """Show what VERSION was learned from, whether its files are sound, and the gate's finding.

    VERSION may be a prefix that is unique. Exit code 1 when id, files or signature are not as they
    must be, 2 when no version is meant by VERSION. It needs no broker.
    """
    from console.log_access import newest
    from console.release_text import view_text
    from console.release_view import release_view
    from contracts.errors import SettingsError

    try:
        view = release_view(newest(settings), version, samples=samples)
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    write(view) if as_json else click.echo(view_text(view))
    raise click.exceptions.Exit(0 if view.sound else NOT_SOUND)
