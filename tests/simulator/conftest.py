"""The products under test, and a stand-in gateway that answers like a scripted policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.settings import Settings
from simulator.banking77 import HOME, Banking77
from simulator.desk import Desk


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture(scope="session")
def bank() -> Banking77:
    data = Settings().data_dir
    if not (data / "banking77" / "train.csv").exists():
        pytest.skip(
            f"{data / 'banking77' / 'train.csv'} is missing: get BANKING77 from {HOME} and set "
            "data_dir (HEADRACE_DATA_DIR) to the folder above it"
        )
    return Banking77(data)


@pytest.fixture
def truth_file(tmp_path: Path) -> Path:
    return tmp_path / "truth.jsonl"
