"""The dispatcher: the leader's end of the agents' sessions, those attached to other managers included (`gateway`).

Edge: connections and the store. An agent is sent its whole assignment once, then what changed; what an agent has not been sent yet is
never queued but computed from the state when its connection can take more, so a slow agent gets one merged delta instead of a
backlog.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import msgspec

from orchestrator.control.context import NetworkAcks
from orchestrator.dispatcher.acks import AgentAcks
from orchestrator.dispatcher.assignment import Decrypt
from orchestrator.dispatcher.connection import Connection
from orchestrator.dispatcher.messages import (
    PROTOCOL,
    Applied,
    Complete,
    Delta,
    Describe,
    FromAgent,
    FromManager,
    Heard,
    Heartbeat,
    Hello,
    Leave,
    Refused,
    Statuses,
    StatusesStored,
    skew,
)
from orchestrator.dispatcher.parts import AssignmentParts, Differences, Parts
from orchestrator.dispatcher.reports import Presence, absent
from orchestrator.dispatcher.resume import Summaries, buckets_of, stale_buckets
from orchestrator.dispatcher.writer import ReportWriter
from orchestrator.errors import Compacted, RemoteProtocolError, StoreUnavailable
from orchestrator.managers.membership import role_of
from orchestrator.model import Node
from orchestrator.security.admission import Trust, managers_of, trust_of
from orchestrator.security.peer import Peer
from orchestrator.security.rate import RateLimit
from orchestrator.store.base import Event, Guard, Store
from orchestrator.store.snapshot import Snapshot

log = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
MISSED_HEARTBEATS = 3
# An agent whose manager ended, or whose meshd is started again, is back by then: its loss is not written.
RETURNS_WITHIN_S = 1.0
FLUSH_S = 0.02
# Sessions woken between two turns of the loop.
FAN_OUT_CHUNK = 64
MAX_DESCRIPTION_BYTES = 64 * 1024

# Close codes of ours (RFC 6455: 4000-4999 are the application's).
CLOSE_REPLACED = 4000
CLOSE_REMOVED = 4001
CLOSE_NOT_LEADING = 4002
CLOSE_PROTOCOL = 1002
CLOSE_LOST = 4003

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)


class _Session:
    """One agent. `shown` is what its rows are once everything sent has arrived."""

    __slots__ = (
        "acks", "beat", "beat_answered", "closing", "dirty", "managers", "peer", "role", "shown", "stored", "stored_sent", "token", "trust",
        "wire",
    )  # fmt: skip

    def __init__(self, peer: Peer, wire: Connection, token: bytes) -> None:
        self.peer, self.wire, self.token = peer, wire, token
        self.acks = AgentAcks()
        self.shown: Parts = {}
        self.managers: tuple[str, ...] = ()
        self.role = ""
        self.trust = Trust()
        self.dirty = asyncio.Event()
        self.stored = self.stored_sent = 0
        self.beat = self.beat_answered = 0
        self.closing: tuple[int, str] | None = None

    def close(self, code: int, reason: str) -> None:
        if self.closing is None:
            self.closing = (code, reason)
            self.dirty.set()

    def statuses_stored(self, sequence: int) -> None:
        self.stored = max(self.stored, sequence)
        self.dirty.set()


class Dispatcher:
    """fence(): the guard of the present leadership, None = not the leader. confirmed_s(): seconds since the write was begun that last
    proved it. poke(): the acknowledgements changed, run the loops."""

    def __init__(
        self,
        store: Store,
        *,
        decrypt: Decrypt,
        fence: Callable[[], Guard | None],
        poke: Callable[[], None] = lambda: None,
        confirmed_s: Callable[[], float] = lambda: 0.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        heartbeat_s: float | None = None,
        absent_after_s: float = HEARTBEAT_S * MISSED_HEARTBEATS,
    ) -> None:
        self._store, self._decrypt, self._poke, self._now = store, decrypt, poke, now
        self._fence, self._confirmed_s = fence, confirmed_s
        self._given_heartbeat_s = heartbeat_s
        self._absent_after_s = absent_after_s
        self._sessions: dict[str, _Session] = {}
        self._common: tuple[int, tuple[str, ...], Trust] = (-1, (), Trust())
        self._losses: dict[str, asyncio.TimerHandle] = {}
        # told when it has begun to lead
        self.on_leading: Callable[[], None] = lambda: None
        self._parts: AssignmentParts | None = None
        self._differences = Differences()
        self._summaries = Summaries()
        self._writer = ReportWriter(store, fence, now)
        self.acks = NetworkAcks(applied=self._applied, open=self._open, behind=self._behind)

    @property
    def connected(self) -> frozenset[str]:
        """Ids of the nodes with a session."""
        return frozenset(self._sessions)

    async def lead(self) -> None:
        """Serve agents until cancelled: call it when leadership is gained, cancel it when it is lost. Sessions end with it.

        StoreUnavailable: the store was closed.
        """
        self._writer = ReportWriter(self._store, self._fence, self._now)
        tasks = [asyncio.create_task(work) for work in (self._follow(), self._writer.run(), self._mark_absent())]
        try:
            # Neither following nor writing ends by itself: the first that does brings its exception.
            done, _ = await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            self._parts = None
            for session in self._sessions.values():
                session.close(CLOSE_NOT_LEADING, "this manager doesn't lead any more")
            self._sessions.clear()
            for loss in self._losses.values():
                loss.cancel()
            self._losses.clear()

    # ---- store -> agents --------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            watch = self._store.watch()
            # Also after the watch was cut: sessions hold what they were sent, so they get the difference and no resend.
            self._parts = AssignmentParts(self._store.snapshot(), self._decrypt)
            self.on_leading()
            unreadable: frozenset[str] = frozenset()
            await self._fan_out(self._parts.snapshot, [])
            try:
                async for snapshot, events in watch:
                    started_s = asyncio.get_running_loop().time()
                    self._parts.follow(snapshot, events)
                    await self._fan_out(snapshot, events)
                    if new := self._parts.unreadable_secrets - unreadable:
                        log.error("secrets can't be decrypted, tasks that name them don't get them ids=%s", sorted(new))
                        unreadable |= new
                    # The first change went out at once; what comes meanwhile gathers in the watch.
                    await asyncio.sleep(max(0.0, started_s + FLUSH_S - asyncio.get_running_loop().time()))
            except Compacted:
                log.warning("fell behind the store, reading everything again")
            else:
                raise StoreUnavailable("the store was closed")

    async def _fan_out(self, snapshot: Snapshot, events: list[Event]) -> None:
        parts = self._parts
        assert parts is not None
        self._differences = Differences()
        for event in events:
            if event.kind == "node" and event.new is None and (session := self._sessions.pop(event.id, None)):
                # Out of the table first: what it says from now on is not heard.
                session.close(CLOSE_REMOVED, "the node was removed from the cluster")
        managers, trust = self._common_to_all(snapshot)
        woken = 0
        for session in list(self._sessions.values()):
            now_due = parts.of(session.peer.node_id)
            known = session.managers == managers and session.role == role_of(snapshot.node(session.peer.node_id))
            if known and session.trust == trust and _same(session.shown, now_due):
                session.acks.processed(snapshot.revision)
                continue
            session.dirty.set()
            woken += 1
            if woken % FAN_OUT_CHUNK == 0:
                await asyncio.sleep(0)
        # "Nothing outstanding" may have become true for this revision without any agent saying a word; nobody waits for that of a leader's
        # sign of life, which comes every other second.
        if self._sessions and (not events or any(event.kind != "leader" for event in events)):
            self._poke()

    def _common_to_all(self, snapshot: Snapshot) -> tuple[tuple[str, ...], Trust]:
        """(managers, trust): what every agent is told, found once a revision."""
        if self._common[0] != snapshot.revision:
            self._common = (snapshot.revision, managers_of(snapshot), trust_of(snapshot))
        return self._common[1:]

    async def _mark_absent(self) -> None:
        await asyncio.sleep(self._absent_after_s)
        for node_id, presence in absent(self._store.snapshot().all(Node), self.connected, self._now()).items():
            log.warning("node has no session since this manager leads node=%s", node_id)
            self._writer.presence(node_id, presence)

    # ---- one agent ----------------------------------------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        return self._parts is not None

    async def attend(self, wire: Connection, peer: Peer, hello: Hello) -> bool:
        """One session, from its hello to its end. True: this manager doesn't lead any more and the connection is still there.

        The caller has checked the certificate. RemoteProtocolError; TimeoutError, ConnectionError: the agent is lost.
        """
        if reason := skew(agent=hello.version, manager=PROTOCOL):
            await _send(wire, Refused(reason=reason))
            raise RemoteProtocolError(reason)
        session = _Session(peer, wire, hello.have)
        await self._run(session, hello)
        return session.closing is not None and session.closing[0] == CLOSE_NOT_LEADING

    async def _run(self, session: _Session, hello: Hello) -> None:
        peer = session.peer
        if self._parts is None:
            session.close(CLOSE_NOT_LEADING, "this manager doesn't lead any more")
        elif self._store.snapshot().node(peer.node_id) is None:
            session.close(CLOSE_REMOVED, "the node was removed from the cluster")
        else:
            if old := self._sessions.get(peer.node_id):
                log.info("session replaced node=%s old=%s new=%s", peer.node_id, old.peer.address, peer.address)
                old.close(CLOSE_REPLACED, "a newer session of this node took over")
            if loss := self._losses.pop(peer.node_id, None):
                loss.cancel()
            self._sessions[peer.node_id] = session
            self._writer.presence(peer.node_id, Presence(self._now(), hello.description, peer.address))
        log.info("agent connected node=%s address=%s", peer.node_id, peer.address)
        reading = asyncio.create_task(self._read(session))
        writing = asyncio.create_task(self._write(session))
        reason = "cancelled"
        try:
            done, _ = await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
            reason = next((str(error) or type(error).__name__ for task in done if (error := task.exception())), "closed")
            for task in done:
                task.result()
        finally:
            for task in (reading, writing):
                task.cancel()
            silent = reading.done() and not reading.cancelled() and isinstance(reading.exception(), TimeoutError)
            self._ended(session, reason, returns_within_s=0.0 if silent else RETURNS_WITHIN_S)
            await asyncio.gather(reading, writing, return_exceptions=True)

    def _ended(self, session: _Session, reason: str, returns_within_s: float) -> None:
        node_id = session.peer.node_id
        if self._sessions.get(node_id) is session:
            del self._sessions[node_id]
            # Until then it counts as a connected node that has not acknowledged anything.
            loss = Presence(self._now())
            self._losses[node_id] = asyncio.get_running_loop().call_later(returns_within_s, self._lost, node_id, loss)
            self._poke()
        log.info("agent gone node=%s reason=%s", node_id, session.closing[1] if session.closing else reason)

    def _lost(self, node_id: str, loss: Presence) -> None:
        del self._losses[node_id]
        self._writer.presence(node_id, loss)

    async def _read(self, session: _Session) -> None:
        silence_s = self._heartbeat_s() * MISSED_HEARTBEATS
        describes = RateLimit(per_s=0.5, burst=10)
        # A session ends with the certificate that opened it; the agent comes back with the renewed one.
        loop = asyncio.get_running_loop()
        expires_s = loop.time() + max(0.0, session.peer.expires_unix_s - self._now().timestamp())
        async with asyncio.timeout_at(expires_s):
            while True:
                frame = await session.wire.receive(silence_s)
                if frame is None:
                    return
                message = decoded(frame)
                if self._sessions.get(session.peer.node_id) is not session:
                    continue
                match message:
                    case Applied():
                        if session.acks.acknowledge(message.revision, message.open_connections, message.behind):
                            self._poke()
                    case Statuses():
                        self._writer.report(session.peer.node_id, message.reports, _stored(session, message.sequence))
                    case Describe():
                        if describes.allows("", loop.time()):
                            self._writer.presence(
                                session.peer.node_id, Presence(self._now(), message.description, session.peer.address)
                            )  # fmt: skip
                    case Heartbeat():
                        session.beat = message.sequence
                        session.dirty.set()
                    case Leave():
                        log.info("node left node=%s", session.peer.node_id)
                        del self._sessions[session.peer.node_id]
                        self._writer.presence(session.peer.node_id, Presence(self._now(), left=True))
                        self._poke()
                        return
                    case Hello():
                        raise RemoteProtocolError("a second hello in one session")

    async def _write(self, session: _Session) -> None:
        """Everything that goes to the agent goes through here, one message after the other."""
        begun = False
        while True:
            if session.closing is not None:
                code, reason = session.closing
                if code != CLOSE_NOT_LEADING:
                    await session.wire.close(code, reason)
                return
            if session.stored > session.stored_sent:
                session.stored_sent = session.stored
                await _send(session.wire, StatusesStored(sequence=session.stored))
            if self._parts is not None:
                if begun:
                    await self._send_difference(session, self._parts)
                else:
                    await self._send_complete(session, self._parts)
                begun = True
            await self._answer_beat(session)
            await session.dirty.wait()
            session.dirty.clear()

    async def _answer_beat(self, session: _Session) -> None:
        """Only while the store, too, has the node for connected: else its loss is noted already, and time runs from that."""
        node = self._store.snapshot().node(session.peer.node_id)
        connected = node is not None and node.status.state == "ready" and node.mesh_disconnected_since is None
        if session.beat > session.beat_answered and connected and self._fence() is not None:
            session.beat_answered = session.beat
            await _send(session.wire, Heard(sequence=session.beat, confirmed_s=self._confirmed_s()))

    async def _send_complete(self, session: _Session, parts: AssignmentParts) -> None:
        """The first rows: everything, or what the agent's token says it lacks."""
        revision, due = parts.snapshot.revision, parts.of(session.peer.node_id)
        session.shown, session.role = due, role_of(parts.snapshot.node(session.peer.node_id))
        session.managers, session.trust = self._common_to_all(parts.snapshot)
        token, session.token = session.token, b""
        stale: tuple[int, ...] | None = None
        rows: Mapping[str, bytes] = {}
        if buckets_of(token):
            stale, rows = stale_buckets(token, self._summaries.of(due))
        else:
            rows, _ = self._differences.between({}, due)
        complete = Complete(
            revision=revision,
            rows=_raws(rows),
            managers=session.managers,
            heartbeat_s=self._heartbeat_s(),
            role=session.role,
            trust=session.trust,
            stale=stale,
            version=PROTOCOL,
        )
        session.acks.sent(revision)
        await _send(session.wire, complete)

    async def _send_difference(self, session: _Session, parts: AssignmentParts) -> None:
        revision, due = parts.snapshot.revision, parts.of(session.peer.node_id)
        managers, trust = self._common_to_all(parts.snapshot)
        put, removed = self._differences.between(session.shown, due)
        role = role_of(parts.snapshot.node(session.peer.node_id))
        new_managers = managers if managers != session.managers else None
        new_role = role if role != session.role else None
        new_trust = trust if trust != session.trust else None
        session.shown, session.managers, session.role, session.trust = due, managers, role, trust
        if put or removed:
            session.acks.sent(revision)
        else:
            # Only knowledge about managers: nothing to apply, so nothing to acknowledge.
            session.acks.processed(revision)
            if (new_managers, new_role, new_trust) == (None, None, None):
                return
        delta = Delta(revision=revision, put=_raws(put), removed=removed, managers=new_managers, role=new_role, trust=new_trust)
        await _send(session.wire, delta)

    # ---- acknowledgements -----------------------------------------------------------------------------------------------------

    def _applied(self, node_id: str) -> int | None:
        session = self._sessions.get(node_id)
        return session.acks.applied if session else None

    def _behind(self, node_id: str) -> frozenset[str]:
        session = self._sessions.get(node_id)
        return session.acks.behind if session else frozenset()

    def _open(self, task_id: str) -> int | None:
        """None while a connected node of one of the task's networks has not shown the task's newest version yet."""
        snapshot = self._store.snapshot()
        task = snapshot.task(task_id)
        if task is None:
            return 0
        networks = {attachment.network.id for attachment in task.networks_attachments or ()}
        total = 0
        for node_id, session in self._sessions.items():
            node = snapshot.node(node_id)
            if node is None or not any(attachment.network_id in networks for attachment in node.mesh_attachments or ()):
                continue
            if session.acks.applied < task.version.index or session.acks.behind & networks:
                return None
            total += session.acks.open(task_id)
        return total

    def _heartbeat_s(self) -> float:
        if self._given_heartbeat_s is not None:
            return self._given_heartbeat_s
        cluster = self._store.snapshot().cluster
        period_ns = cluster.spec.dispatcher.heartbeat_period if cluster else 0
        return period_ns / 1e9 if period_ns > 0 else HEARTBEAT_S


def _same(old: Parts, new: Mapping[str, object]) -> bool:
    return len(old) == len(new) and all(old.get(name) is part for name, part in new.items())


def _raws(rows: Mapping[str, bytes]) -> tuple[msgspec.Raw, ...]:
    return tuple(map(msgspec.Raw, rows.values()))


def _stored(session: _Session, sequence: int) -> Callable[[], None]:
    return lambda: session.statuses_stored(sequence)


def decoded(frame: bytes) -> FromAgent:
    """RemoteProtocolError: it can't be read, or says too much."""
    try:
        message = _decoder.decode(frame)
    except msgspec.DecodeError as error:
        raise RemoteProtocolError(f"a message can't be read: {error}") from None
    if isinstance(message, Hello | Describe) and len(frame) > MAX_DESCRIPTION_BYTES:
        raise RemoteProtocolError(f"a node description of {len(frame)} bytes")
    return message


def encoded(message: FromManager) -> bytes:
    return _encoder.encode(message)


async def _send(wire: Connection, message: FromManager) -> None:
    with contextlib.suppress(ConnectionError):
        # the reading side ends the session
        await wire.send(encoded(message))
