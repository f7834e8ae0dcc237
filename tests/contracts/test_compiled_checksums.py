"""The Kafka client's checksums are compiled code: in Python they would be its largest cost."""

from __future__ import annotations

from crc32c import crc32c
from kafka.record import util


def test_the_kafka_client_found_the_compiled_checksum() -> None:
    assert util.crc32c_c is crc32c
    assert util.calc_crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C (RFC 3720)
