"""A member of a consumer group in a process of its own, to be killed by a case.

Usage: ``python -m tests.broker_contract.member BOOTSTRAP TOPIC GROUP CLIENT_ID SESSION_MS``.
"""

from __future__ import annotations

import asyncio
import sys

from aiokafka import AIOKafkaConsumer

LIFE_SECONDS = 300.0


async def main(bootstrap: str, topic: str, group: str, client_id: str, session_ms: str) -> None:
    """Join and read until killed, or for five minutes at most; nothing is committed."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        group_id=group,
        client_id=client_id,
        session_timeout_ms=int(session_ms),
        heartbeat_interval_ms=500,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        async with asyncio.timeout(LIFE_SECONDS):
            async for _ in consumer:
                pass
    finally:
        await consumer.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
