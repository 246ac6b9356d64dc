"""The store on etcd: writes are guarded transactions, reads come from a local copy that a watch keeps up to date.

Edge: gRPC to the local etcd (or to the first of several that answers). Source: etcd API v3. The copy is made by one list and then
follows a watch from the next revision on; whenever the watch breaks it resumes after the last revision seen, and where etcd has
compacted that away, a new list is compared with the copy and the difference is told as events.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

import grpc
import grpc.aio
import msgspec
from aetcd.rpc import kv_pb2
from aetcd.rpc import rpc_pb2 as pb
from aetcd.rpc import rpc_pb2_grpc as stubs

from orchestrator.errors import Compacted, ConfigError, Conflict, StoreError, StoreUnavailable
from orchestrator.model import KINDS, Kind, Object, Service, Task, Version
from orchestrator.store.base import Change, Event, Guard
from orchestrator.store.etcd_client import call, open_channel, translate
from orchestrator.store.etcd_codec import PREFIX, PREFIX_END, decode, key, parse_key, transaction
from orchestrator.store.etcd_tls import TLSFiles
from orchestrator.store.group_commit import GroupCommit
from orchestrator.store.sealing import Open, Sealing
from orchestrator.store.snapshot import Snapshot, SnapshotEdit
from orchestrator.store.subscription import MAX_BACKLOG, Subscribers, Subscription
from orchestrator.store.transaction import MAX_CHANGES, check_conflicts, check_shape, key_of, stored_at, surely_not_stored

log = logging.getLogger(__name__)

_PAGE = 2_000
# long enough for a slow disk, short enough that a write lost with Raft's leader is soon sent to the next one
_TRY_S = 1.5
_LEAST_TRY_S = 0.1
_RETRY_PAUSE_S = 0.05
# longer than an election takes: from then on writes fail soon instead of hoping
_LONG_BREAK_S = 4.0
_BACKOFF_MIN_S = 0.1
_BACKOFF_MAX_S = 1.0
# etcd ends a watch that asks for it when its member has no leader; without this the watch just falls silent
_HAS_LEADER = (("hasleader", "true"),)


class EtcdStore:
    """Make one with `await EtcdStore.open(...)`. `endpoints`: "ip:port" of etcd's client listeners, the preferred one first."""

    def __init__(
        self,
        endpoints: Sequence[str],
        tls: TLSFiles,
        *,
        sealing: Sealing = Open(),
        timeout_s: float = 5.0,
        max_changes: int = MAX_CHANGES,
        max_backlog: int = MAX_BACKLOG,
    ) -> None:
        if not endpoints:
            raise ConfigError("the store needs at least one etcd endpoint")
        self.max_changes = max_changes
        self._sealing = sealing
        self._timeout_s = timeout_s
        self._channels = [open_channel(endpoint, tls) for endpoint in endpoints]
        self._stubs = [stubs.KVStub(channel) for channel in self._channels]
        self._endpoints = list(endpoints)
        self._group = GroupCommit(self._written)
        self._current = 0
        self._snapshot = Snapshot()
        self._listed = asyncio.Event()
        self._stale = True
        self._available = False
        # when the watch broke, by the loop's clock; 0 while it stands
        self._broken_at_s = 0.0
        self._subscribers = Subscribers(max_backlog)
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._ticket = itertools.count()
        self._closed = False
        self._follower: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        endpoints: Sequence[str],
        tls: TLSFiles,
        *,
        sealing: Sealing = Open(),
        timeout_s: float = 5.0,
        open_timeout_s: float = 30.0,
        max_changes: int = MAX_CHANGES,
        max_backlog: int = MAX_BACKLOG,
    ) -> EtcdStore:
        """Connected and holding the whole state; StoreUnavailable if that takes longer than open_timeout_s."""
        store = cls(endpoints, tls, sealing=sealing, timeout_s=timeout_s, max_changes=max_changes, max_backlog=max_backlog)
        store._follower = asyncio.create_task(store._follow(), name="store-follow")
        try:
            async with asyncio.timeout(open_timeout_s):
                await store._listed.wait()
        except TimeoutError:
            await store.close()
            raise StoreUnavailable(f"etcd at {', '.join(endpoints)} did not answer within {open_timeout_s:g} s (no quorum?)") from None
        except asyncio.CancelledError:
            await store.close()
            raise
        return store

    @property
    def available(self) -> bool:
        """The watch stands, so `snapshot()` follows the cluster. False: it is as old as the break."""
        return self._available

    @property
    def _endpoint(self) -> str:
        return self._endpoints[self._current]

    def snapshot(self) -> Snapshot:
        return self._snapshot

    async def sync(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        # a transaction that does nothing is one read through the quorum
        answer, _ = await self._written(transaction([]))
        await self._reached(int(answer.header.revision))

    async def commit(self, changes: Sequence[Change]) -> int:
        check_shape(changes, self.max_changes)
        request = transaction(changes, self._sealing)
        if self._closed:
            raise StoreUnavailable("the store is closed")
        touched = frozenset(key_of(change) for change in changes)
        written = frozenset(key_of(change) for change in changes if not isinstance(change, Guard))
        outcome = await self._group.commit(request, touched, written)
        if outcome.succeeded:
            await self._reached(outcome.revision)
            return outcome.revision
        # whoever plans again must see what beat him
        with contextlib.suppress(StoreUnavailable):
            await self._reached(outcome.revision)
        if not outcome.sure:
            if done := stored_at(self._snapshot, changes):
                return done
            if not surely_not_stored(self._snapshot, changes):
                raise StoreUnavailable("the answer to a write was lost and others wrote since: nobody can say whether it was stored")
        check_conflicts(self._snapshot, changes)
        raise Conflict("the objects were changed by someone else, and back again")

    async def _written(self, request: Any) -> tuple[Any, bool]:
        """etcd's answer to the transaction, and whether no earlier try of it may have been stored.

        A follower hands a write to the Raft leader it knows, and one handed to a leader that has just died is lost without a word: so
        it is sent again, within the timeout. Twice does no harm: the second finds the versions of the first.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._timeout_s
        if self._broken_at_s and loop.time() - self._broken_at_s > _LONG_BREAK_S:
            end_s = loop.time() + min(_TRY_S, self._timeout_s)
        sure = True
        while True:
            left_s = end_s - loop.time()
            try:
                # with one endpoint, wait out its restart; with several, the follower is about to choose another one
                attempt = self._kv().Txn(request, timeout=min(_TRY_S, left_s), wait_for_ready=len(self._channels) == 1)
                return await call(attempt, "writing to etcd"), sure
            except StoreUnavailable as error:
                sure = False
                if self._closed or end_s - loop.time() < _LEAST_TRY_S:
                    if self._broken_at_s:
                        raise StoreUnavailable(
                            f"no majority of the managers can be reached, nothing can be changed until then ({error})"
                        ) from None
                    raise
                await asyncio.sleep(_RETRY_PAUSE_S)

    def watch(self) -> Subscription:
        return self._subscribers.subscribe(self._snapshot)

    async def close(self) -> None:
        self._closed = True
        self._available = False
        if self._follower:
            self._follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._follower
        for _, _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(StoreUnavailable("the store was closed"))
        self._waiters.clear()
        await self._group.close()
        self._subscribers.close()
        for channel in self._channels:
            await channel.close()

    # ---- the local copy ------------------------------------------------------------------------------------------------------

    def _kv(self) -> Any:
        return self._stubs[self._current]

    async def _reached(self, revision: int) -> None:
        if self._snapshot.revision >= revision:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (revision, next(self._ticket), waiter))
        try:
            async with asyncio.timeout(self._timeout_s):
                await waiter
        except TimeoutError:
            raise StoreUnavailable(
                f"etcd is at revision {revision}, but this manager's copy stays at {self._snapshot.revision}: it gets no changes"
            ) from None

    def _publish(self, snapshot: Snapshot, events: list[Event]) -> None:
        self._snapshot = snapshot
        # woken before those who follow: a client waits for whoever has written
        while self._waiters and self._waiters[0][0] <= snapshot.revision:
            waiter = heapq.heappop(self._waiters)[2]
            if not waiter.done():
                waiter.set_result(None)
        self._subscribers.publish(snapshot, events)

    async def _follow(self) -> None:
        """List and watch for ever. Errors are told once a burst; every failed try goes to the next endpoint."""
        failures = 0
        while True:
            try:
                if self._stale:
                    await self._list()
                    self._stale = False
                    self._listed.set()
                async for events in self._changes():
                    if failures:
                        log.info(
                            "store=etcd endpoint=%s state=following revision=%d", self._endpoints[self._current], self._snapshot.revision
                        )
                        failures = 0
                    self._apply(events)
            except Compacted:
                log.warning("store=etcd state=compacted revision=%d action=list-again", self._snapshot.revision)
                self._stale = True
                continue
            except StoreError as error:
                if failures == 0:
                    log.warning("store=etcd endpoint=%s state=unavailable error=%s", self._endpoint, error)
            except Exception:
                # our own bug must not leave a copy that silently stands still: start over from a list
                log.exception("store=etcd state=broken action=list-again")
                self._stale = True
            finally:
                self._available = False
            failures += 1
            self._broken_at_s = self._broken_at_s or asyncio.get_running_loop().time()
            self._current = (self._current + 1) % len(self._channels)
            await asyncio.sleep(min(_BACKOFF_MAX_S, _BACKOFF_MIN_S * 2 ** min(failures - 1, 10)))

    async def _changes(self) -> AsyncGenerator[Sequence[Any], None]:
        """Batches of etcd's events after the copy's revision, each with whole revisions; the first batch is empty: the watch stands."""
        stream = stubs.WatchStub(self._channels[self._current]).Watch(metadata=_HAS_LEADER)
        # all keys, not only ours: a foreign write moves the revision too, and a commit waits for its revision
        create = pb.WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=self._snapshot.revision + 1)
        try:
            await stream.write(pb.WatchRequest(create_request=create))
            while True:
                response = await stream.read()
                if response is grpc.aio.EOF:
                    raise StoreUnavailable("etcd ended the watch")
                if response.compact_revision:
                    raise Compacted(f"etcd has compacted up to revision {response.compact_revision}")
                if response.canceled:
                    raise StoreUnavailable(f"etcd ended the watch: {response.cancel_reason or 'no reason given'}")
                if response.created and response.header.revision < self._snapshot.revision:
                    # behind what we have seen: a backup was restored, or the member lags (then the list makes it catch up)
                    raise Compacted(f"etcd is at revision {response.header.revision}, before this copy's {self._snapshot.revision}")
                self._available = True
                self._broken_at_s = 0.0
                yield response.events
        except grpc.aio.AioRpcError as error:
            raise translate(error, "watching etcd") from error
        except asyncio.InvalidStateError as error:
            # grpc.aio's answer to a write or read on a call that has just failed
            raise StoreUnavailable("watching etcd: the connection broke") from error
        finally:
            stream.cancel()

    def _apply(self, changes: Iterable[Any]) -> None:
        edit, events = SnapshotEdit(self._snapshot), []
        seen = revision = self._snapshot.revision
        for change in changes:
            # a member that was set back to an older state may tell the past again (etcd issue 15271)
            if change.kv.mod_revision <= seen:
                continue
            revision = change.kv.mod_revision
            name = parse_key(change.kv.key)
            if name is None:
                continue
            kind, id = name
            old = edit.raw(kind, id)
            if change.type == kv_pb2.Event.DELETE:
                if old is None:
                    continue
                edit.set(kind, id, None)
                events.append(Event(kind=kind, id=id, revision=revision, old=old, new=None))
                continue
            new = self._decoded(kind, id, change.kv)
            if new is not None:
                new = _sharing(new, old, edit)
                edit.set(kind, id, new)
                events.append(Event(kind=kind, id=id, revision=revision, old=old, new=new))
        if revision > seen:
            self._publish(edit.finish().at(revision), events)

    async def _list(self) -> None:
        """Read everything at one revision and publish how it differs from the copy: every object at most once."""
        found, revision = await self._read_all()
        old = self._snapshot
        edit = SnapshotEdit(old)
        # only a restored backup goes back in time; then equal versions prove nothing
        restored = revision < old.revision
        events = []
        for name, kv in sorted(found.items(), key=lambda item: item[1].mod_revision):
            before = old.raw(*name)
            if before is not None and before.version.index == kv.mod_revision and not restored:
                continue
            after = self._decoded(*name, kv)
            if after is not None and after != before:
                after = _sharing(after, before, edit)
                edit.set(*name, after)
                events.append(Event(kind=name[0], id=name[1], revision=kv.mod_revision, old=before, new=after))
        for kind in KINDS:
            for id, gone in sorted(old.tables.get(kind, {}).items()):
                if (kind, id) not in found:
                    edit.set(kind, id, None)
                    events.append(Event(kind=kind, id=id, revision=revision, old=gone, new=None))
        self._publish(edit.finish().at(revision), events)

    async def _read_all(self) -> tuple[dict[tuple[Kind, str], Any], int]:
        found: dict[tuple[Kind, str], Any] = {}
        revision, start = 0, PREFIX
        while True:
            request = pb.RangeRequest(key=start, range_end=PREFIX_END, limit=_PAGE, revision=revision)
            answer = await call(self._kv().Range(request, timeout=self._timeout_s), "listing etcd")
            # every page shows the state of the first one
            revision = revision or int(answer.header.revision)
            for kv in answer.kvs:
                name = parse_key(kv.key)
                if name is not None:
                    found[name] = kv
            if not answer.more:
                return found, revision
            start = answer.kvs[-1].key + b"\0"

    def _decoded(self, kind: Kind, id: str, kv: Any) -> Object | None:
        try:
            return decode(kind, self._sealing.open(kv.key, kv.value), Version(index=kv.mod_revision))
        except (msgspec.MsgspecError, ConfigError) as error:
            # written by a meshd that knows more than this one: what we have of it stays, its key can't be taken
            log.error("store=etcd key=%s state=unreadable error=%s", key(kind, id).decode(), error)
            return None


def _sharing(new: Object, old: Object | None, edit: SnapshotEdit) -> Object:
    """A task with the very spec of its former self or of its service, where equal: most of a task is its spec, and what is the same object
    is compared in no time."""
    if not isinstance(new, Task):
        return new
    service = edit.raw("service", new.service_id) if old is None else None
    known = old.spec if isinstance(old, Task) else service.spec.task_template if isinstance(service, Service) else None
    return msgspec.structs.replace(new, spec=known) if known == new.spec else new
