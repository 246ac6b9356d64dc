"""The agent's end of its session with the managers: connects, reconnects, hands rows over, keeps reports until they are stored.

Edge: one connection at a time. What is to be sent is state (the newest description, acknowledgement and status of each
task), so a lost connection loses nothing and a slow one piles nothing up.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import msgspec

from orchestrator.dispatcher.connection import Connect, Connection
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
    Redirect,
    Refused,
    Restart,
    Row,
    Statuses,
    StatusesStored,
    TaskReport,
    skew,
)
from orchestrator.dispatcher.resume import Held, buckets_of
from orchestrator.errors import RemoteProtocolError
from orchestrator.model import NodeDescription
from orchestrator.security.admission import Trust

log = logging.getLogger(__name__)

OnRows = Callable[[int, list[Row], list[str], bool], Awaitable[None]]

# however seldom a cluster wants heartbeats: what is fenced (`agent.lease`) lives on the answers
HEARD_EVERY_S = 5.0
BACKOFF_FIRST_S = 0.1
BACKOFF_LAST_S = 8.0
COMPLETE_TIMEOUT_S = 15.0
# A leader that moved, moved again and again: then the managers have not agreed yet and it is better to wait.
MAX_REDIRECTS = 4
# A session that ended sooner was no success.
LASTED_S = 1.0
REPORTS_PER_MESSAGE = 500

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[FromManager] = msgspec.msgpack.Decoder(FromManager)
_row_decoder: msgspec.msgpack.Decoder[Row] = msgspec.msgpack.Decoder(Row)


class AgentSession:
    """`run()` until cancelled. on_rows(revision, put, removed, complete) is awaited, one call at a time, in order.

    After each on_rows the owner owes an `applied(revision, ...)` once the node shows it. managers: "ip:port". on_role("manager" or
    "worker") is called with every session's start and when the role changes, on_trust likewise. on_heard(ago_s): so long ago a leader
    surely had this node for connected: no leader, this one or a later, has noted its loss before that.
    """

    def __init__(
        self,
        connect: Connect,
        managers: Sequence[str],
        description: NodeDescription,
        on_rows: OnRows,
        *,
        on_heard: Callable[[float], None] = lambda ago_s: None,
        on_managers: Callable[[tuple[str, ...]], None] = lambda managers: None,
        on_role: Callable[[str], None] = lambda role: None,
        on_trust: Callable[[Trust], None] = lambda trust: None,
        random_: random.Random | None = None,
    ) -> None:
        self._connect = connect
        self._managers = tuple(managers)
        self._description = description
        self._on_rows = on_rows
        self._on_heard = on_heard
        self._on_managers = on_managers
        self._on_role = on_role
        self._on_trust = on_trust
        self._random = random_ or random.Random()
        self._unstored: dict[str, tuple[int, TaskReport]] = {}
        self._held = Held()
        self._beats: dict[int, float] = {}
        self._beat = 0
        self._sequence = 0
        self._sent_sequence = 0
        self._applied: Applied | None = None
        self._applied_sent: Applied | None = None
        self._described: NodeDescription | None = None
        self._dirty = asyncio.Event()
        self._leaving = False
        self._left = asyncio.Event()
        self._backoff_s = BACKOFF_FIRST_S
        self._preferred = ""
        self._connected_to = self._served_by = ""

    @property
    def managers(self) -> tuple[str, ...]:
        """As last heard; the daemon keeps them for the next start."""
        return self._managers

    @property
    def connected_to(self) -> str:
        """The manager through which this node has a complete assignment, "" while there is none."""
        return self._connected_to

    def report(self, statuses: Iterable[TaskReport]) -> None:
        """Kept and repeated until the leader has stored them; a newer status of a task takes the place of an older."""
        for report in statuses:
            self._sequence += 1
            self._unstored[report.task_id] = (self._sequence, report)
        self._dirty.set()

    def applied(self, revision: int, open_connections: Mapping[str, int], behind: frozenset[str] = frozenset()) -> None:
        """This node's balancers and DNS show `revision`, but for the networks `behind`. Sent every time, also with the same numbers."""
        self._applied = Applied(revision=revision, open_connections=dict(open_connections), behind=tuple(sorted(behind)))
        self._dirty.set()

    def describe(self, description: NodeDescription) -> None:
        self._description = description
        self._dirty.set()

    async def leave(self, timeout_s: float = 2.0) -> None:
        """Tell the leader that this node leaves for good. Without a connection nobody is told: the node is found missing later."""
        if not self._connected_to:
            return
        self._leaving = True
        self._dirty.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self._left.wait()
        except TimeoutError:
            log.warning("leave not told manager=%s", self._connected_to)

    @property
    def unstored(self) -> int:
        """How many statuses the leader has not confirmed yet."""
        return len(self._unstored)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        last = ""
        while True:
            for manager in self._round(last):
                began_s = loop.time()
                last = await self._one(manager)
                if last and loop.time() - began_s >= LASTED_S:
                    # Served for a while, then lost: the others are tried at once.
                    break
            else:
                # Full jitter on the upper half: agents that lost the same manager don't come back in step.
                await asyncio.sleep(self._backoff_s * self._random.uniform(0.5, 1.0))
                self._backoff_s = min(self._backoff_s * 2, BACKOFF_LAST_S)

    def _round(self, last: str) -> list[str]:
        """All managers, in an order of this node's own; the last one is the one that was just lost."""
        others = [manager for manager in self._managers if manager != last]
        self._random.shuffle(others)
        return others + [last] * (last in self._managers)

    async def _one(self, manager: str) -> str:
        """A manager and whom it sends on to. The one that served this node, "" = none did."""
        for _ in range(1 + MAX_REDIRECTS):
            self._preferred = self._served_by = ""
            await self._dial(manager)
            if not self._preferred:
                break
            manager = self._preferred
        return self._served_by

    async def _dial(self, manager: str) -> None:
        """One connection, from dialling to its end. Never raises but for cancellation and bugs of the owner's callback."""
        try:
            async with self._connect(manager) as connection:
                try:
                    reason = await self._converse(connection, manager)
                finally:
                    self._connected_to = ""
        except (RemoteProtocolError, OSError) as error:
            reason = str(error) or type(error).__name__
        if not self._preferred:
            log.info("session ended manager=%s reason=%s", manager, reason)

    async def _converse(self, connection: Connection, manager: str) -> str:
        """Why it ended. A manager stays when another leads: then it is begun again."""
        while True:
            if reason := await self._converse_once(connection, manager):
                return reason
            self._connected_to = ""
            log.info("session begins again manager=%s", manager)

    async def _converse_once(self, connection: Connection, manager: str) -> str:
        """Why it ended, "" = it is to be begun again."""
        self._described, self._applied_sent, self._sent_sequence = self._description, None, 0
        token = self._held.token()
        await connection.send(_encoder.encode(Hello(description=self._description, version=PROTOCOL, have=token)))
        first = await _receive(connection, COMPLETE_TIMEOUT_S)
        if isinstance(first, Redirect):
            if first.addr and first.addr != manager:
                self._preferred = first.addr
            return f"it doesn't lead, {first.addr or 'nobody'} does"
        if isinstance(first, Refused) or (isinstance(first, Complete) and (reason := skew(agent=PROTOCOL, manager=first.version))):
            self._backoff_s = BACKOFF_LAST_S
            return f"refused: {first.reason if isinstance(first, Refused) else reason}"
        if isinstance(first, Restart):
            return ""
        if first is None:
            return f"closed by the manager: {_close_reason(connection)}"
        if not isinstance(first, Complete):
            raise RemoteProtocolError("the manager's first message is neither a complete assignment nor a redirect")
        log.info(
            "session opened manager=%s revision=%d rows=%d resumed=%s", manager, first.revision, len(first.rows), first.stale is not None
        )
        self._backoff_s = BACKOFF_FIRST_S
        self._connected_to = self._served_by = manager
        # An acknowledgement of before tells this leader nothing about its own assignment.
        self._applied = None
        self._remember(first.managers)
        self._on_role(first.role)
        self._heard_trust(first.trust)
        sending = asyncio.create_task(self._send(connection, first.heartbeat_s))
        try:
            await self._begin(first, token)
            while (message := await _receive(connection, None)) is not None:
                if isinstance(message, Restart):
                    return ""
                await self._heard(message)
        finally:
            sending.cancel()
            [failure] = await asyncio.gather(sending, return_exceptions=True)
            if isinstance(failure, Exception):
                log.error("the session's sender failed", exc_info=failure)
        return f"closed by the manager: {_close_reason(connection)}"

    async def _heard(self, message: FromManager) -> None:
        match message:
            case Delta():
                if message.managers is not None:
                    self._remember(message.managers)
                if message.role is not None:
                    self._on_role(message.role)
                self._heard_trust(message.trust)
                if message.put or message.removed:
                    await self._hand_over(message.revision, message.put, message.removed)
            case StatusesStored():
                self._unstored = {id: kept for id, kept in self._unstored.items() if kept[0] > message.sequence}
            case Heard():
                self._proved(message)
            case Complete() | Redirect() | Refused() | Restart():
                raise RemoteProtocolError("the manager began again in the middle of a session")

    async def _begin(self, first: Complete, token: bytes) -> None:
        """All there is, or the answer to the token, which was made of what this node still has."""
        if first.stale is None:
            rows = _rows(first.rows)
            self._held.replace((row.key, bytes(raw)) for row, raw in rows)
            await self._on_rows(first.revision, [row for row, _ in rows], [], True)
        else:
            await self._hand_over(first.revision, first.rows, self._held.of_buckets(first.stale, buckets_of(token)))

    async def _hand_over(self, revision: int, put: Iterable[msgspec.Raw], removed: Iterable[str]) -> None:
        rows = _rows(put)
        gone = sorted(set(removed) - {row.key for row, _ in rows})
        self._held.update(((row.key, bytes(raw)) for row, raw in rows), gone)
        await self._on_rows(revision, [row for row, _ in rows], gone, False)

    def _proved(self, message: Heard) -> None:
        sent_s = self._beats.get(message.sequence)
        if sent_s is None:
            return
        self._beats = {sequence: at for sequence, at in self._beats.items() if sequence > message.sequence}
        self._on_heard(max(asyncio.get_running_loop().time() - sent_s, message.confirmed_s))

    async def _send(self, connection: Connection, heartbeat_s: float) -> None:
        """Everything after the hello goes through here. Ends when the connection does; the reader notices too."""
        loop = asyncio.get_running_loop()
        beat_at_s = loop.time()
        over = True
        try:
            while True:
                self._dirty.clear()
                if loop.time() >= beat_at_s:
                    self._beat += 1
                    # bounded: those of a leader that never answers
                    self._beats = {**dict(list(self._beats.items())[-8:]), self._beat: loop.time()}
                    await connection.send(_encoder.encode(Heartbeat(sequence=self._beat)))
                    beat_at_s = loop.time() + min(heartbeat_s, HEARD_EVERY_S)
                for message in self._due():
                    await connection.send(_encoder.encode(message))
                if self._leaving:
                    await connection.send(_encoder.encode(Leave()))
                    self._left.set()
                    return
                try:
                    async with asyncio.timeout_at(beat_at_s):
                        await self._dirty.wait()
                except TimeoutError:
                    pass
        except ConnectionError:
            pass
        except asyncio.CancelledError:
            # by the reader, which may go on with another leader
            over = False
            raise
        finally:
            # Without a sender there is no session: the reader must notice, also when it is a bug that ended it.
            if over:
                await connection.close()

    def _due(self) -> list[FromAgent]:
        messages: list[FromAgent] = []
        if self._described is not self._description:
            self._described = self._description
            messages.append(Describe(description=self._description))
        waiting = sorted((kept for kept in self._unstored.values() if kept[0] > self._sent_sequence), key=lambda kept: kept[0])
        for start in range(0, len(waiting), REPORTS_PER_MESSAGE):
            chunk = waiting[start : start + REPORTS_PER_MESSAGE]
            # Every report has its own number, so confirming a message's last confirms it and all before.
            self._sent_sequence = chunk[-1][0]
            messages.append(Statuses(sequence=self._sent_sequence, reports=tuple(report for _, report in chunk)))
        if self._applied is not self._applied_sent and self._applied is not None:
            self._applied_sent = self._applied
            messages.append(self._applied)
        return messages

    def _heard_trust(self, trust: Trust | None) -> None:
        if trust is not None:
            self._on_trust(trust)

    def _remember(self, managers: tuple[str, ...]) -> None:
        if managers and managers != self._managers:
            self._managers = managers
            self._on_managers(managers)


async def _receive(connection: Connection, timeout_s: float | None) -> FromManager | None:
    """None = closed. RemoteProtocolError: not our protocol; TimeoutError."""
    message = await connection.receive(timeout_s)
    try:
        return None if message is None else _decoder.decode(message)
    except msgspec.DecodeError as error:
        raise RemoteProtocolError(f"the manager's message can't be read: {error}") from None


def _rows(raws: Iterable[msgspec.Raw]) -> list[tuple[Row, msgspec.Raw]]:
    rows = []
    for raw in raws:
        try:
            rows.append((_row_decoder.decode(raw), raw))
        except msgspec.DecodeError as error:
            # A newer manager may know kinds of rows this agent doesn't.
            log.warning("row skipped reason=%s", error)
    return rows


def _close_reason(connection: Connection) -> str:
    return f"code {connection.close_code}" if connection.close_code else "connection lost"
