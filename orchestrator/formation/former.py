"""Brings this node into its cluster: asks the peers every second, and does what `decision` says, until it is in one.

Edge: one task; the daemon's init and join, the questions to the peers, the record on disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from orchestrator.errors import ConfigError, MeshdError
from orchestrator.formation.decision import (
    RECORD_FILE,
    Answer,
    Found,
    Join,
    Membership,
    Question,
    Record,
    Standing,
    Wait,
    answer,
    decide,
    managers_to_ask,
)
from orchestrator.formation.door import Door, ask
from orchestrator.formation.order import Order, own_peer
from orchestrator.ids import new_id
from orchestrator.local_state import read_private, save_private

log = logging.getLogger(__name__)

_EVERY_S = 1.0
# a member only has to keep its record
_MEMBER_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Daemon:
    """What is asked of the daemon. member: None while in no cluster. addresses: those this node may be known by. listen: where the TLS
    server will be. found(own "ip:port"), join(own "ip:port" or "", managers, token): MeshdError when it comes to nothing."""

    member: Callable[[], Membership | None]
    busy: Callable[[], bool]
    addresses: Callable[[], Awaitable[list[str]]]
    listen: Callable[[str], tuple[str, int]]
    found: Callable[[str], Awaitable[None]]
    join: Callable[[str, tuple[str, ...], str], Awaitable[None]]


class Former:
    """`start()`, then `stop()`. `why`: what it waits for, "" when there is nothing to wait for. `door` answers while it runs."""

    def __init__(self, order: Order, directory: Path, daemon: Daemon, *, every_s: float = _EVERY_S) -> None:
        self._order, self._directory, self._daemon, self._every_s = order, directory, daemon, every_s
        self._own = ""
        self._task: asyncio.Task[None] | None = None
        self.why = ""
        self.door = Door(order.secret, self._asked) if order.secret else None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="formation")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self.close_door()

    async def close_door(self) -> None:
        """The port is free when it returns, for the TLS server of a node that is in a cluster."""
        if self.door is not None:
            await self.door.close()

    async def _run(self) -> None:
        while True:
            try:
                why = await self._round()
            except MeshdError as error:
                why = str(error)
            except Exception:
                log.exception("formation failed, tried again")
                why = "an internal error: the log has more"
            if why and why != self.why:
                log.info("formation waits reason=%s", why)
            self.why = why
            await asyncio.sleep(self._every_s if why else _MEMBER_EVERY_S)

    async def _round(self) -> str:
        """What is waited for. MeshdError: what was tried came to nothing."""
        if self._is_member():
            return ""
        if _load(self._directory).cluster:
            return f"this node was in a cluster and left it; to let it into one by itself again, remove {self._directory / RECORD_FILE}"
        if self._daemon.busy():
            return "it is being initialized or joined by hand"
        self._own = own_peer(self._order, await self._daemon.addresses())
        if self._order.token_file is not None:
            await self._daemon.join(self._own, self._others(), _token(self._order.token_file))
            self._is_member()
            return ""
        assert self.door is not None
        await self.door.open(*self._daemon.listen(self._own))
        answers = await self._answers(self._others())
        answers |= await self._answers(managers_to_ask(answers))
        match decide(self._standing(), answers):
            case Found():
                log.info("formation founds the cluster machines=%s", ",".join(self._order.peers))
                await self._daemon.found(self._own)
            case Join(managers, token):
                log.info("formation joins managers=%s", ",".join(managers))
                await self._daemon.join(self._own, managers, token)
            case Wait(why):
                return why
        self._is_member()
        return ""

    def _is_member(self) -> bool:
        """And if so, that is on record: who leaves his cluster later is not to come into one again by himself."""
        member, record = self._daemon.member(), _load(self._directory)
        if member is not None and record.cluster != member.cluster:
            save_private(self._directory / RECORD_FILE, replace(record, cluster=member.cluster))
        return member is not None

    def _others(self) -> tuple[str, ...]:
        return tuple(peer for peer in self._order.peers if peer != self._own)

    async def _answers(self, endpoints: tuple[str, ...]) -> dict[str, Answer | str]:
        question = self._standing().question
        said = await asyncio.gather(*(ask(endpoint, question, self._order.secret) for endpoint in endpoints))
        return dict(zip(endpoints, said, strict=True))

    def _standing(self) -> Standing:
        return Standing(
            record=_load(self._directory), order=self._order, own=self._own, member=self._daemon.member(), busy=self._daemon.busy()
        )

    def _asked(self, question: Question) -> Answer:
        """Without a pause from the look to the record on disk: what is promised was still free to promise."""
        me = self._standing()
        record, said = answer(me, question)
        if record != me.record:
            save_private(self._directory / RECORD_FILE, record)
            log.info("formation promised founder=%s machine=%s", record.founder, record.follows)
        return said


def load_record(directory: Path) -> Record | None:
    """None: it never had an order to come into a cluster by itself. ConfigError: it can't be read."""
    return read_private(directory / RECORD_FILE, Record, "it says whom this machine has promised to follow, so it is not passed over")


def _load(directory: Path) -> Record:
    record = load_record(directory)
    if record is None:
        record = Record(machine=new_id())
        save_private(directory / RECORD_FILE, record)
    return record


def _token(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--join-token-file {path} can't be read: {error}") from None
