"""Transactions that wait while another is under way go to etcd together: one request, one Raft entry, one fsync for all of them.

Edge: awaits the sender it is given. Source: etcd API v3, RequestOp.request_txn: a transaction inside another has its own conditions and
its own outcome. etcd judges all conditions by the state before the whole, so only transactions that don't touch what another one writes
travel together: then the outcome is that of one after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from aetcd import rpc

from orchestrator.errors import StoreError, StoreUnavailable

# operations of all transactions of a group, and their bytes: under what etcd is started with
_MAX_OPERATIONS = 2_000
_MAX_BYTES = 4 * 1024 * 1024

Send = Callable[[Any], Awaitable[tuple[Any, bool]]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """sure False: an earlier try of the same transaction may have been stored. revision: of the store after it."""

    succeeded: bool
    revision: int
    sure: bool


@dataclass(slots=True)
class _Waiting:
    request: Any
    touched: frozenset[Hashable]
    written: frozenset[Hashable]
    outcome: asyncio.Future[Outcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class GroupCommit:
    """`send(request)`: etcd's answer, and whether no earlier try of the request may have been stored."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: list[_Waiting] = []
        self._sender: asyncio.Task[None] | None = None

    async def commit(self, request: Any, touched: frozenset[Hashable], written: frozenset[Hashable]) -> Outcome:
        """touched: every key that the transaction writes or has a condition on. Raises what `send` raises."""
        waiting = _Waiting(request, touched, written)
        self._waiting.append(waiting)
        if self._sender is None:
            self._sender = asyncio.create_task(self._run(), name="store-commit")
        return await waiting.outcome

    async def close(self) -> None:
        """What is under way is given up: its outcome is unknown."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while group := self._next_group():
                await self._commit(group)
        finally:
            self._sender = None
            _fail(self._waiting, StoreUnavailable("the store was closed"))
            self._waiting.clear()

    def _next_group(self) -> list[_Waiting]:
        """The first that waits, and all others that may travel with it; the rest keeps its order."""
        group: list[_Waiting] = []
        rest: list[_Waiting] = []
        touched: set[Hashable] = set()
        written: set[Hashable] = set()
        operations = size_bytes = 0
        for waiting in self._waiting:
            # its caller has gone away before it was sent
            if waiting.outcome.done():
                continue
            operations += len(waiting.touched)
            size_bytes += waiting.request.ByteSize()
            fits = operations <= _MAX_OPERATIONS and size_bytes <= _MAX_BYTES
            if group and (not fits or not written.isdisjoint(waiting.touched) or not touched.isdisjoint(waiting.written)):
                rest.append(waiting)
                # what comes later must not overtake it where they meet
                touched |= waiting.touched
                written |= waiting.written
                continue
            group.append(waiting)
            touched |= waiting.touched
            written |= waiting.written
        self._waiting = rest
        return group

    async def _commit(self, group: list[_Waiting]) -> None:
        try:
            if len(group) == 1:
                answer, sure = await self._send(group[0].request)
                outcomes = [Outcome(answer.succeeded, int(answer.header.revision), sure)]
            else:
                together = rpc.TxnRequest(success=[rpc.RequestOp(request_txn=waiting.request) for waiting in group])
                answer, sure = await self._send(together)
                revision = int(answer.header.revision)
                outcomes = [Outcome(response.response_txn.succeeded, revision, sure) for response in answer.responses]
        except asyncio.CancelledError:
            _fail(group, StoreUnavailable("the store was closed"))
            raise
        except StoreError as error:
            _fail(group, error)
            return
        for waiting, outcome in zip(group, outcomes, strict=True):
            if not waiting.outcome.done():
                waiting.outcome.set_result(outcome)


def _fail(group: list[_Waiting], error: StoreError) -> None:
    for waiting in group:
        if not waiting.outcome.done():
            waiting.outcome.set_exception(error)
