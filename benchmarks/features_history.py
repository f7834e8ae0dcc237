"""What a small write costs offline after many: parts are merged in levels."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.features_field import SEED, WRITTEN, _row
from feature_store.parts import PartFolder, ensure_parts

ROWS = 10


def history(folder: Path, writes: int) -> list[dict[str, Any]]:
    """Write small batches; return cost per write and number of files as their number doubles."""
    ensure_parts(folder, WRITTEN)
    parts, rng, now = (
        PartFolder(folder, WRITTEN, "benchmark"),
        random.Random(SEED),
        datetime.now(UTC),
    )
    rows = [_row(WRITTEN, f"key {number}", rng, now) for number in range(ROWS)]
    found, done = [], 0
    while done < writes:
        until, cpu, walls = max(256, 2 * done), time.process_time(), []
        count = until - done
        for _ in range(count):
            start = time.perf_counter()
            parts.write(rows, datetime.now(UTC))
            walls.append(time.perf_counter() - start)
        cpu, done = time.process_time() - cpu, until
        found.append(
            {
                "writes": done,
                "cpu_ms": cpu / count * 1e3,
                "longest_ms": max(walls) * 1e3,
                "files": len(list(folder.glob("*.parquet"))),
            }
        )
    return found
