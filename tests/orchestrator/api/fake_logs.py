"""The logs of an Engine's containers, strict about what is asked: times always, `since` includes its moment, details before each message.

What a client doesn't read is not sent. Source: moby api/server/httputils/write_log_stream.go, daemon/logger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime

from aiohttp import web

from orchestrator.api.frames import frame


class FakeLogs:
    """logs: container -> frames, or lines of a TTY, each with its time. queries: what was asked. following: how many wait for more.
    refusal: of all that is asked."""

    def __init__(self) -> None:
        self.logs: dict[str, bytes] = {}
        self.queries: list[dict[str, str]] = []
        self.refusal: tuple[int, str] | None = None
        self._more = asyncio.Condition()
        self._cuts = 0
        self.following = 0

    async def write(self, container: str, data: bytes) -> None:
        async with self._more:
            self.logs[container] = self.logs.get(container, b"") + data
            self._more.notify_all()

    async def cut(self) -> None:
        """The connections of all who follow break."""
        async with self._more:
            self._cuts += 1
            self._more.notify_all()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        container, query = request.match_info["id"], dict(request.query)
        self.queries.append(query)
        assert query["timestamps"] == "1" and query["tail"]
        if self.refusal is not None:
            return web.json_response({"message": self.refusal[1]}, status=self.refusal[0])
        answer = web.StreamResponse()
        await answer.prepare(request)
        cuts, sent = self._cuts, 0
        if query["tail"] == "0":
            sent = len(self.logs[container])
        while True:
            data = self.logs[container][sent:]
            sent += len(data)
            await answer.write(b"".join(_shown(data, query)))
            if "follow" not in query:
                return answer
            async with self._more:
                self.following += 1
                try:
                    while len(self.logs[container]) == sent and self._cuts == cuts:
                        await self._more.wait()
                finally:
                    self.following -= 1
            if self._cuts > cuts:
                assert request.transport is not None
                request.transport.abort()
                return answer


def _shown(data: bytes, query: dict[str, str]) -> Iterator[bytes]:
    since = float(query.get("since", "0"))
    details = b" " if "details" in query else b""
    for stream, line in parsed(data) if data[:1] in (b"\x01", b"\x02") else ((None, line) for line in data.splitlines(keepends=True)):
        time, _, message = line.partition(b" ")
        whole, _, fraction = time.decode().rstrip("Z").partition(".")
        if datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction}") >= since:
            payload = time + b" " + details + message
            yield payload if stream is None else frame(stream, payload)


def parsed(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Frames: their stream and what is in them."""
    while data:
        size = int.from_bytes(data[4:8], "big")
        yield data[0], data[8 : 8 + size]
        data = data[8 + size :]
