"""What the commands of ``headrace`` share: settings first, clear errors, text or JSON out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import click

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Write JSON instead of a table.")


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn our own errors and the Kafka client's into one message and exit code 1."""
    from contracts.errors import HeadraceError

    try:
        yield
    except HeadraceError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt as error:
        raise click.exceptions.Exit(130) from error
    except kafka_errors() as error:
        raise click.ClickException(
            f"the broker refused or is away: {error}; look at it with 'headrace doctor'"
        ) from error


def kafka_errors() -> tuple[type[Exception], ...]:
    """Return what the Kafka client raises; nothing while no command has imported it."""
    module = sys.modules.get("kafka.errors")
    return (module.KafkaError,) if module else ()


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that it receives the settings first and shows clear errors."""

    @click.pass_context
    @wraps(function)
    def run(context: click.Context, /, *args: Any, **kwargs: Any) -> None:
        with clear_errors():
            from contracts.settings import load_settings

            function(load_settings(context.obj), *args, **kwargs)

    return run


def write(value: object) -> None:
    """Write a struct as indented JSON."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
