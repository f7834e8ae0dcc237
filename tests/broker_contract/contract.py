"""The broker contract: everything that Headrace asks of a Kafka broker, and who asks it.

`document` writes docs/broker-contract.md from this table, `test_broker_contract` runs it.
"""

from __future__ import annotations

from tests.broker_contract import (
    compaction,
    durability,
    fetching,
    groups,
    offsets,
    ordering,
    partitions,
    records,
    transactions,
)
from tests.broker_contract.case import Case

_PARTITIONS = (
    Case(
        check=partitions.a_topic_has_the_partitions_it_was_made_with,
        by={
            "contracts/broker.py": "makes the topics",
            "streams/worker.py": "joins `decisions` and `feedback` partition by partition",
            "learner/loop.py": "learns in the one order of `samples`",
            "serving/rollout_log.py": "reads `releases` and commands in one order",
        },
    ),
    Case(
        check=partitions.a_topic_keeps_the_cleanup_policy_and_retention_it_was_made_with,
        by={"contracts/broker.py": "compacts the topics of state, keeps `audit` for ever"},
    ),
    Case(
        check=partitions.a_topic_that_is_there_is_not_made_again,
        by={"contracts/broker.py": "takes the refusal for done when two processes make topics"},
    ),
    Case(
        check=partitions.metadata_name_the_replicas_of_a_partition_and_those_in_sync,
        by={"console/probe.py": "shows as the broker's lag the partitions with replicas behind"},
    ),
    Case(
        check=partitions.a_key_has_one_partition_whichever_client_writes_it,
        by={
            "streams/attribution.py": "finds a session's decisions and feedback in one partition",
            "serving/outbox_delivery.py": "writes with kafka-python",
            "streams/delivery.py": "writes with aiokafka",
        },
    ),
)

_ORDERING = (
    Case(
        check=ordering.what_one_producer_writes_keeps_its_order_while_others_write,
        by={
            "contracts/audit.py": "each process writes its hash chain in order",
            "learner/micro_batch.py": "forms batches as a function of the log",
            "serving/rollout_state.py": "follows the states of the controller",
        },
    ),
    Case(
        check=ordering.the_offset_acknowledged_is_where_the_record_stands,
        by={
            "serving/outbox_delivery.py": "bookmarks what has been delivered",
            "serving/rollout_log.py": "reads at least to its own last state",
        },
    ),
    Case(
        check=ordering.a_batch_that_aiokafka_sends_again_is_there_once,
        by={"streams/delivery.py": "sends again when an acknowledgement is lost"},
    ),
    Case(
        check=ordering.a_batch_that_kafka_python_sends_again_is_there_once,
        by={"contracts/broker.py": "sends again when an acknowledgement is lost"},
    ),
)

_RECORDS = (
    Case(
        check=records.headers_arrive_in_order_and_byte_for_byte,
        by={
            "contracts/codec.py": "puts the event's type and id and the trace there",
            "serving/outbox_delivery.py": "knows by `ce_id` what has arrived",
        },
    ),
    Case(
        check=records.a_value_or_key_that_is_missing_is_told_from_an_empty_one,
        by={
            "contracts/codec.py": "names what is wrong with a record",
            "contracts/dead_letters.py": "keeps a record that is no event as it was",
        },
    ),
    Case(
        check=records.the_largest_value_that_we_write_is_taken_and_read,
        by={"contracts/codec.py": "writes up to 900,000 bytes of value, key and headers beside it"},
    ),
    Case(
        check=records.a_topic_has_the_brokers_time_where_it_was_made_so,
        by={"learner/experience.py": "takes nothing for said after the broker had it"},
    ),
    Case(
        check=records.records_are_read_whatever_they_are_compressed_with,
        by={
            "contracts/broker.py": "reads a topic that the broker recompresses",
            "streams/worker.py": "reads feedback of any Kafka producer",
        },
    ),
    Case(
        check=records.a_value_over_the_limit_is_refused_by_name_and_nothing_else_is_lost,
        by={
            "serving/outbox_delivery.py": "leaves such a record out; else it would try for ever",
            "streams/delivery.py": "leaves such a record out; else it would try for ever",
        },
    ),
    Case(
        check=records.a_value_just_under_1_mb_is_taken,
        status="claimed only",
        note="we write no value over 900,000 bytes",
    ),
)

_GROUPS = (
    Case(
        check=groups.members_share_the_partitions_and_take_over_those_of_one_that_leaves,
        by={"streams/worker.py": "several workers share the work; one may be stopped"},
    ),
    Case(
        check=groups.a_member_takes_up_where_the_group_committed,
        by={"streams/worker.py": "commits decisions and their feedback in one request"},
    ),
    Case(
        check=groups.a_member_may_seek_back_and_read_again_from_the_beginning,
        by={"streams/fetching.py": "rewinds what was fetched and dropped in a rebalance"},
    ),
    Case(
        check=groups.the_group_goes_on_once_a_dead_member_is_removed,
        by={"console/local_broker.py": "removes a dead worker before it is started again"},
    ),
    Case(
        check=groups.a_member_that_falls_silent_is_evicted_when_its_session_ends,
        status="relied on in production",
        by={
            "deploy/compose.yaml": "no supervisor of ours removes a worker that died",
            "streams/worker.py": "the others take over from a machine that is gone",
        },
        local="never evicts; `headrace up` removes the workers it knows to be dead",
    ),
)

_OFFSETS = (
    Case(
        check=offsets.the_end_offsets_count_every_record_acknowledged_and_no_other,
        by={
            "contracts/broker.py": "reads to the end: explain, states, tails",
            "streams/worker.py": "closes a window once feedback is read to the end",
        },
    ),
    Case(
        check=offsets.each_acknowledgement_shows_in_the_end_offset_at_once,
        by={
            "serving/rollout_log.py": "knows whether a command waits before it acts",
            "learner/loop.py": "lag in `headrace status`",
        },
    ),
    Case(
        check=offsets.a_fetch_tells_how_much_is_unread,
        by={"serving/rollout_loop.py": "lag in `headrace status`"},
    ),
    Case(
        check=offsets.the_beginning_moves_with_the_records_deleted,
        by={
            "contracts/broker.py": "begins there when its position is no longer kept",
            "learner/loop.py": "says which records were removed before their samples were learned",
            "learner/replay_log.py": "refuses to replay what was removed",
            "streams/worker.py": "counts lag from there when nothing was committed",
            "console/topic_table.py": "counts records",
        },
    ),
    Case(
        check=offsets.a_reader_begins_at_any_offset_it_is_given,
        by={
            "learner/loop.py": "resumes at the offset in its checkpoint",
            "learner/replay_log.py": "reads again what a version was learned from",
            "serving/rollout_log.py": "resumes at the positions in its state",
            "serving/outbox_delivery.py": "resumes at its bookmarks",
        },
    ),
    Case(
        check=offsets.offsets_are_found_by_time,
        status="claimed only",
        note="positions are kept as offsets",
    ),
)

_COMPACTION = (
    Case(
        check=compaction.reading_a_compacted_topic_ends_with_the_newest_record_of_each_key,
        by={
            "serving/rollout_state.py": "a gateway that starts reads `rollouts` for the state",
            "serving/rollout_log.py": "a controller that starts reads `rollouts` for its own state",
            "console/releases.py": "shows the releases that are there",
        },
    ),
)

_DURABILITY = (
    Case(
        check=durability.what_was_acknowledged_is_there_after_a_restart,
        restarts=True,
        by={
            "console/broker_process.py": "stops the broker of the local stack",
            "console/log_access.py": "explains answers of a stack that is stopped",
            "streams/worker.py": "goes on at the committed offsets",
        },
    ),
)

_FETCHING = (
    Case(
        check=fetching.a_fetch_that_finds_nothing_is_held_until_something_comes,
        status="claimed only",
        note="clients pause by themselves after an empty fetch",
        local="answers at once; `streams/fetching.py` and `contracts/broker.py` pause",
    ),
)

_TRANSACTIONS = tuple(
    Case(check=check, status="claimed only", note="effects are keyed by event id instead")
    for check in (
        transactions.what_an_aborted_transaction_wrote_is_not_read_as_committed,
        transactions.what_an_open_transaction_wrote_is_not_read_as_committed,
        transactions.offsets_are_committed_with_their_transaction,
    )
)

CONTRACT: tuple[Case, ...] = (
    *_PARTITIONS,
    *_ORDERING,
    *_RECORDS,
    *_GROUPS,
    *_OFFSETS,
    *_COMPACTION,
    *_DURABILITY,
    *_FETCHING,
    *_TRANSACTIONS,
)
