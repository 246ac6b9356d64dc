"""Serving one scope: its UDP socket, and its TCP connections by way of `tcp`.

Edge. Queries over UDP are answered on the spot; only what must be forwarded becomes a task. One at a time while there are few, which
is best for who asks; with batched system calls as soon as several wait, which is best for the machine. `view` may be exchanged at any
time: each query is answered from exactly one.
Source: RFC 1035 4.2.1.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from itertools import repeat
from operator import itemgetter
from time import perf_counter
from typing import Any

from dnsd import wire
from dnsd.counters import QueryCounters, label_of
from dnsd.datagrams import SLOT_BYTES, Batch, Row, row_of, write_row
from dnsd.forward import Forwarder
from dnsd.loop import poller_of
from dnsd.resolve import UNKNOWN, UNKNOWN_LABEL, UNKNOWN_ROW, Forward, View
from dnsd.resolvers import Endpoint
from dnsd.sockets import Opened
from dnsd.tcp import TcpListener

_log = logging.getLogger("dnsd")

# So many queries found waiting are no load yet.
_FEW = 3
_UNKNOWNS = repeat(UNKNOWN)
_LABEL_OF = itemgetter(1)
# Questions of one scope that wait for other servers: far fewer than all scopes may have (`Forwarder`), so that none starves the rest.
_MAX_WAITING = 256

# The query as it came, who asked (an address as sockets have it; () = over TCP), and the response; None: it was not answered.
QueryLog = Callable[[bytes, tuple[Any, ...], bytes | None], None]


class Listener:
    """counters, traffic and batch (of the socket's family) are the server's. log: told of every query and its response, while it is set.

    `close` may be called at any time, also from a callback; answers still under way are dropped.
    """

    def __init__(
        self, opened: Opened, view: View, forwarder: Forwarder, counters: Counter[str], traffic: QueryCounters, batch: Batch
    ) -> None:
        self.view = view
        self.queries = 0
        self.netns_id = opened.netns_id
        host, port = opened.udp.getsockname()[:2]
        self.address: Endpoint = (host, port)
        self._udp = opened.udp
        self._forwarder = forwarder
        self._counters = counters
        self._traffic = traffic
        self.log: QueryLog | None = None
        self._batch = batch
        self._loaded = False
        self._due = False
        self._closed = False
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._poller = poller_of(loop)
        self._fd = self._udp.fileno()
        self._poller.add(self._fd, self._readable)
        self._tcp = TcpListener(opened.tcp, self._respond_tcp, self._resolve_tcp, counters)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._poller.remove(self._fd)
        self._udp.close()
        self._tcp.close()
        for task in self._tasks:
            task.cancel()

    # -- UDP ------------------------------------------------------------------------------------------------------------------

    def _readable(self) -> bool:
        """Whether the event loop has something to do now."""
        since = perf_counter()
        self._due = False
        try:
            labels = self._answer_batch() if self._loaded and self.log is None else self._answer_few()
        except Exception:
            self._bug(b"")
            return self._due
        if labels:
            self._traffic.count(labels)
            self._traffic.own_s.observe((perf_counter() - since) / len(labels), len(labels))
        return self._due

    def _answer_few(self) -> Sequence[int]:
        """Answers what is there, up to a few; their labels."""
        receive, send = self._udp.recvfrom, self._udp.sendto
        find = self.view.row
        labels = []
        for _ in range(_FEW + 1):
            try:
                packet, peer = receive(SLOT_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                # The error of an earlier answer (its asker closed its socket): it is cleared by having been read.
                continue
            self.queries += 1
            row: Row | Forward | None = find(packet)
            if row is UNKNOWN_ROW:
                row = self._unusual(packet)
            response = None
            if isinstance(row, Forward):
                self._spawn(self._forward_udp(row, packet, peer))
                continue
            if row is not None:
                labels.append(row[1])
                response = write_row(row, packet)
                try:
                    send(response, peer)
                except OSError:
                    self._counters["unsent"] += 1
            if self.log is not None:
                self.log(packet, peer, response)
        else:
            self._loaded = True
        return labels

    def _answer_batch(self) -> Sequence[int]:
        """Answers what is there, up to a batch; their labels."""
        batch = self._batch
        count = batch.receive(self._fd)
        self._loaded = count > _FEW
        if not count:
            return []
        self.queries += count
        find = self.view.rows.get
        sizes, heads = batch.heads(count)
        keys = [head[2:size] for head, size in zip(heads, sizes, strict=True)]
        rows = list(map(next, map(find, keys, _UNKNOWNS)))
        labels = list(map(_LABEL_OF, rows))
        unanswered = []
        if UNKNOWN_LABEL in labels:
            for slot in [slot for slot, row in enumerate(rows) if row is UNKNOWN_ROW]:
                # Perhaps only its letters are of another case.
                row: Row | Forward | None = next(find(keys[slot].lower(), UNKNOWN))
                if row is UNKNOWN_ROW:
                    row = self._unusual(batch.packet(slot))
                if isinstance(row, tuple):
                    rows[slot] = row
                else:
                    unanswered.append(slot)
                    if row is not None:
                        self._spawn(self._forward_udp(row, batch.packet(slot), batch.peer(slot)))
            labels = [label for label in map(_LABEL_OF, rows) if label != UNKNOWN_LABEL]
        unsent = batch.send(self._fd, rows, unanswered)
        if unsent:
            self._counters["unsent"] += unsent
        return labels

    def _unusual(self, packet: bytes) -> Row | Forward | None:
        """What is not among the prebuilt rows; None: no answer."""
        response = self._respond(packet, tcp=False)
        return row_of(response, 0, label_of(response)) if isinstance(response, bytes) else response

    def _respond(self, packet: bytes, *, tcp: bool) -> bytes | Forward | None:
        try:
            response = self.view.respond(packet, tcp)
            if isinstance(response, Forward):
                return self._forwarder.kept(response, wire.MAX_TCP_BYTES if tcp else response.query.size_bytes) or response
        except Exception:
            # It costs this one asker an answer and nobody else anything.
            self._bug(packet)
            return wire.error_response(packet, wire.SERVFAIL) if len(packet) >= wire.HEADER_BYTES else None
        return response

    def _bug(self, packet: bytes) -> None:
        """To be called where one of ours was caught."""
        self._counters["bugs"] += 1
        if self._counters["bugs"] <= 10:
            _log.exception("event=bug packet=%s", packet.hex())

    async def _forward_udp(self, forward: Forward, packet: bytes, peer: tuple[Any, ...]) -> None:
        response = await self._resolve(forward, forward.query.size_bytes)
        if self._closed:
            return
        try:
            self._udp.sendto(response, peer)
        except OSError:
            self._counters["unsent"] += 1
        if self.log is not None:
            self.log(packet, peer, response)

    # -- TCP ------------------------------------------------------------------------------------------------------------------

    def _respond_tcp(self, packet: bytes) -> bytes | Forward | None:
        self.queries += 1
        since = perf_counter()
        response = self._respond(packet, tcp=True)
        if isinstance(response, bytes):
            self._traffic.count((label_of(response),))
            self._traffic.own_s.observe(perf_counter() - since)
        if self.log is not None and not isinstance(response, Forward):
            self.log(packet, (), response)
        return response

    async def _resolve_tcp(self, forward: Forward) -> bytes:
        response = await self._resolve(forward, wire.MAX_TCP_BYTES)
        if self.log is not None:
            self.log(b"", (), response)
        return response

    # -- both -----------------------------------------------------------------------------------------------------------------

    async def _resolve(self, forward: Forward, size_bytes: int) -> bytes:
        if self._waiting >= _MAX_WAITING:
            self._counters["refused_full"] += 1
            return wire.failure(forward.query, wire.SERVFAIL)
        self._waiting += 1
        since = perf_counter()
        try:
            response = await self._forwarder.resolve(forward, size_bytes)
        finally:
            self._waiting -= 1
        self._traffic.count((label_of(response),))
        self._traffic.forwarded_s.observe(perf_counter() - since)
        return response

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._due = True
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
