"""The broker under test: the development broker, or the address in HEADRACE_TEST_KAFKA."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec
import pytest

from contracts.broker import wait_for_broker
from contracts.ids import NewId
from contracts.settings import Kafka
from tests.broker_contract.clients import admin_client, group_name

OUTSIDE = os.environ.get("HEADRACE_TEST_KAFKA", "")
"""HOST:PORT of a broker that runs already; empty for the development broker."""

REPLICATION = int(os.environ.get("HEADRACE_KAFKA__REPLICATION", "1"))
ANSWER_SECONDS = 15.0


@pytest.fixture(scope="session")
def address(request: pytest.FixtureRequest) -> Kafka:
    """The broker under test, without a prefix."""
    if not OUTSIDE:
        local: Kafka = request.getfixturevalue("broker").kafka
        return local
    kafka = Kafka(bootstrap=OUTSIDE, replication=REPLICATION)
    wait_for_broker(kafka, ANSWER_SECONDS)
    return kafka


@pytest.fixture
def kafka(address: Kafka, new_id: NewId) -> Iterator[Kafka]:
    """The broker under test with a prefix of this case's own; what was made under it is removed."""
    mine = msgspec.structs.replace(address, prefix=f"headrace-contract-{new_id()}-")
    yield mine
    with admin_client(mine) as admin:
        names = [name for name in admin.list_topics() if name.startswith(mine.prefix)]
        if names:
            admin.delete_topics(names)
        if group_name(mine) in {group["group_id"] for group in admin.list_groups()}:
            admin.delete_groups([group_name(mine)])
