"""Connections between machines: messages in order, with latency; partitions that hold them; ends that are told, or are not.

As with TCP: a process that ends closes its connections; a machine that loses its power or its network says nothing, and the other
side finds out by its own silence timeout, the client by its pings.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from random import Random

from orchestrator.dispatcher.connection import Connection

PING_FAILS_S = 7.5
DIAL_TIMEOUT_S = 5.0


class End:
    """One end of a connection, a `dispatcher.connection.Connection`."""

    def __init__(self, link: Link, machine: str) -> None:
        self._link, self.machine = link, machine
        self.inbox: deque[bytes] = deque()
        self.held: deque[bytes | None] = deque()
        self.arrived = asyncio.Event()
        self._over = False
        self.last_at_s = 0.0
        self._code: int | None = None

    @property
    def closed(self) -> bool:
        return self._over

    @property
    def close_code(self) -> int | None:
        return self._code

    async def send(self, message: bytes) -> None:
        if self._over:
            raise ConnectionError("the connection has ended")
        self._link.carry(self, message)

    async def receive(self, timeout_s: float | None) -> bytes | None:
        async with asyncio.timeout(timeout_s):
            while not self.inbox and not self._over:
                self.arrived.clear()
                await self.arrived.wait()
        return self.inbox.popleft() if self.inbox else None

    async def close(self, code: int = 1000, reason: str = "") -> None:
        if not self._over:
            self.end()
            self._link.carry(self, None)

    def end(self) -> None:
        self._over = True
        self.arrived.set()


class Link:
    """`carry(end, None)`: tell the other end that this one is closed."""

    def __init__(self, network: Network, client: str, server: str) -> None:
        self._network = network
        self.client, self.server = End(self, client), End(self, server)

    def other(self, end: End) -> End:
        return self.server if end is self.client else self.client

    def carry(self, end: End, message: bytes | None) -> None:
        target = self.other(end)
        loop = asyncio.get_running_loop()
        # strictly one after the other: timers of one instant have no order
        target.last_at_s = max(loop.time() + self._network.latency_s(), target.last_at_s + 1e-6)
        loop.call_at(target.last_at_s, self._deliver, target, message)

    def _deliver(self, target: End, message: bytes | None) -> None:
        if target.held or not self._network.reachable(self.client.machine, self.server.machine):
            target.held.append(message)
        elif message is None:
            target.end()
        elif not target.closed:
            target.inbox.append(message)
            target.arrived.set()
        elif not self.other(target).closed:
            # data for a connection that isn't there any more: reset
            self.carry(target, None)

    def look(self) -> None:
        """The network changed."""
        if self._network.reachable(self.client.machine, self.server.machine):
            for target in (self.client, self.server):
                held, target.held = target.held, deque()
                for message in held:
                    self._deliver(target, message)
        elif not self.client.closed:
            asyncio.get_running_loop().call_later(PING_FAILS_S, self._ping_failed)

    def _ping_failed(self) -> None:
        if not self._network.reachable(self.client.machine, self.server.machine):
            self.client.end()
            self.carry(self.client, None)

    def power_lost(self, machine: str) -> None:
        """Its end is gone without a word; what the other one sends later is answered with a reset."""
        end = self.client if self.client.machine == machine else self.server
        end.inbox.clear()
        end.held.clear()
        end.end()


class Network:
    """cut: machines in different groups don't reach each other. off: machines without power."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._links: list[Link] = []
        self.groups: dict[str, int] = {}
        self.off: set[str] = set()
        self.slow_s = 0.0

    def reachable(self, one: str, other: str) -> bool:
        return one not in self.off and other not in self.off and self.groups.get(one, 0) == self.groups.get(other, 0)

    def latency_s(self) -> float:
        return self._random.uniform(0.0002, 0.003) + self._random.random() * self.slow_s

    def changed(self) -> None:
        self._links = [link for link in self._links if not (link.client.closed and link.server.closed)]
        for link in list(self._links):
            link.look()

    def reset(self, machine: str) -> None:
        """Its connections are lost, both ends see that; nothing else happens to it."""
        for link in self._links:
            if machine in (link.client.machine, link.server.machine):
                link.client.end()
                link.server.end()

    def power_lost(self, machine: str) -> None:
        self.off.add(machine)
        for link in self._links:
            if machine in (link.client.machine, link.server.machine):
                link.power_lost(machine)
        self.changed()

    @contextlib.asynccontextmanager
    async def dial(self, client: str, server: str, accept: Callable[[End], bool]) -> AsyncIterator[Connection]:
        """accept: the server takes its end, or False: nobody listens."""
        if not self.reachable(client, server):
            await asyncio.sleep(DIAL_TIMEOUT_S)
            raise ConnectionError("no answer")
        await asyncio.sleep(self.latency_s())
        link = Link(self, client, server)
        if not self.reachable(client, server) or not accept(link.server):
            raise ConnectionError("refused")
        self._links.append(link)
        try:
            yield link.client
        finally:
            await link.client.close()
