"""Runs the control loops while this manager leads: waits for a reason, plans, commits, looks again.

Edge: the store, the clock, the log. Nothing is remembered between two passes; a pass that is cut short anywhere is simply planned
again from what the store then shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from orchestrator.control.batches import batches
from orchestrator.control.context import Context, NetworkAcks
from orchestrator.control.steps import Loop, Step, applied, earliest
from orchestrator.errors import Compacted, Conflict, StoreUnavailable
from orchestrator.ids import new_id as random_id
from orchestrator.model import Node, Object, Service, Task
from orchestrator.store.base import Change, Delete, Event, Guard, Put, Store
from orchestrator.store.snapshot import Snapshot

log = logging.getLogger(__name__)

# events come in bursts: one pass for all of them
DEBOUNCE_S = 0.005
# kept well under what etcd takes at once, and short, so that others get their turn between two of ours
MAX_BATCH = 1_500
# After a pass that found nothing to do, the next one waits for so many times as long as it took: in a storm of changes that mean nothing to
# the loops (services without tasks, reports) most of the process's time is for those who cause it.
_REST, _LONGEST_REST_S = 3.0, 0.25
_BACK_OFF_S = (0.02, 1.0)
_FAILED_LOOP_RETRY = timedelta(seconds=1)
_LONGEST_SLEEP_S = 60.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


class ControlDriver:
    """fence: the guard that proves leadership, None when this manager doesn't lead (any more). refence: gives it a new one, and the store's
    copy everything that was written under the old one (`LeadershipLoop.refence`)."""

    def __init__(
        self,
        store: Store,
        loops: Sequence[Loop],
        fence: Callable[[], Guard | None],
        acks: NetworkAcks,
        *,
        refence: Callable[[], Awaitable[None]] | None = None,
        now: Callable[[], datetime] = _utc_now,
        new_id: Callable[[], str] = random_id,
        drain_deadline: timedelta | None = None,
    ) -> None:
        self._store = store
        self._loops = tuple(loops)
        self._fence = fence
        self._acks = acks
        self._refence = refence
        self._now = now
        self._new_id = new_id
        self._drain_deadline = drain_deadline
        self._reason = asyncio.Event()
        # somebody waits: no rest before the next pass
        self._urgent = asyncio.Event()
        self._complaints: dict[str, str] = {}
        self._rest_s = DEBOUNCE_S

    def poke(self) -> None:
        """Something outside the store changed (acknowledgements): look again soon."""
        self._reason.set()

    async def run(self) -> None:
        """Until cancelled, or until `fence()` says that this manager doesn't lead."""
        # from before the first look at the store, so that nothing falls between
        watching = asyncio.create_task(self._watch(self._store.watch()))
        try:
            failures = 0
            in_doubt = False
            while (guard := self._fence()) is not None:
                self._reason.clear()
                self._urgent.clear()
                try:
                    if in_doubt and self._refence is not None:
                        # the last commit may have happened: planned again without seeing it, its tasks would be made twice
                        await self._refence()
                        in_doubt = False
                        continue
                    wakeup = await self._pass(guard)
                except Conflict as error:
                    # somebody wrote first; their write is on its way to our copy
                    log.debug("control conflict=%r", str(error))
                    failures += 1
                    await self._pause(_back_off_s(failures))
                    await asyncio.sleep(DEBOUNCE_S)
                    continue
                except StoreUnavailable as error:
                    failures += 1
                    in_doubt = True
                    log.warning("control store=unavailable reason=%r attempt=%d", str(error), failures)
                    await asyncio.sleep(_back_off_s(failures))
                    continue
                failures = 0
                await self._sleep(wakeup)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    # ---- one pass --------------------------------------------------------------------------------------------------------------

    async def _pass(self, guard: Guard) -> datetime | None:
        """Plan once and commit it. Returns when to look again if nothing happens before."""
        base, start_s = self._store.snapshot(), asyncio.get_running_loop().time()
        steps, wakeup = await self._plan(base)
        if not steps:
            self._rest_s = min(max(_REST * (asyncio.get_running_loop().time() - start_s), DEBOUNCE_S), _LONGEST_REST_S)
            return wakeup
        self._rest_s = DEBOUNCE_S
        committed = 0
        for batch in batches(base, steps, min(self._store.max_changes - 1, MAX_BATCH)):
            if batch.changes:
                revision = await self._store.commit([*batch.changes, guard])
                for change in batch.changes:
                    _tell(base, change, revision)
            committed += batch.steps
        # the rest builds on versions that exist only now
        if committed < len(steps):
            self._reason.set()
        return wakeup

    async def _plan(self, base: Snapshot) -> tuple[list[Step], datetime | None]:
        """What all loops decide, each on the picture that those before it have made."""
        context = Context(now=self._now(), new_id=self._new_id, acks=self._acks)
        if self._drain_deadline is not None:
            context = Context(now=context.now, new_id=self._new_id, acks=self._acks, drain_deadline=self._drain_deadline)
        picture, steps = base, list[Step]()
        wakeup: datetime | None = None
        for loop in self._loops:
            name = loop.__name__
            try:
                with undisturbed():
                    decision = loop(picture, context)
                    if decision.steps:
                        picture = applied(picture, decision.steps)
            except Exception as error:  # a bug in one loop must not stop the others
                self._complain(name, error)
                wakeup = earliest(wakeup, context.now + _FAILED_LOOP_RETRY)
            else:
                self._complaints.pop(name, None)
                steps += [step for step in decision.steps if step]
                wakeup = earliest(wakeup, decision.wakeup)
            # agents and the API share this event loop
            await asyncio.sleep(0)
        return steps, wakeup

    def _complain(self, loop: str, error: Exception) -> None:
        if self._complaints.get(loop) != repr(error):
            self._complaints[loop] = repr(error)
            log.error("control loop=%s failed", loop, exc_info=error)

    # ---- waiting ---------------------------------------------------------------------------------------------------------------

    async def _sleep(self, wakeup: datetime | None) -> None:
        timeout_s = _LONGEST_SLEEP_S
        if wakeup is not None:
            timeout_s = min(max((wakeup - self._now()).total_seconds(), 0.0), timeout_s)
        resting = asyncio.get_running_loop().time() + self._rest_s
        await self._pause(timeout_s)
        await _within(max(DEBOUNCE_S, resting - asyncio.get_running_loop().time()), self._urgent)

    async def _pause(self, timeout_s: float) -> None:
        await _within(timeout_s, self._reason)

    async def _watch(self, events: AsyncIterator[tuple[Snapshot, list[Event]]]) -> None:
        """Turns the store's events into reasons; more than that is never read."""
        failures = 0
        while True:
            try:
                async for _, batch in events:
                    failures = 0
                    # a leader's sign of life every other second decides nothing, and a pass looks at every task
                    if any(event.kind != "leader" for event in batch):
                        self._reason.set()
                    # who makes a network is answered when it has its addresses
                    if any(event.kind == "network" and event.old is None for event in batch):
                        self._urgent.set()
            except (Compacted, StoreUnavailable) as error:
                log.info("control watch=restarted reason=%r", str(error))
            failures += 1
            await asyncio.sleep(_back_off_s(failures))
            events = self._store.watch()
            self._reason.set()


async def _within(timeout_s: float, event: asyncio.Event) -> None:
    """Until it is set, or so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection meanwhile: a loop makes many objects, none of them in cycles, and each collection walks all of the picture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _back_off_s(failures: int) -> float:
    first, longest = _BACK_OFF_S
    return min(first * 2.0 ** (failures - 1), longest)


# ---- the log -----------------------------------------------------------------------------------------------------------------------


def _tell(base: Snapshot, change: Change, revision: int) -> None:
    if not log.isEnabledFor(logging.INFO):
        return
    match change:
        case Put(obj):
            log.info("control put %s revision=%d", _words(obj, base), revision)
        case Delete(kind, id):
            log.info("control delete %s=%s revision=%d", kind, id, revision)


def _words(obj: Object, base: Snapshot) -> str:
    match obj:
        case Task():
            old = base.task(obj.id)
            state = obj.status.state if old is None else f"{old.status.state}->{obj.status.state}"
            desired = obj.desired_state if old is None else f"{old.desired_state}->{obj.desired_state}"
            place = f"{obj.mesh_service_name}.{obj.slot or obj.node_id}"
            return f"task={obj.id} slot={place} node={obj.node_id or '-'} state={state} desired={desired} released={obj.mesh_released}"
        case Service():
            status = obj.update_status
            return f"service={obj.id} name={obj.spec.name} update={status.state if status else '-'}"
        case Node():
            return f"node={obj.id} state={obj.status.state}"
        case _:
            return f"{type(obj).__name__.lower()}={obj.id}"
