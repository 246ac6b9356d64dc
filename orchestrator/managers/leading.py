"""What a manager does with its store: it serves agents, takes part in leadership and, while it leads, runs dispatcher and control loops.

Edge: starts and ends them. Which store it is, etcd or one in memory, is all the same here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime

from orchestrator.control.driver import ControlDriver
from orchestrator.control.loops import LOOPS
from orchestrator.dispatcher.assignment import Decrypt
from orchestrator.dispatcher.connection import Connect
from orchestrator.dispatcher.gateway import Gateway
from orchestrator.dispatcher.server import Dispatcher
from orchestrator.errors import MeshdError
from orchestrator.ids import new_id as random_id
from orchestrator.store.base import Store
from orchestrator.store.leadership import LeadershipLoop, RaftStatus

log = logging.getLogger(__name__)

_RESTART_PAUSE_S = 0.5


class Leading:
    """`run()` until cancelled. `gateway` serves agents, `fence()` guards what the leader writes. addr: this node's "ip:port".
    connect: to another manager's gateway."""

    def __init__(
        self,
        store: Store,
        raft_status: Callable[[], Awaitable[RaftStatus]],
        *,
        node_id: str,
        addr: str,
        decrypt: Decrypt,
        connect: Connect,
        now: Callable[[], datetime],
        new_id: Callable[[], str] = random_id,
    ) -> None:
        self._leadership = LeadershipLoop(store, raft_status, node_id, addr, now, on_change=self._changed)
        self.fence = self._leadership.fence
        self.dispatcher = Dispatcher(
            store,
            decrypt=decrypt,
            fence=self.fence,
            confirmed_s=lambda: self._leadership.confirmed_s,
            poke=self._poke,
            now=now,
        )
        self.gateway = Gateway(store, self.dispatcher, node_id=node_id, connect=connect)
        self._driver = ControlDriver(
            store, LOOPS, fence=self.fence, acks=self.dispatcher.acks, refence=self._leadership.refence, now=now, new_id=new_id
        )
        self._parts: list[tuple[Callable[[], Awaitable[None]], str]] = [
            (self.dispatcher.lead, "dispatcher"),
            (self._driver.run, "control"),
        ]
        self._work: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    def also(self, part: Callable[[], Awaitable[None]], name: str) -> None:
        """Something else that only the leader does."""
        self._parts.append((part, name))

    async def run(self) -> None:
        gateway = asyncio.create_task(_forever(self.gateway.run, "gateway"), name="gateway")
        try:
            await self._leadership.run()
        finally:
            self._changed(False)
            gateway.cancel()
            await asyncio.gather(gateway, *self._ending, return_exceptions=True)

    def _poke(self) -> None:
        self._driver.poke()

    def _changed(self, leading: bool) -> None:
        if self._work is not None:
            self._work.cancel()
            self._ending.add(self._work)
            self._work.add_done_callback(self._ending.discard)
            self._work = None
        if leading:
            self._work = asyncio.create_task(self._lead(), name="lead")

    async def _lead(self) -> None:
        await asyncio.gather(*(_forever(part, name) for part, name in self._parts))


async def _forever(work: Callable[[], Awaitable[None]], what: str) -> None:
    """A part of leading that ends by an error is started again; only losing the leadership (cancelling) ends it."""
    while True:
        try:
            await work()
        except MeshdError as error:
            log.warning("part=%s state=ended error=%s restart_in_s=%g", what, error, _RESTART_PAUSE_S)
        except Exception:
            log.exception("part=%s state=crashed restart_in_s=%g", what, _RESTART_PAUSE_S)
        await asyncio.sleep(_RESTART_PAUSE_S)
