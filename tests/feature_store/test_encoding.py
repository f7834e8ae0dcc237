"""Keys, values and times have the bytes that Feast's own protobufs give them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from feature_store.encoding import (
    decode,
    encoder,
    entity_key,
    key_prefix,
    microseconds,
    moment_of,
    timestamp,
)
from feature_store.views import VIEWS

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.sampled_from(sorted(VIEWS)), TEXT)
def test_a_key_has_the_bytes_that_feast_gives_it(view: str, value: str) -> None:
    join_key = VIEWS[view].join_key
    theirs = serialize_entity_key(
        EntityKey(join_keys=[join_key], entity_values=[ValueProto(string_val=value)]), 3
    )
    assert entity_key(key_prefix(join_key), value) == theirs


@given(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), TEXT)
def test_a_value_has_the_bytes_of_its_declared_type(
    number: int, fraction: float, text: str
) -> None:
    pairs = (
        (int, number, ValueProto(int64_val=number)),
        (float, fraction, ValueProto(double_val=fraction)),
        (float, number, ValueProto(double_val=float(number))),
        (str, text, ValueProto(string_val=text)),
        (int, None, ValueProto()),
        (float, None, ValueProto()),
        (str, None, ValueProto()),
    )
    for kind, value, proto in pairs:
        data = encoder(kind)(value)
        assert data == proto.SerializeToString()
        read = decode(data, ValueProto.FromString)
        assert read == (None if value is None else kind(value))


def test_an_integer_of_more_than_64_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="64-bit"):
        encoder(int)(2**63)


@given(st.datetimes(min_value=datetime(1902, 1, 1)))
def test_a_time_has_the_bytes_of_a_protobuf_timestamp(naive: datetime) -> None:
    moment = naive.replace(tzinfo=UTC)
    proto = Timestamp()
    proto.FromDatetime(moment)
    micros = microseconds(moment)
    assert timestamp(micros) == proto.SerializeToString()
    assert moment_of(micros) == moment
