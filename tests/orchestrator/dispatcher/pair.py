"""A connection whose two ends are in one process."""

from __future__ import annotations

import asyncio

from orchestrator.security.peer import Peer


class Pair:
    """Two ends in one process."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.other = self
        self.closed = False
        self.close_code: int | None = None

    async def send(self, message: bytes) -> None:
        if self.closed:
            raise ConnectionError("closed")
        self.other.inbox.put_nowait(message)

    async def receive(self, timeout_s: float | None) -> bytes | None:
        async with asyncio.timeout(timeout_s):
            return None if self.closed and self.inbox.empty() else await self.inbox.get()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        if not self.closed:
            self.closed = self.other.closed = True
            self.other.close_code = code
            self.inbox.put_nowait(None)
            self.other.inbox.put_nowait(None)

    @classmethod
    def both(cls) -> tuple[Pair, Pair]:
        one, other = cls(), cls()
        one.other, other.other = other, one
        return one, other


def peer(node_id: str) -> Peer:
    return Peer(node_id=node_id, role="worker", cluster_id="c", address="192.0.2.7", expires_unix_s=4e9)
