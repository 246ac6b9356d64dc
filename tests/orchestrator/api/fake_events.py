"""The events of an Engine, strict: the last 256 are kept, those since a time and what follows come as one piece, all of it ends with the
Engine. Its clock is not this machine's, and its connections break when told to. Source: moby daemon/events.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any

from aiohttp import web

_KEPT = 256


class FakeEvents:
    """ahead_s: of this machine's clock. asked: the queries of the connections made; open: how many there are."""

    def __init__(self, ahead_s: float = 0.0) -> None:
        self.ahead_s = ahead_s
        self.kept: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self.asked: list[dict[str, str]] = []
        self.away = False
        self._followers: set[asyncio.Queue[dict[str, Any] | None]] = set()

    @property
    def open(self) -> int:
        return len(self._followers)

    def now_ns(self) -> int:
        return time.time_ns() + int(self.ahead_s * 1e9)

    def info(self) -> dict[str, str]:
        """The Engine's clock, as /info has it."""
        when_ns = self.now_ns()
        whole = datetime.fromtimestamp(when_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return {"SystemTime": f"{whole}.{when_ns % 10**9:09d}Z"}

    def publish(self, type: str, action: str, id: str, time_ns: int | None = None, **attributes: str) -> dict[str, Any]:
        moment = self.now_ns() if time_ns is None else time_ns
        event = {
            "Type": type, "Action": action, "Actor": {"ID": id, "Attributes": attributes}, "scope": "local",
            "time": moment // 10**9, "timeNano": moment,
        }  # fmt: skip
        self.kept.append(event)
        for queue in self._followers:
            queue.put_nowait(event)
        return event

    def cut(self) -> None:
        """All connections end."""
        for queue in self._followers:
            queue.put_nowait(None)

    def restart(self) -> None:
        """An Engine that starts anew knows of nothing that was."""
        self.cut()
        self.kept.clear()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if self.away:
            return web.json_response({"message": "starting"}, status=503)
        self.asked.append(dict(request.query))
        since, until = (_nanoseconds(request.query.get(name, "")) for name in ("since", "until"))
        date = formatdate(self.now_ns() / 1e9, usegmt=True)
        answer = web.StreamResponse(headers={"Content-Type": "application/json", "Date": date})
        await answer.prepare(request)
        # an Engine sends the head before it listens: what happens meanwhile is not told to who asked for no past
        await asyncio.sleep(0)
        asked = since is not None or until is not None
        past = [event for event in self.kept if asked and (since or 0) <= event["timeNano"] <= (until or 1 << 63)]
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._followers.add(queue)
        try:
            for event in past:
                await answer.write(json.dumps(event).encode() + b"\n")
            left_s = None if until is None else (until - self.now_ns()) / 1e9
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    while (told := await queue.get()) is not None:
                        await answer.write(json.dumps(told).encode() + b"\n")
        finally:
            self._followers.discard(queue)
        return answer


def _nanoseconds(text: str) -> int | None:
    if not text:
        return None
    whole, _, fraction = text.partition(".")
    return int(whole) * 10**9 + int(fraction.ljust(9, "0") or "0")
