"""``headrace keys``: the API keys of the gateway; a key is shown once, its hash alone is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from console.command_line import AS_JSON, command, write

if TYPE_CHECKING:
    from contracts.settings import Settings

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"


@click.group()
def keys() -> None:
    """Make, list and remove API keys; a running gateway takes changes in within a second or two."""


@keys.command()
@click.argument("name")
@click.option("--requests-per-minute", default=600, show_default=True, type=click.IntRange(1))
@click.option(
    "--max-body", default=0, type=click.IntRange(0), help="Bytes; 0: as the settings say."
)
@click.option("--concurrent", default=0, type=click.IntRange(0), help="At once; 0: no own bound.")
@click.option("--tier", default="", help="The segment of whoever uses the key; wins over requests.")
@click.option("--language", default="")
@click.option("--region", default="")
@command
def add(settings: Settings, name: str, **options: Any) -> None:
    """Make a key for NAME and print it: there is no second chance to read it."""
    import re

    from serving.api_keys import KeyEntry, make_key, read_keys, write_keys

    path = keys_file(settings)
    if not re.fullmatch(NAME, name):
        raise click.UsageError(f"{name!r} is no name; give letters, digits, '.', '_' and '-'")
    entries = read_keys(path) if path.exists() else {}
    if name in entries:
        raise click.UsageError(f"{name!r} has a key; remove it first, or choose another name")
    for trait in ("tier", "language", "region"):
        if options[trait] != "".join(options[trait].split()):
            raise click.UsageError(f"--{trait} {options[trait]!r} holds white space; leave it out")
    key, hashed = make_key(name)
    write_keys(path, {**entries, name: KeyEntry(name=name, sha256=hashed, **options)})
    click.echo(key)
    click.echo(f"kept as a hash in {path}; this key is not shown again", err=True)


@keys.command(name="list")
@AS_JSON
@command
def list_(settings: Settings, as_json: bool) -> None:
    """List whose keys there are, and their limits."""
    import msgspec

    from console.table import table
    from serving.api_keys import read_keys

    rows = [msgspec.structs.asdict(entry) for entry in read_keys(keys_file(settings)).values()]
    for row in rows:
        del row["sha256"]
    if as_json:
        write(rows)
    else:
        head = ["name", "requests/min", "max body", "concurrent", "tier", "language", "region"]
        click.echo(table(head, [[str(value or "-") for value in row.values()] for row in rows]))


@keys.command()
@click.argument("name")
@command
def remove(settings: Settings, name: str) -> None:
    """Remove the key of NAME."""
    from serving.api_keys import read_keys, write_keys

    path = keys_file(settings)
    entries = read_keys(path)
    if entries.pop(name, None) is None:
        raise click.UsageError(f"{name!r} has no key in {path}; see 'headrace keys list'")
    write_keys(path, entries)
    click.echo(f"removed {name}")


def keys_file(settings: Settings) -> Path:
    """Return where the hashes are kept; a usage error when the settings name no place."""
    if not settings.gateway.api_keys_file:
        raise click.UsageError(
            "gateway.api_keys_file is empty; set it to the file that is to hold the keys' hashes"
        )
    return Path(settings.gateway.api_keys_file)
