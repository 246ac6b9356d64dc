"""Stores what agents report, in batches: the first at once, then every ~20 ms whatever has gathered.

Edge: commits to the store under the leader's fence. What waits is state, not a queue: the latest status of each task and the latest
presence of each node, so it is bounded by the cluster's size however long the store is away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import datetime

from orchestrator.dispatcher.messages import TaskReport
from orchestrator.dispatcher.reports import Presence, later, nodes_changed, objection, tasks_changed, trimmed
from orchestrator.errors import Conflict, StoreUnavailable
from orchestrator.model import TaskStatus
from orchestrator.store.base import Change, Guard, Put, Store

log = logging.getLogger(__name__)

BATCH_S = 0.02
# Keeps a transaction of big specs (10 KB each) under the store's 1.5 MB.
MAX_OBJECTS_PER_COMMIT = 64
_RETRY_FIRST_S = 0.002
_RETRY_LAST_S = 1.0


class ReportWriter:
    def __init__(self, store: Store, fence: Callable[[], Guard | None], now: Callable[[], datetime]) -> None:
        self._store, self._fence, self._now = store, fence, now
        self._statuses: dict[str, TaskStatus] = {}
        self._presences: dict[str, Presence] = {}
        self._stored: list[Callable[[], None]] = []
        self._wake = asyncio.Event()

    def report(self, node_id: str, reports: Iterable[TaskReport], stored: Callable[[], None]) -> None:
        """`stored()` is called once nothing of it is missing in the store; reports that are not to be believed are dropped here."""
        snapshot = self._store.snapshot()
        for report in reports:
            if reason := objection(snapshot, node_id, report):
                log.warning("report ignored node=%s task=%.40r reason=%s", node_id, report.task_id, reason)
            elif snapshot.task(report.task_id) is not None:
                self._statuses[report.task_id] = later(self._statuses.get(report.task_id), trimmed(report.status))
        self._stored.append(stored)
        self._wake.set()

    def presence(self, node_id: str, presence: Presence) -> None:
        self._presences[node_id] = presence
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled. What could not be stored by then is reported again to the next leader: agents keep it until told."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            statuses, presences, stored = self._statuses, self._presences, self._stored
            self._statuses, self._presences, self._stored = {}, {}, []
            pause = asyncio.create_task(asyncio.sleep(BATCH_S))
            try:
                await self._store_all(statuses, presences)
                for done in stored:
                    done()
                await pause
            finally:
                pause.cancel()

    async def _store_all(self, statuses: dict[str, TaskStatus], presences: dict[str, Presence]) -> None:
        retry_s = _RETRY_FIRST_S
        while True:
            try:
                await self._store_once(statuses, presences)
                return
            except (Conflict, StoreUnavailable) as error:
                # Decided again from the newest snapshot: what is stored already changes nothing a second time.
                if retry_s >= 0.25:
                    log.warning("reports not stored yet tasks=%d nodes=%d reason=%s", len(statuses), len(presences), error)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_LAST_S)

    async def _store_once(self, statuses: dict[str, TaskStatus], presences: dict[str, Presence]) -> None:
        fence = self._fence()
        if fence is None:
            raise StoreUnavailable("this manager doesn't lead any more")
        snapshot = self._store.snapshot()
        changes: list[Change] = [Put(node) for node in nodes_changed(snapshot, presences)]
        changes += [Put(task) for task in tasks_changed(snapshot, statuses, self._now())]
        size = min(self._store.max_changes - 1, MAX_OBJECTS_PER_COMMIT)
        for start in range(0, len(changes), size):
            await self._store.commit([fence, *changes[start : start + size]])
