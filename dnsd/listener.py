"""Serving one scope: its UDP socket, and its TCP connections by way of `tcp`.

Edge. UDP is read until it is empty and answered on the spot; only what must be forwarded becomes a task. `view` may be
exchanged at any time: each query is answered from exactly one.
Source: RFC 1035 4.2.1.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any

from dnsd import wire
from dnsd.counters import QueryCounters, label_of
from dnsd.forward import Forwarder
from dnsd.resolve import Forward, View
from dnsd.resolvers import Endpoint
from dnsd.sockets import Opened
from dnsd.tcp import TcpListener

_log = logging.getLogger("dnsd")

# Queries taken from one socket before the others get their turn.
_BATCH = 64
_RECEIVE_BYTES = 4096
# Questions of one scope that wait for other servers: far fewer than all scopes may have (`Forwarder`), so that none starves the rest.
_MAX_WAITING = 256

# The query as it came, who asked (an address as sockets have it; () = over TCP), and the response; None: it was not answered.
QueryLog = Callable[[bytes, tuple[Any, ...], bytes | None], None]


class Listener:
    """counters and traffic are the server's. log: told of every query and its response, while it is set.

    `close` may be called at any time, also from a callback; answers still under way are dropped.
    """

    def __init__(self, opened: Opened, view: View, forwarder: Forwarder, counters: Counter[str], traffic: QueryCounters) -> None:
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
        self._closed = False
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        self._loop = loop
        loop.add_reader(self._udp.fileno(), self._readable)
        self._tcp = TcpListener(opened.tcp, self._respond_tcp, self._resolve_tcp, counters)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._udp.fileno())
        self._udp.close()
        self._tcp.close()
        for task in self._tasks:
            task.cancel()

    # -- UDP ------------------------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        since = perf_counter()
        receive = self._udp.recvfrom
        labels = []
        for _ in range(_BATCH):
            try:
                packet, peer = receive(_RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                # The error of an earlier answer (its asker closed its socket): it is cleared by having been read.
                continue
            self.queries += 1
            response = self._respond(packet, tcp=False)
            if isinstance(response, Forward):
                self._spawn(self._forward_udp(response, packet, peer))
            else:
                if response is not None:
                    labels.append(label_of(response))
                self._answer(packet, peer, response)
        if labels:
            self._traffic.count(labels)
            self._traffic.own_s.observe((perf_counter() - since) / len(labels), len(labels))

    def _answer(self, packet: bytes, peer: tuple[Any, ...], response: bytes | None) -> None:
        if response is not None:
            try:
                self._udp.sendto(response, peer)
            except OSError:
                self._counters["unsent"] += 1
        if self.log is not None:
            self.log(packet, peer, response)

    def _respond(self, packet: bytes, *, tcp: bool) -> bytes | Forward | None:
        try:
            response = self.view.respond(packet, tcp)
            if isinstance(response, Forward):
                return self._forwarder.kept(response, wire.MAX_TCP_BYTES if tcp else response.query.size_bytes) or response
        except Exception:
            # Our own bug: it costs this one asker an answer and nobody else anything.
            self._counters["bugs"] += 1
            if self._counters["bugs"] <= 10:
                _log.exception("event=bug packet=%s", packet.hex())
            return wire.error_response(packet, wire.SERVFAIL) if len(packet) >= wire.HEADER_BYTES else None
        return response

    async def _forward_udp(self, forward: Forward, packet: bytes, peer: tuple[Any, ...]) -> None:
        response = await self._resolve(forward, forward.query.size_bytes)
        if not self._closed:
            self._answer(packet, peer, response)

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
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
