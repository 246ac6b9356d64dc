"""Asking other servers: hedged, cached, each question once at a time, bounded, never in circles.

Edge: UDP and TCP sockets of dnsd's own namespace. A question goes to the first upstream; another joins in after 200 ms, or at
once when the first refuses; the first good answer wins. Upstreams that stay silent are asked last for a while, and asked for a
name that nobody knows: should that question reach ourselves, the way through this upstream is a loop.
Source: RFC 5452 (fresh socket and id a query), RFC 6891 7 (servers without EDNS), RFC 7766 (TCP), RFC 8767 5 (its four timers).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable
from time import monotonic

from dnsd import wire
from dnsd.cache import Cache
from dnsd.health import HealthTable
from dnsd.names import name_of, text_of
from dnsd.policy import Upstreams
from dnsd.resolve import Forward
from dnsd.resolvers import Endpoint, NodeResolvers, endpoint_text
from dnsd.wire import Query, Reply

_log = logging.getLogger("dnsd")

HEDGE_S = 0.2
# Resolver libraries give up after 5 s: a failure must reach them before.
DEADLINE_S = 4.0
# A lost datagram is sent again after this long.
RESEND_S = 1.0
# RFC 8767, 5: who asks is not kept waiting longer than this when there is something stale to say.
STALE_AFTER_S = 1.8
STALE_TTL_S = 30
# Precedent: the `loop` plugin of CoreDNS, which asks HINFO of a random name when it starts.
_PROBE_DOMAIN = "dnsd-loop-probe"

FlightKey = tuple[Upstreams, bytes, bool, bool]


class Forwarder:
    """`own` says whether an address is one of our own listeners (never asked: that would be a loop)."""

    def __init__(
        self,
        resolvers: NodeResolvers | None = None,
        *,
        own: Callable[[Endpoint], bool] = lambda endpoint: False,
        max_flights: int = 512,
        max_waiting: int = 4096,
    ) -> None:
        self.resolvers = resolvers or NodeResolvers()
        self.counters: Counter[str] = Counter()
        self.health = HealthTable()
        self.own = own
        self.cache = Cache()
        self._max_flights = max_flights
        self._max_waiting = max_waiting
        self._waiting = 0
        self._flights: dict[FlightKey, asyncio.Task[Reply | None]] = {}
        # The name asked for -> the upstream that is suspected.
        self._probes: dict[bytes, Endpoint] = {}
        self._probing: set[asyncio.Task[None]] = set()

    def upstreams(self, given: Upstreams = None) -> tuple[Endpoint, ...]:
        """Whom to ask now, in that order."""
        endpoints = self.resolvers.endpoints() if given is None else given
        return self.health.usable([endpoint for endpoint in endpoints if not self.own(endpoint)], monotonic())

    def kept(self, forward: Forward, size_bytes: int) -> bytes | None:
        """The response from the cache, if it is fresh: at once, without a task."""
        now = monotonic()
        kept = self.cache.fresh(_key(forward), now)
        if kept is None:
            return None
        self.counters["cache_hits"] += 1
        return wire.write_reply(kept.reply, forward.query, kept.age_s(now), size_bytes)

    async def resolve(self, forward: Forward, size_bytes: int) -> bytes:
        """The response, whatever happens: another server's, a stale one, or SERVFAIL."""
        query = forward.query
        if self._probes and query.name in self._probes:
            self._came_back(query.name)
            return wire.failure(query, wire.REFUSED)
        if self.cache.resting(_key(forward), monotonic()):
            return self._stale(forward, size_bytes) or wire.failure(query, wire.SERVFAIL)
        if self._waiting >= self._max_waiting:
            self.counters["refused_full"] += 1
            return self._stale(forward, size_bytes) or wire.failure(query, wire.SERVFAIL)
        self._waiting += 1
        try:
            reply = await self._wait(forward)
        finally:
            self._waiting -= 1
        # A server's own trouble (anything but an answer or a denial) is no better than none: stale goes before it.
        if not _is_good(reply):
            stale = self._stale(forward, size_bytes)
            if stale is not None:
                return stale
        if reply is None:
            self.counters["servfail"] += 1
            return wire.failure(query, wire.SERVFAIL)
        return wire.write_reply(reply, query, 0, size_bytes)

    async def close(self) -> None:
        tasks = [*self._flights.values(), *self._probing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- one flight a question ------------------------------------------------------------------------------------------------

    async def _wait(self, forward: Forward) -> Reply | None:
        """The flight's outcome; None: it failed, can't be started, or something stale is there and it takes too long."""
        key = _key(forward)
        flight = self._flights.get(key)
        if flight is None:
            upstreams = self.upstreams(forward.upstreams)
            if not upstreams:
                return None
            if len(self._flights) >= self._max_flights:
                self.counters["refused_full"] += 1
                return None
            self.counters["cache_misses"] += 1
            flight = asyncio.create_task(self._fly(key, forward.query, upstreams))
            self._flights[key] = flight
        else:
            self.counters["joined"] += 1
        patience_s = STALE_AFTER_S if self.cache.stale(key, monotonic()) else DEADLINE_S + 1
        # The flight goes on without us and fills the cache.
        await asyncio.wait({flight}, timeout=patience_s)
        if not flight.done() or flight.cancelled() or flight.exception() is not None:
            return None
        return flight.result()

    async def _fly(self, key: FlightKey, query: Query, upstreams: tuple[Endpoint, ...]) -> Reply | None:
        try:
            reply = await self._ask_all(query, upstreams)
            if reply is not None and _is_good(reply):
                self.cache.put(key, reply, monotonic())
            else:
                self.cache.failed(key, monotonic())
            return reply
        finally:
            del self._flights[key]

    def _stale(self, forward: Forward, size_bytes: int) -> bytes | None:
        kept = self.cache.stale(_key(forward), monotonic())
        if kept is None:
            return None
        self.counters["stale"] += 1
        return wire.write_reply(kept.reply, forward.query, 0, size_bytes, STALE_TTL_S)

    # -- hedging --------------------------------------------------------------------------------------------------------------

    async def _ask_all(self, query: Query, upstreams: tuple[Endpoint, ...]) -> Reply | None:
        """The first answer or denial; else the last failure an upstream reported; else None."""
        deadline = monotonic() + DEADLINE_S
        waiting = list(upstreams)
        attempts: set[asyncio.Task[Reply | None]] = set()
        trouble: Reply | None = None
        rounds = 0
        try:
            while True:
                if waiting:
                    endpoint = waiting.pop(0)
                    attempts.add(asyncio.create_task(self._ask(endpoint, query, monotonic(), deadline)))
                    patience_s = HEDGE_S if waiting else RESEND_S * (rounds + 1)
                elif not attempts:
                    return trouble
                timeout_s = min(patience_s, deadline - monotonic())
                if timeout_s <= 0:
                    return trouble
                done, attempts = await asyncio.wait(attempts, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                for attempt in done:
                    reply = attempt.result()
                    if _is_good(reply):
                        return reply
                    trouble = reply or trouble
                if not done and not waiting:
                    # Everybody was asked and is silent: datagrams get lost, so all are asked again.
                    rounds += 1
                    waiting = list(upstreams)
        finally:
            for attempt in attempts:
                attempt.cancel()
            if attempts:
                await asyncio.gather(*attempts, return_exceptions=True)

    async def _ask(self, endpoint: Endpoint, query: Query, since: float, deadline: float) -> Reply | None:
        """One upstream: its reply, truncated ones fetched again over TCP. None: it can't be reached or makes no sense."""
        self.counters["forwarded"] += 1
        self.health.of(endpoint).asked += 1
        try:
            async with asyncio.timeout(deadline - monotonic()):
                edns = self.health.takes_edns(endpoint, since)
                reply = await self._exchange(endpoint, query, edns=edns)
                if edns and reply is not None and reply.rcode in (wire.FORMERR, wire.NOTIMP, wire.BADVERS):
                    reply = await self._exchange(endpoint, query, edns=False)
                    if _is_good(reply):
                        self.health.without_edns(endpoint, monotonic())
        except TimeoutError:
            self._was_silent(endpoint)
            return None
        except OSError:
            self.health.failed(endpoint, monotonic(), avoid=True)
            return None
        except asyncio.CancelledError:
            # Overtaken by another upstream, or out of time. Who was asked just now had no chance yet.
            if monotonic() - since >= HEDGE_S:
                self._was_silent(endpoint)
            raise
        except asyncio.IncompleteReadError:
            reply = None
        if _is_good(reply):
            self.health.answered(endpoint, monotonic() - since)
        else:
            self.health.failed(endpoint, monotonic(), avoid=False)
        return reply

    async def _exchange(self, endpoint: Endpoint, query: Query, *, edns: bool) -> Reply | None:
        query_id = os.urandom(2)
        packet = wire.write_query(query_id, query.question, edns=edns, dnssec_ok=query.dnssec_ok, checking_disabled=query.checking_disabled)
        reply = await _ask_udp(endpoint, packet, query_id, query.question)
        if reply.truncated:
            self.counters["forwarded_tcp"] += 1
            reader, writer = await asyncio.open_connection(*endpoint)
            try:
                writer.write(len(packet).to_bytes(2) + packet)
                size = int.from_bytes(await reader.readexactly(2))
                return wire.read_reply(await reader.readexactly(size), query_id, query.question)
            finally:
                writer.close()
        return reply

    # -- loops ----------------------------------------------------------------------------------------------------------------

    def _was_silent(self, endpoint: Endpoint) -> None:
        """Broken, or asking us what we asked it: our own flight then waits for itself. The latter is found out."""
        now = monotonic()
        self.health.silent(endpoint, now)
        if self.health.suspect(endpoint, now):
            task = asyncio.create_task(self._probe(endpoint))
            self._probing.add(task)
            task.add_done_callback(self._probing.discard)

    async def _probe(self, endpoint: Endpoint) -> None:
        name = name_of(f"{os.urandom(16).hex()}.{_PROBE_DOMAIN}")
        assert name is not None
        self._probes[name] = endpoint
        question = name + wire.HINFO.to_bytes(2) + wire.IN.to_bytes(2)
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._exchange(endpoint, Query(b"\0\0", question, 0, True), edns=True)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._probes.pop(name, None)

    def _came_back(self, name: bytes) -> None:
        endpoint = self._probes[name]
        self.counters["loops"] += 1
        self.health.looping(endpoint, monotonic())
        _log.warning("event=forwarding-loop upstream=%s probe=%s not-asked-for-s=60", endpoint_text(endpoint), text_of(name))


def _is_good(reply: Reply | None) -> bool:
    return reply is not None and reply.rcode in (wire.NOERROR, wire.NXDOMAIN)


def _key(forward: Forward) -> FlightKey:
    query = forward.query
    return forward.upstreams, query.key, query.dnssec_ok, query.checking_disabled


async def _ask_udp(endpoint: Endpoint, packet: bytes, query_id: bytes, question: bytes) -> Reply:
    """The first well-formed reply to this very query; anything else that arrives is dropped. OSError: nobody listens there."""
    loop = asyncio.get_running_loop()
    host, port = endpoint
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)[0]
    # A socket of its own: a new source port a query is what makes forged replies miss. Connected: others' packets are dropped
    # by the kernel, and "port unreachable" comes back at once.
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect(address)
        await loop.sock_sendall(sock, packet)
        while True:
            reply = wire.read_reply(await loop.sock_recv(sock, 65535), query_id, question)
            if reply is not None:
                return reply
