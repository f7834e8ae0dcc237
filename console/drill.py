"""``headrace drill``: put a bad version into the running stack and see that it does no harm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.command_line import AS_JSON, command, write
from console.drill_kinds import KINDS

if TYPE_CHECKING:
    from console.drill_kinds import Kind
    from contracts.settings import Settings

NOT_PASSED = 1


@click.command()
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.option("--users", "population", default=100, show_default=True, type=click.IntRange(1))
@click.option(
    "--rate",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Questions a second, beside the traffic there is.",
)
@click.option(
    "--product",
    type=click.Choice(["desk", "banking77"]),
    default="desk",
    show_default=True,
    help="What the simulated users ask about.",
)
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--seconds",
    default=900.0,
    show_default=True,
    type=click.FloatRange(1),
    help="At most so long until each bad version is stopped.",
)
@click.option(
    "--skip-gate",
    is_flag=True,
    help="Let it pass the gate, to see what the canary does; needs gate.allow_drills.",
)
@AS_JSON
@command
def drill(
    settings: Settings,
    kind: Kind,
    *,
    population: int,
    rate: float,
    product: str,
    seed: int,
    seconds: float,
    skip_gate: bool,
    as_json: bool,
) -> None:
    """Inject a version that is unsafe, garbage, slow, crashes, or was tampered with.

    Simulated users ask while it is released, and nothing else is done about it. Exit code 0 when
    it was refused or rolled back and no request failed, 1 when not.
    """
    import sys

    from console.drill_injection import Options
    from console.drill_report import is_passed, report_text
    from console.drill_run import run_drill
    from console.drill_users import Load
    from console.log_access import newest
    from console.waiting import Shown

    load = Load(product=product, population=population, rate=rate, seed=seed)
    shown = Shown(sys.stderr if as_json else None)
    options = Options(kind=kind, load=load, seconds=seconds, skip_gate=skip_gate)
    report = run_drill(newest(settings), options, shown)
    write(report) if as_json else click.echo(report_text(report))
    raise click.exceptions.Exit(0 if is_passed(report) else NOT_PASSED)
