"""``python -m serving gateway | rollout | engine``: the three processes of this folder."""

from __future__ import annotations

import argparse
import sys

from contracts.errors import HeadraceError


def main(arguments: list[str] | None = None) -> int:
    """Run one process until it is told to stop; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    parser.add_argument("process", choices=("gateway", "rollout", "engine"))
    parser.add_argument("--policy", default="", help="of rollout: a segment's policy")
    options = parser.parse_args(arguments)
    process = options.process
    if options.policy and process != "rollout":
        parser.error("--policy belongs to rollout; there is one gateway and one engine for all")
    try:
        if process == "gateway":
            from serving.gateway_process import main as run_gateway

            run_gateway()
        elif process == "rollout":
            from serving.rollout_controller import main as run_controller

            run_controller(options.policy)
        else:
            from serving.transformers_engine import main as run_engine

            run_engine()
    except HeadraceError as error:
        print(f"{parser.prog} {process}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
