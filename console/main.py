"""The ``headrace`` command: arguments in, one call, text or JSON out.

Commands import what they need when they run, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from console.command_line import AS_JSON, command, write
from console.dead_letters import dead_letters
from console.drill import drill
from console.keys import keys
from console.release_commands import releases
from console.replay import replay
from console.rollout import rollout

if TYPE_CHECKING:
    from contracts.settings import Settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--settings",
    "settings_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The settings file; headrace.yaml in this directory by default.",
)
@click.version_option(package_name="headrace")
@click.pass_context
def main(context: click.Context, settings_path: Path | None) -> None:
    """Lead live interactions of an LLM product to a learner, and the better policy back."""
    context.obj = settings_path


main.add_command(rollout)
main.add_command(keys)
main.add_command(drill)
main.add_command(dead_letters)
main.add_command(releases)
main.add_command(replay)


@main.command()
@click.option("--detach", is_flag=True, help="Go on in the background once all is ready.")
@click.option("--kafka", default="", help="Use this broker (HOST:PORT) instead of a local one.")
@click.option("--engine", default="", help="Use the engine at this URL instead of starting one.")
@click.option("--model", default="", help="A Hugging Face causal LM directory or name.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 16))
@command
def up(settings: Settings, detach: bool, kafka: str, engine: str, model: str, workers: int) -> None:
    """Start the local stack and watch over it."""
    from msgspec.structs import replace

    from console import up as stack_runner
    from console.model import local_model
    from console.waiting import Shown
    from contracts.settings import check_addresses

    if kafka:
        settings = replace(settings, kafka=replace(settings.kafka, bootstrap=kafka))
    if engine:
        settings = replace(settings, engine=replace(settings.engine, url=engine.rstrip("/")))
    check_addresses(settings)
    if model:
        settings = replace(settings, policy=replace(settings.policy, model=model))
    if detach:
        if settings.policy.model:
            local_model(settings.policy.model, Shown())  # a download has no part in the deadline
        arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
        stack_runner.detach(arguments, settings.state_dir, Shown())
    else:
        stack_runner.run_stack(settings, workers, Shown())


@main.command()
@command
def down(settings: Settings) -> None:
    """Stop the local stack, and nothing else."""
    from console.log_access import newest
    from console.up import stop_stack
    from console.waiting import Shown

    state_dir = newest(settings).state_dir
    stopped = stop_stack(state_dir, Shown())
    click.echo("stopped" if stopped else f"no stack runs in {state_dir}")


@main.command()
@AS_JSON
@command
def status(settings: Settings, as_json: bool) -> None:
    """Show every process with its lag and age; exit code 1 unless all run."""
    from console.log_access import newest
    from console.status import is_sound, status_of, status_text
    from contracts.clock import SystemClock

    found = status_of(newest(settings).state_dir, SystemClock())
    if as_json:
        write(found)
    else:
        click.echo(status_text(found))
    raise click.exceptions.Exit(0 if is_sound(found) else 1)


@main.command()
@AS_JSON
@command
def doctor(settings: Settings, as_json: bool) -> None:
    """Name what is missing and its cure; exit code 1 when something needed is."""
    from console.doctor import doctor_text, examine, is_healthy
    from console.log_access import newest

    checks = examine(newest(settings))
    if as_json:
        write(checks)
    else:
        click.echo(doctor_text(checks))
    raise click.exceptions.Exit(0 if is_healthy(checks) else 1)


@main.command()
@click.argument("what", type=click.Choice(["list", "create"]), default="list")
@AS_JSON
@command
def topics(settings: Settings, what: str, as_json: bool) -> None:
    """List the topics with their end offsets, or create those that are missing."""
    from console.log_access import newest, open_log
    from console.topic_table import topic_rows, topics_text
    from contracts.broker import create_topics

    with open_log(newest(settings)) as kafka:
        if what == "create":
            made = create_topics(kafka)
            click.echo(f"created {', '.join(made)}" if made else "all topics are there")
            return
        rows = topic_rows(kafka)
    if as_json:
        write(rows)
    else:
        click.echo(topics_text(rows))


@main.command()
@click.argument("decision_id", required=False)
@click.option("--all", "everything", is_flag=True, help="Check the chain of every decision.")
@AS_JSON
@command
def explain(
    settings: Settings, decision_id: str | None, *, everything: bool, as_json: bool
) -> None:
    """Show why an answer was given, what it earned, and which version learned from it.

    With --all: whether every decision in the log can be explained and every audit chain is sound;
    exit code 1 when not. It reads the whole log into memory.
    """
    from console.evidence import all_evidence
    from console.explain import explain_decision
    from console.explain_text import explanation_text
    from console.log_access import newest, open_log
    from console.traceability import is_traceable, traceability, traceability_text

    if (decision_id is None) is not everything:
        raise click.UsageError("give one DECISION_ID, or --all")
    settings = newest(settings)
    if decision_id is not None:
        with open_log(settings) as kafka:
            found = explain_decision(kafka, settings, decision_id)
        write(found) if as_json else click.echo(explanation_text(found))
        return
    with open_log(settings) as kafka:
        overall = traceability(all_evidence(kafka, settings))
    write(overall) if as_json else click.echo(traceability_text(overall))
    if not is_traceable(overall):
        raise click.exceptions.Exit(1)


@main.command("reward-model")
@click.argument(
    "directory", required=False, type=click.Path(path_type=Path, file_okay=False, exists=True)
)
@AS_JSON
@command
def reward_model(settings: Settings, directory: Path | None, as_json: bool) -> None:
    """Show a reward model and how far it can be trusted; DIRECTORY is learner.reward_model by
    default."""
    from console.reward_model import reward_model_text, show_reward_model

    found = show_reward_model(settings, directory)
    write(found) if as_json else click.echo(reward_model_text(found))


@main.command()
@click.argument("process")
@command
def health(settings: Settings, process: str) -> None:
    """Exit with 0 when PROCESS beats and is ready, for container health checks."""
    from console.programs import heartbeat_missing
    from contracts.heartbeat import read_heartbeat

    beat = read_heartbeat(settings.state_dir, process)
    words = heartbeat_missing(settings.state_dir, process)(beat.pid if beat else 0)
    click.echo(words or "ready")
    raise click.exceptions.Exit(1 if words else 0)


@main.command()
@click.option(
    "--interactions", type=click.IntRange(1), help="[default: 2400, or 64 with a given model]"
)
@click.option(
    "--users", type=click.Choice(["desk", "banking77"]), default="desk", show_default=True
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Questions a second; versions need time to be learned and judged. "
    "[default: 6, or 0.2 with a given model]",
)
@click.option(
    "--held-out",
    type=click.IntRange(2),
    help="Questions that measure a version, before and after. "
    "[default: 768, or 16 with a given model]",
)
@click.option("--model", default="", help="Any Hugging Face causal LM; skips the warm start.")
@click.option("--report", type=click.Path(path_type=Path), help="Also write the report here.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--engine",
    type=click.Choice(["vllm", "transformers"]),
    help="engine.kind of the settings by default.",
)
@click.option("--keep", is_flag=True, help="Leave the stack running at the end until Ctrl-C.")
@command
def demo(settings: Settings, **options: Any) -> None:
    """Run the whole loop on simulated users and report what it learned."""
    from console.demo import Options, run_demo
    from console.demo_settings import GIVEN_MODEL, SMALL_POLICY
    from console.waiting import Shown

    extent = GIVEN_MODEL if options["model"] or settings.policy.model else SMALL_POLICY
    for name in ("interactions", "rate", "held_out"):
        if options[name] is None:
            options[name] = getattr(extent, name)
    ok = run_demo(settings, Options(**options), Shown())
    raise click.exceptions.Exit(0 if ok else 1)
