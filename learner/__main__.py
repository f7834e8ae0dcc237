"""``python -m learner``: run the learner; with ``warm-start`` make a small base, with
``drill-adapter`` a version for `headrace drill`, with ``replay`` versions again from the log, with
``reward-model`` a model of what people reward."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path
from threading import Event

from contracts.errors import HeadraceError


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, then import what the command needs; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m learner", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    warm = commands.add_parser("warm-start", help="make a small base policy from demonstrations")
    warm.add_argument("--demonstrations", type=Path, required=True, metavar="FILE")
    warm.add_argument("--out", type=Path, required=True, metavar="DIR")
    warm.add_argument("--seed", type=int, default=0)
    warm.add_argument("--steps", type=int, default=600)
    model = commands.add_parser(
        "reward-model", help="train a reward model on the samples there are"
    )
    model.add_argument("--out", type=Path, required=True, metavar="DIR")
    model.add_argument("--lessons", type=int, default=4096, help="the newest so many, at most")
    model.add_argument("--seconds", type=float, default=1800.0, help="training ends after these")
    model.add_argument("--epochs", type=int, default=1)
    model.add_argument("--seed", type=int, default=0)
    drill = commands.add_parser("drill-adapter", help="write a version for a drill")
    drill.add_argument("order", metavar="JSON", help="a learner.drill_version.DrillOrder")
    replay = commands.add_parser("replay", help="make versions again, for headrace replay")
    replay.add_argument("order", metavar="JSON", help="a learner.replay_report.ReplayOrder")
    parser.add_argument("--policy", default="", help="a segment's policy")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s learner %(message)s")
    logging.getLogger("kafka").setLevel(logging.ERROR)
    try:
        if options.command == "warm-start":
            from learner import warm_start

            said = warm_start.read_demonstrations(options.demonstrations)
            warm_start.make_policy(said, options.out, seed=options.seed, steps=options.steps)
        elif options.command == "reward-model":
            _make_reward_model(options)
        elif options.command == "drill-adapter":
            _make_drill_version(options.order)
        elif options.command == "replay":
            return _replay(options.policy, options.order)
        else:
            _learn(options.policy)
    except HeadraceError as error:
        print(f"learner: {error}", file=sys.stderr)
        return 1
    return 0


def _make_reward_model(options: argparse.Namespace) -> None:
    """Train a reward model and print its directory."""
    from contracts.clock import SystemClock
    from contracts.settings import load_settings, settings_for
    from learner.reward_card import RewardRecipe
    from learner.reward_version import make_reward_model

    general = load_settings()
    settings = settings_for(general, options.policy or general.policy.name)
    recipe = RewardRecipe(
        epochs=options.epochs,
        seconds=options.seconds,
        seed=options.seed,
        threads=settings.learner.threads,
        max_tokens=settings.engine.max_model_len,
    )
    print(make_reward_model(settings, recipe, options.lessons, options.out, SystemClock()))


def _make_drill_version(text: str) -> None:
    """Make what the order says and print where it lies, as JSON, one line per version."""
    import msgspec

    from contracts.clock import SystemClock
    from contracts.codec import to_json
    from contracts.settings import load_settings
    from learner.drill_version import DrillOrder, make_versions

    order = msgspec.json.decode(text, type=DrillOrder, dec_hook=lambda _kind, value: Path(value))
    for made in make_versions(load_settings(), order, SystemClock()):
        print(to_json(made).decode())


def _replay(policy: str, text: str) -> int:
    """Do what the order says and print `learner.replay_report.Line`s, the last one the outcome."""
    import time
    from threading import Lock

    import msgspec

    from contracts.clock import SystemClock
    from contracts.codec import to_json
    from contracts.errors import DeadlineError, SettingsError
    from contracts.settings import load_settings, settings_for
    from learner.rebuild import rebuild
    from learner.replay_report import Failed, Line, ReplayOrder, Step, Working
    from learner.sign_of_life import SIGN_OF_LIFE, SignOfLife
    from learner.user_features import stored_reward_means

    said, turn = [0.0], Lock()

    def tell(line: Line) -> None:
        last = not isinstance(line, Step) or line.offset + 1 >= line.next
        with turn:
            if last or time.monotonic() - said[0] > 0.2:
                said[0] = time.monotonic()
                print(to_json(line).decode(), flush=True)

    life = SignOfLife(lambda: tell(Working()), SIGN_OF_LIFE)
    order = msgspec.json.decode(text, type=ReplayOrder)
    general = load_settings()
    settings = settings_for(general, policy or general.policy.name)
    life.begin()
    try:
        means = stored_reward_means(settings)
        tell(rebuild(settings, order, SystemClock(), means, tell, life.silence))
    except HeadraceError as error:
        usage, late = isinstance(error, SettingsError), isinstance(error, DeadlineError)
        tell(Failed(message=str(error), usage=usage, late=late))
        return 1
    finally:
        life.end()
    return 0


def _learn(policy: str) -> None:
    """Run until SIGTERM or SIGINT; ``policy`` empty means the general one.

    Of several processes of torchrun the first runs, the others take part until it ends.
    """
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    from contracts.clock import SystemClock
    from contracts.errors import DeadlineError
    from contracts.ids import uuid7_ids
    from contracts.settings import load_settings, process_for, settings_for
    from contracts.tracing import start_tracing
    from learner.following import follow
    from learner.loop import run
    from learner.ranks import join
    from learner.user_features import stored_reward_means

    general, clock, ranks = load_settings(), SystemClock(), join()
    settings = settings_for(general, policy or general.policy.name)
    if not ranks.leads:
        follow(settings, ranks)
        return
    process = process_for(general, "learner", settings.policy.name)
    tracing = start_tracing(
        process,
        otlp_endpoint=settings.tracing.otlp_endpoint or None,
        span_file=settings.state_dir / "spans" / f"{process}.jsonl",
    )
    try:
        means = stored_reward_means(settings)
        run(settings, clock, uuid7_ids(clock), stop, means, process=process, ranks=ranks)
    except DeadlineError:
        if not stop.is_set():
            raise
    finally:
        tracing.shutdown()
    ranks.stop()


if __name__ == "__main__":
    sys.exit(main())
