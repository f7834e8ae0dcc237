"""``headrace demo``: the whole loop on simulated users, from the warm start to the report."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from console.demo_gate import write_regression_prompts
from console.demo_policy import base_policy
from console.demo_report import Report, is_whole, make_report, report_text, write_report
from console.demo_settings import DemoPolicy, demo_settings
from console.demo_users import Crowd, measure, run_users
from console.environments import THIS_MACHINE, Machine
from console.evidence import all_evidence, ledger_lines, version_directories
from console.log_access import SETTINGS_NAME, remember
from console.model import local_model
from console.plot import plot_run
from console.report import RunLog, run_figures, run_log, stable_version
from console.settling import Follower, settle
from console.stack import engine_to_start, open_stack
from console.traceability import traceability
from console.up import stop_signals
from console.waiting import Shown
from contracts.events import BASE_VERSION
from contracts.settings import Settings


class Options(Struct, frozen=True, kw_only=True):
    """The command line."""

    interactions: int
    rate: float
    users: str
    model: str
    report: Path | None
    seed: int
    held_out: int
    engine: Literal["vllm", "transformers"] | None
    keep: bool


class Run:
    """What the stages of one run share: settings, command line, lines shown, the stop signal."""

    def __init__(self, settings: Settings, options: Options, shown: Shown, stop: Event) -> None:
        self.settings = settings
        self.options = options
        self.shown = shown
        self.stop = stop
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, words: str) -> Iterator[None]:
        """Announce and time a block."""
        self.shown.say(f"{name}: {words}")
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began


def run_demo(
    given: Settings, options: Options, shown: Shown, machine: Machine = THIS_MACHINE
) -> bool:
    """Run everything; return whether the run is whole."""
    from simulator.product import make_product

    wanted = replace(given.engine, kind=options.engine or given.engine.kind)
    engine = engine_to_start(wanted, shown, machine).kind
    broker = given.kafka.bootstrap or "a local development broker that speaks Kafka's protocol"
    shown.say(f"engine: {'vLLM' if engine == 'vllm' else 'transformers'}; kafka: {broker}")
    product = make_product(options.users, given.data_dir)
    began = time.monotonic()
    given_model = options.model or given.policy.model
    if given_model:
        model = local_model(given_model, shown)
    else:
        model = str(base_policy(given, options.users, options.seed, shown))
    warm_start_seconds = time.monotonic() - began
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    run_dir = given.state_dir.absolute() / "runs" / f"{now}-{options.users}-{options.seed}"
    policy = DemoPolicy(model=model, own=bool(given_model), seed=options.seed)
    settings = demo_settings(given, run_dir, engine, policy, product.settings)
    write_regression_prompts(settings, product, 8 if policy.own else 48, options.seed)
    remember(given.state_dir, run_dir)
    shown.say(f"run: {run_dir}")
    with stop_signals() as stop:
        run = Run(settings, options, shown, stop)
        run.seconds["policy"] = warm_start_seconds
        report, log = _measured_run(given, run)
    return _finish(run, report, log)


def _measured_run(given: Settings, run: Run) -> tuple[Report, RunLog]:
    """Start the stack, let the users come, wait for rest, measure before and after."""
    options, shown, stop = run.options, run.shown, run.stop
    with _stack(run) as settings:
        engine = settings.engine.url
        follower = Follower(settings.kafka)
        with run.stage("measure the base", f"{options.users}, held-out questions"):
            before = measure(settings, options.users, BASE_VERSION, options.held_out, stop)
        with run.stage("users", f"{options.interactions} interactions with {options.users}"):
            counts = run_users(
                settings,
                Crowd(options.users, options.interactions, options.rate, options.seed),
                stop,
            )
        with run.stage("settle", "windows, learner and rollout come to rest"):
            answered = counts.interactions - counts.failed_requests
            settle(settings, follower, answered, shown, stop)
        stable = stable_version(run_log(follower.events))
        with run.stage("measure the learned policy", stable[:12]):
            after = measure(settings, options.users, stable, options.held_out, stop)
        with run.stage("explain", "every decision of the run"):
            traced = traceability(all_evidence(settings.kafka, settings))
        follower.follow()
        follower.close()
        if options.keep:
            shown.say(
                f"the stack goes on until Ctrl-C: {settings.gateway.host}:{settings.gateway.port}"
            )
            stop.wait()
    log = run_log(follower.events)
    report = make_report(
        users=options.users,
        seed=options.seed,
        interactions=counts.interactions,
        failed_requests=counts.failed_requests,
        before=before,
        after=after,
        figures=run_figures(log, _ledgers(settings)),
        traced=traced,
        engine=f"{settings.engine.kind} {engine}",
        kafka=given.kafka.bootstrap or f"noida-db {settings.kafka.bootstrap}",
        stages=run.seconds,
    )
    return report, log


@contextmanager
def _stack(run: Run) -> Iterator[Settings]:
    """Run the stack around a block, watched over by a thread; always stop it."""
    with run.stage("start", "the processes of the stack"):
        settings, supervisor = open_stack(run.settings, 1, run.shown)
        supervisor.start(run.stop)
    over = Event()
    watcher = Thread(target=supervisor.watch, args=(over,), name="supervisor")
    watcher.start()
    try:
        yield settings
    finally:
        over.set()
        watcher.join()
        run.shown.say("stopping the stack")
        supervisor.stop()


def _ledgers(settings: Settings) -> dict[str, list[dict[str, object]]]:
    directories = version_directories(settings.state_dir / "versions")
    return {version: list(ledger_lines(path)) for version, path in directories.items()}


def _finish(run: Run, report: Report, log: RunLog) -> bool:
    """Write and print the report; return whether the run is whole."""
    run_dir, shown = run.settings.state_dir, run.shown
    paths = [run_dir / "report.json"]
    if run.options.report is not None:
        paths.append(run.options.report)
    for path in paths:
        write_report(report, path)
    picture = paths[-1].with_suffix(".png")
    plot_run(log, report.figures.versions, picture)
    shown.say("\n" + report_text(report))
    shown.say(f"\nreport: {paths[-1]}\nplot:   {picture}\nlogs:   {run_dir / 'logs'}")
    shown.say(next_commands(run_dir, example_decision(log)))
    if not is_whole(report):
        shown.say(
            f"NOT WHOLE: {report.failed_requests} requests failed, {report.decisions_logged} of "
            f"{report.interactions} decisions are in the log, {report.samples_learned} samples "
            f"were learned, {report.distinct_samples_learned} of them distinct"
        )
    return is_whole(report)


def next_commands(run_dir: Path, decision_id: str) -> str:
    """Return the commands that look at this very run, whatever ran beside or comes after it."""
    headrace = f"headrace --settings {shlex.quote(str(run_dir / SETTINGS_NAME))}"
    one = f"look at one decision:  {headrace} explain {decision_id}\n" if decision_id else ""
    return f"{one}all versions:          {headrace} releases"


def example_decision(log: RunLog) -> str:
    """Return the id of a decision whose chain is long: rewarded, and made into a sample."""
    rewarded = {reward.decision_id: len(reward.components) for reward in log.rewards}
    rich = max(log.samples, key=lambda sample: rewarded.get(sample.decision_id, 0), default=None)
    if rich is not None:
        return rich.decision_id
    return log.decisions[0].id if log.decisions else ""
