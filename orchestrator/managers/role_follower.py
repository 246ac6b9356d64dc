"""Makes a node what its leader says it is to be, manager or worker: tried until it is done, the newest word counts.

Edge: one task. What the leader says is repeated with every session, so nothing needs to be remembered here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from orchestrator.errors import MeshdError

log = logging.getLogger(__name__)

RETRY_FIRST_S = 1.0
RETRY_LAST_S = 30.0


class RoleFollower:
    """change(role): brings the node there; MeshdError: not now, try again."""

    def __init__(self, change: Callable[[str], Awaitable[None]], *, retry_first_s: float = RETRY_FIRST_S) -> None:
        self._change = change
        self._retry_first_s = retry_first_s
        self._role = ""
        self._told = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def told(self, role: str) -> None:
        if role:
            self._role = role
            self._told.set()

    def again(self) -> None:
        """What was told last is not true any more: look at it once more."""
        if self._role:
            self._told.set()

    def start(self) -> None:
        self._role = ""
        self._told.clear()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow(), name="role")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _follow(self) -> None:
        pause_s = self._retry_first_s
        while True:
            await self._told.wait()
            self._told.clear()
            role = self._role
            try:
                await self._change(role)
                pause_s = self._retry_first_s
            except MeshdError as error:
                log.warning("role=%s state=not-yet error=%s retry_in_s=%g", role, error, pause_s)
                await self._pause(pause_s)
                pause_s = min(pause_s * 2, RETRY_LAST_S)
                self._told.set()

    async def _pause(self, pause_s: float) -> None:
        """Shorter when there is a newer word."""
        try:
            async with asyncio.timeout(pause_s):
                await self._told.wait()
        except TimeoutError:
            pass
