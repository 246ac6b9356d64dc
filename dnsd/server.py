"""The server: what scopes exist, which zones each sees, and the exchange of all of them at once.

Edge: opens and closes sockets. `apply` compiles everything first and opens what is new; then every scope changes over in one
step of the event loop, so that no query is answered from a mixture.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from dnsd import wire
from dnsd.counters import BOUNDS_S, Histogram, QueryCounters
from dnsd.datagrams import Batch
from dnsd.encoded import EncodedZone
from dnsd.errors import ConfigError, DnsError
from dnsd.forward import Forwarder
from dnsd.listener import Listener
from dnsd.loop import Pace
from dnsd.model import (
    AnswerCount,
    Applied,
    DnsState,
    Durations,
    Explanation,
    QueryLogged,
    ScopeSpec,
    ScopeStatus,
    Status,
    ZoneSpec,
    ZoneStatus,
)
from dnsd.names import name_of, text_of
from dnsd.places import Place, Wanted, places_of
from dnsd.policy import policy_of
from dnsd.resolve import Forward, Room, View
from dnsd.resolvers import Endpoint, NodeResolvers, endpoint_text
from dnsd.sockets import OWN_NETNS, Opened, Request, close_all, netns_id, open_all
from dnsd.version import VERSION
from dnsd.zone import Zone

if TYPE_CHECKING:
    from dnsd.query_log import QueryLog

# What people look at (explain, presentation, query_log) is loaded when they do: a dnsd that was killed has to be back soon.

_log = logging.getLogger("dnsd")

# How soon a dead sandbox's namespace is let go when nobody tells us that the sandbox is gone.
_WATCH_S = 2.0

_Seen = tuple[tuple[str, ...], str, bool, tuple[str, ...]]


class Server:
    """Serves a DnsState. `apply` replaces the whole of it; what did not change is not touched (sockets stay open, no query is
    lost). Use from one event loop; `close` at the end."""

    def __init__(self, resolvers: NodeResolvers | None = None) -> None:
        self.counters: Counter[str] = Counter()
        self.traffic = QueryCounters()
        self._batch = cache(Batch)
        self._room = Room()
        self._forwarder = Forwarder(resolvers, own=self._is_own)
        self._zones: dict[str, Zone] = {}
        self._views: dict[_Seen, View] = {}
        self._scopes: dict[str, ScopeSpec] = {}
        self._listeners: dict[Place, Listener] = {}
        self._places: dict[str, Place] = {}
        self._reasons: dict[str, str] = {}
        self._logs: dict[str, QueryLog] = {}
        self._own: tuple[Endpoint, ...] = ()
        self._applying = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self._since = time.monotonic()

    async def apply(self, state: DnsState, *, expected: Mapping[str, str] | None = None) -> Applied:
        """Afterwards `state` is served, but for the scopes named in the result. ConfigError: contradictory input, nothing done.

        expected: scope id -> identity its namespace must have (see `identities`); a path of a dead process may lead elsewhere.
        """
        return await self.serve(state.zones, state.scopes, expected=expected)

    async def serve(
        self,
        zones: Sequence[ZoneSpec | EncodedZone],
        scopes: Sequence[ScopeSpec],
        *,
        expected: Mapping[str, str] | None = None,
        opened: Mapping[Place, Opened] | None = None,
    ) -> Applied:
        """`apply`, also of zones that need not become objects. msgspec.DecodeError: one of these can't be read, nothing done.

        opened: sockets that are open already, for places of these scopes; they are ours from now on.
        """
        async with self._applying:
            _check(zones, scopes)
            pace = Pace()
            wanted, failed = places_of(scopes)
            for place in list(self._listeners):
                # Closed before anything is opened: the namespace behind the same path may be a new one.
                if place in wanted and self._is_dead(place):
                    self._close(place)
                await pace.rest()
            sockets: dict[Place, Opened | ConfigError] = dict(opened or {})
            try:
                # First of all: what is asked meanwhile waits in the sockets.
                missing = [want for place, want in wanted.items() if place not in self._listeners and place not in sockets]
                requests = [Request(want.scope.netns, want.listen, (expected or {}).get(want.scope.id, "")) for want in missing]
                sockets |= zip([want.place for want in missing], await open_all(requests, pace), strict=True)
                compiled = {zone.network: await self._compile(zone, pace) for zone in zones}
                views, problems = await self._view_all(wanted, compiled, pace)
            except BaseException:
                close_all(sockets.values())
                raise
            old = [zone for network, zone in self._zones.items() if compiled.get(network) is not zone]
            self._scopes = {scope.id: scope for scope in scopes}
            self._exchange(wanted, compiled, views, sockets, failed)
            for zone in old:
                await pace.run(zone.emptied())
            return Applied(failed=failed, problems=tuple(dict.fromkeys(problems)))

    def _exchange(
        self,
        wanted: Mapping[Place, Wanted],
        zones: dict[str, Zone],
        views: dict[_Seen, View],
        opened: Mapping[Place, Opened | ConfigError],
        failed: dict[str, str],
    ) -> None:
        """Nothing waits here: one step of the event loop. What couldn't be opened is added to `failed`."""
        for place in [place for place in self._listeners if place not in wanted]:
            self._close(place)
        for place, want in wanted.items():
            view, result = views[_seen(want.scope)], opened.get(place)
            if isinstance(result, Opened):
                batch = self._batch(result.udp.family)
                self._listeners[place] = Listener(result, view, self._forwarder, self.counters, self.traffic, batch)
            elif result is not None:
                failed[want.scope.id] = str(result)
            elif place in self._listeners:
                self._listeners[place].view = view
            else:
                failed[want.scope.id] = _gone(place)
        for seen, view in self._views.items():
            if views.get(seen) is not view:
                self._room.leave(view)
        self._zones, self._views = zones, views
        self._places = {want.scope.id: place for place, want in wanted.items()}
        self._reasons = dict(failed)
        self._attach_logs()
        own_id = netns_id(OWN_NETNS)
        self._own = tuple(listener.address for listener in self._listeners.values() if listener.netns_id == own_id)
        self.counters["applied"] += 1
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())

    def address(self, scope_id: str) -> Endpoint:
        """Where a scope really listens (its port 0 became a number)."""
        listener = self._listeners.get(self._places.get(scope_id, ("", "", "")))
        if listener is None:
            raise DnsError(f"scope {scope_id!r} is not open: {self._reasons.get(scope_id, 'there is no such scope')}")
        return listener.address

    def identities(self) -> dict[str, str]:
        """Open scopes inside other namespaces: scope id -> identity of that namespace."""
        found = {}
        for scope_id, place in self._places.items():
            listener = self._listeners.get(place)
            if listener is not None and place[0]:
                found[scope_id] = listener.netns_id
        return found

    def status(self) -> Status:
        from dnsd import presentation

        scopes = []
        queries = self.counters["queries_before"]
        for scope_id, scope in sorted(self._scopes.items()):
            listener = self._listeners.get(self._places.get(scope_id, ("", "", "")))
            queries += listener.queries if listener else 0
            scopes.append(
                ScopeStatus(
                    id=scope_id,
                    netns=scope.netns,
                    listen=endpoint_text(listener.address) if listener else scope.listen,
                    queries=listener.queries if listener else 0,
                    reason="" if listener else self._reasons.get(scope_id, "it is not open"),
                )
            )
        counters = {**self.counters, **self._forwarder.counters, "queries": queries, "cache_entries": len(self._forwarder.cache)}
        return Status(
            version=VERSION,
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._since,
            zones=tuple(ZoneStatus(network=key, name=zone.name, names=len(zone)) for key, zone in sorted(self._zones.items())),
            scopes=tuple(scopes),
            upstreams=tuple(endpoint_text(endpoint) for endpoint in self._forwarder.upstreams()),
            health=self._forwarder.health.status(time.monotonic()),
            answers=tuple(
                AnswerCount(type=presentation.type_text(qtype) if qtype else "", rcode=presentation.rcode_text(rcode), count=count)
                for qtype, rcode, count in self.traffic.by_type_and_rcode()
            ),
            own=_durations(self.traffic.own_s),
            forwarded=_durations(self.traffic.forwarded_s),
            counters=dict(sorted(counters.items())),
        )

    async def log(self, reference: str, *, on: bool, after: int = 0) -> tuple[str, bool, tuple[QueryLogged, ...]]:
        """Remember the queries of that asker from now on, or no longer; its name, whether they were so far, those later than `after`.
        ConfigError: no scope is meant by `reference`, or several are (see `explain.find_asker`)."""
        from dnsd.explain import find_asker
        from dnsd.query_log import QueryLog

        async with self._applying:
            scope_id, asker = await Pace().run(find_asker(reference, self._scopes, self._zones.values()))
        before = self._logs.pop(scope_id, None)
        if on:
            self._logs[scope_id] = before or QueryLog()
        self._attach_logs()
        return asker, before is not None, before.after(after) if before else ()

    async def explain(self, reference: str, name: str, kind: str = "A") -> Explanation:
        """What that asker is answered, and why. The answer is a real one: other servers are asked if need be. ConfigError: no scope is
        meant by `reference` or several are (see `explain.find_asker`), or the name or type is none."""
        from dnsd import presentation
        from dnsd.explain import find_asker, reason_of

        wire_name, qtype = name_of(name), presentation.type_number(kind)
        if wire_name is None:
            raise ConfigError(f"{name!r} is no name: expected labels of 1 to 63 bytes between dots, 253 in all")
        # Zones must stay while they are read.
        async with self._applying:
            scope_id, asker = await Pace().run(find_asker(reference, self._scopes, self._zones.values()))
            scope = self._scopes[scope_id]
            view = self._views.get(_seen(scope))
            if view is None:
                raise ConfigError(f"{asker} has no DNS: {self._reasons.get(scope_id, 'it is not open')}")
            reason = await Pace().run(reason_of(view, wire_name))
        question = wire_name + qtype.to_bytes(2) + wire.IN.to_bytes(2)
        response = view.respond(wire.write_query(b"\0\0", question, edns=True), tcp=True)
        upstreams: tuple[Endpoint, ...] = ()
        if isinstance(response, Forward):
            upstreams = self._forwarder.upstreams(response.upstreams)
            kept = self._forwarder.kept(response, wire.MAX_TCP_BYTES)
            reason.origin = "cache" if kept else "upstream" if upstreams else ""
            response = kept or await self._forwarder.resolve(response, wire.MAX_TCP_BYTES)
        assert response is not None
        rcode, records = presentation.answer_text(response)
        return Explanation(
            scope=scope_id,
            asker=asker,
            networks=tuple(zone.name for zone in view.zones),
            stack=scope.stack,
            name=text_of(wire_name),
            type=presentation.type_text(qtype),
            rcode=rcode,
            records=records,
            origin=reason.origin,
            rule=reason.rule,
            network=reason.network,
            tasks=reason.tasks,
            upstreams=tuple(map(endpoint_text, upstreams)),
            notes=tuple(reason.notes),
        )

    async def close(self) -> None:
        async with self._applying:
            if self._watcher is not None:
                self._watcher.cancel()
                await asyncio.gather(self._watcher, return_exceptions=True)
                self._watcher = None
            for listener in self._listeners.values():
                listener.close()
            self._listeners.clear()
            await self._forwarder.close()

    # -- parts of apply -------------------------------------------------------------------------------------------------------

    async def _compile(self, source: ZoneSpec | EncodedZone, pace: Pace) -> Zone:
        zone = self._zones.get(source.network)
        if zone is not None and (zone.source is source or zone.source == source):
            return zone
        return await pace.run(Zone.in_steps(source))

    async def _view_all(self, wanted: Mapping[Place, Wanted], zones: Mapping[str, Zone], pace: Pace) -> tuple[dict[_Seen, View], list[str]]:
        """Scopes that see the same share a view; one whose zones did not change stays, with all the answers it has built."""
        views: dict[_Seen, View] = {}
        problems = [problem for zone in zones.values() for problem in zone.problems]
        for scope in [want.scope for want in wanted.values()]:
            await pace.rest()
            seen = _seen(scope)
            if seen in views:
                continue
            visible = tuple(zones[network] for network in scope.networks if network in zones)
            policy, said = policy_of(scope, [zone.settings for zone in visible])
            problems += said
            old = self._views.get(seen)
            same = old is not None and len(old.zones) == len(visible) and all(a is b for a, b in zip(old.zones, visible, strict=True))
            views[seen] = old if old is not None and same else View(visible, scope.stack, policy=policy, room=self._room)
        return views, problems

    def _attach_logs(self) -> None:
        self._logs = {scope_id: log for scope_id, log in self._logs.items() if scope_id in self._scopes}
        for scope_id, place in self._places.items():
            if place in self._listeners:
                self._listeners[place].log = self._logs.get(scope_id)

    # -- namespaces that die --------------------------------------------------------------------------------------------------

    def _is_dead(self, place: Place) -> bool:
        return bool(place[0]) and netns_id(place[0]) != self._listeners[place].netns_id

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            pace = Pace()
            for place in list(self._listeners):
                await pace.rest()
                if place in self._listeners and self._is_dead(place):
                    self._close(place)
                    for scope_id in [scope_id for scope_id, other in self._places.items() if other == place]:
                        self._reasons[scope_id] = _gone(place)
                        _log.info("event=scope-closed scope=%s netns=%s reason=gone", scope_id, place[0])

    def _close(self, place: Place) -> None:
        listener = self._listeners.pop(place)
        self.counters["queries_before"] += listener.queries
        listener.close()

    def _is_own(self, endpoint: Endpoint) -> bool:
        """Whether asking that upstream would be asking ourselves. Others may well use the same address in their namespaces."""
        host, port = endpoint
        return any(
            own_port == port and (own_host == host or (own_host in ("0.0.0.0", "::") and _is_local(host)))
            for own_host, own_port in self._own
        )


def _check(zones: Sequence[ZoneSpec | EncodedZone], scopes: Sequence[ScopeSpec]) -> None:
    for what, ids in (("network", [zone.network for zone in zones]), ("scope", [scope.id for scope in scopes])):
        twice = sorted(name for name, times in Counter(ids).items() if times > 1)
        if twice:
            raise ConfigError(f"{what} {twice[0]!r} is given more than once")


def _gone(place: Place) -> str:
    return f"the network namespace {place[0]} is gone"


def _seen(scope: ScopeSpec) -> _Seen:
    return scope.networks, scope.stack, scope.forward, scope.upstreams


def _durations(histogram: Histogram) -> Durations:
    return Durations(bounds_s=BOUNDS_S, buckets=tuple(histogram.buckets), sum_s=histogram.sum_s)


def _is_local(host: str) -> bool:
    """Whether this machine has the address: only then a socket can be bound to it."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True
