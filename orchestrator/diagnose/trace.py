"""`meshd trace`, the manager's part: tell the nodes to watch, send the probes, put the sightings together.

Edge: WebSockets to the nodes. What is traced is decided by `itinerary`, what was seen is judged by `mesh.trace.path`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import msgspec

from mesh.model import NodeState
from mesh.network import endpoint_link
from mesh.trace.expect import Expectation, Node, expectation
from mesh.trace.model import Mark, Probe, Sighting
from mesh.trace.path import Trip, paths
from orchestrator.api.references import name_of
from orchestrator.diagnose.itinerary import Itinerary, TraceRequest, itinerary
from orchestrator.diagnose.node_side import Sending, Watching
from orchestrator.diagnose.report import TraceReport
from orchestrator.errors import ApiError
from orchestrator.store.snapshot import Snapshot

_READY_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 3.0
"""How long an answer may take before a probe counts as lost."""
_VXLAN_PORT = 4789


class Sessions(Protocol):
    async def node_session(self, node_id: str) -> tuple[aiohttp.ClientSession, str]:
        """A session and the base URL of the node's own API, as a manager. ApiError(500) when it can't be reached."""
        ...


@dataclass(slots=True)
class _Watcher:
    """One node that watches. `problem`: why it doesn't."""

    node_id: str
    state: NodeState | None = None
    missing: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)
    problem: str = ""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    end: asyncio.Event = field(default_factory=asyncio.Event)


async def trace(sessions: Sessions, snapshot: Snapshot, request: TraceRequest, here: str) -> TraceReport:
    """ApiError: it can't be traced, and why. A node that doesn't answer is a problem in the report, not an error."""
    trip = itinerary(snapshot, request, here)
    mark = Mark(secrets.randbits(24))
    probe = Probe(trip.protocol, trip.destination, trip.port, mark, request.count)
    watchers = {id: _Watcher(id) for id in trip.watch}
    news = asyncio.Event()
    source = ""
    refusal: ApiError | None = None
    async with asyncio.TaskGroup() as group:
        for watcher in watchers.values():
            group.create_task(_watched(sessions, watcher, trip, mark, news))
        try:
            await asyncio.gather(*(watcher.ready.wait() for watcher in watchers.values()))
            source = await _sent(sessions, trip, probe)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    while not _all_answered(watchers[trip.client_node], trip, probe):
                        news.clear()
                        await news.wait()
        except ApiError as error:
            # raised below: the group would wrap it
            refusal = error
        finally:
            for watcher in watchers.values():
                watcher.end.set()
    if refusal is not None:
        raise refusal
    return _report(snapshot, trip, probe, watchers, source)


async def _watched(sessions: Sessions, watcher: _Watcher, trip: Itinerary, mark: Mark, news: asyncio.Event) -> None:
    """Never raises: what goes wrong is the watcher's problem."""
    try:
        session, base = await sessions.node_session(watcher.node_id)
        async with asyncio.timeout(_READY_TIMEOUT_S) as patience:
            async with session.ws_connect(f"{base}/trace", timeout=aiohttp.ClientWSTimeout(ws_close=2.0)) as socket:
                orders = Watching(network=trip.network_id, tasks=trip.watch[watcher.node_id], mark=mark.value)
                await socket.send_str(msgspec.json.encode(orders).decode())
                ending: asyncio.Task[None] | None = None
                try:
                    async for message in socket:
                        answer = json.loads(message.data)
                        if "ready" in answer:
                            watcher.ready.set()
                            patience.reschedule(None)
                            ending = asyncio.create_task(_end(watcher, socket, patience))
                        elif not _heard(watcher, answer):
                            return
                        news.set()
                finally:
                    if ending is not None:
                        ending.cancel()
        watcher.problem = watcher.problem or "broke the connection"
    except TimeoutError:
        watcher.problem = "didn't answer in time"
    except (aiohttp.ClientError, OSError, ValueError, msgspec.ValidationError, ApiError) as error:
        watcher.problem = f"can't be asked ({error})"
    finally:
        watcher.ready.set()


async def _end(watcher: _Watcher, socket: aiohttp.ClientWebSocketResponse, patience: asyncio.Timeout) -> None:
    await watcher.end.wait()
    patience.reschedule(asyncio.get_running_loop().time() + _END_TIMEOUT_S)
    await socket.send_str("end")


def _heard(watcher: _Watcher, answer: dict[str, Any]) -> bool:
    """False: that was the last of it."""
    if "end" in answer:
        return False
    if "error" in answer:
        watcher.problem = str(answer["error"])
        return False
    if "state" in answer:
        watcher.state = msgspec.convert(answer["state"], NodeState | None)
        watcher.missing = answer["missing"]
        watcher.differences = answer["differences"]
    else:
        watcher.sightings.append(msgspec.convert(answer, Sighting))
    return True


async def _sent(sessions: Sessions, trip: Itinerary, probe: Probe) -> str:
    session, base = await sessions.node_session(trip.client_node)
    orders = Sending(
        place=trip.client_place,
        protocol=probe.protocol,
        destination=probe.destination,
        port=probe.port,
        mark=probe.mark.value,
        count=probe.count,
    )
    try:
        async with session.post(f"{base}/trace/send", data=msgspec.json.encode(orders)) as response:
            answer = json.loads(await response.text())
    except (aiohttp.ClientError, ValueError) as error:
        raise ApiError(500, f"the node that should send the probes can't be asked: {error}") from None
    if "source" not in answer:
        raise ApiError(500, f"the probes could not be sent: {answer.get('error') or answer.get('message') or answer}")
    return str(answer["source"])


def _all_answered(watcher: _Watcher, trip: Itinerary, probe: Probe) -> bool:
    back = {s.packet.number for s in watcher.sightings if s.packet.way == "back" and s.place == trip.client_place and not s.packet.capsule}
    return len(back) == probe.count


def _report(
    snapshot: Snapshot, trip: Itinerary, probe: Probe, watchers: dict[str, _Watcher], source: str
) -> TraceReport:  # fmt: skip
    nodes: dict[str, Node] = {}
    balancers: dict[str, str] = {}
    links: dict[str, str] = {}
    problems: list[str] = []
    for id, watcher in watchers.items():
        node = snapshot.node(id)
        name = name_of(node) if node else id
        vtep = (node.description.mesh_data_addr or node.status.addr) if node else ""
        nodes[id] = Node(name, vtep, frozenset({vtep, node.status.addr} - {""}) if node else frozenset(), watcher.state)
        if watcher.problem:
            problems.append(f"{name} {watcher.problem}: what happens on it isn't seen")
        problems += [f"{name} has no {_place_name(place, trip)}" for place in watcher.missing]
        problems += [f"{name}'s kernel is not as it was told: {text}" for text in watcher.differences]
        if watcher.state is not None:
            balancers[id] = watcher.state.balancer
            for endpoint in (e for network in watcher.state.networks for e in network.local):
                if (task := trip.names.get(endpoint.id.partition("-")[0])) is not None:
                    links[endpoint_link(endpoint.id)] = task
    expected = expectation(nodes, trip.entry, trip.network_id, probe) if trip.protocol != "icmp" else Expectation("", ())
    entry_state = watchers[trip.entry].state
    seen = {id: watcher.sightings for id, watcher in watchers.items()}
    found = paths(
        nodes,
        seen,
        Trip(
            client_node=trip.client_node,
            client_place=trip.client_place,
            entry=trip.entry,
            datagrams=trip.protocol == "udp",
            vxlan_port=entry_state.vxlan_port if entry_state else _VXLAN_PORT,
            names=trip.names,
            unwatched=frozenset(id for id, watcher in watchers.items() if watcher.problem),
        ),
        expected,
        probe.count,
    )
    return TraceReport(
        service=trip.service,
        network=trip.network_name,
        destination=trip.destination,
        port=trip.port,
        protocol=trip.protocol,
        client_node=trip.client_node,
        client_place=trip.client_place,
        entry=trip.entry,
        source=source,
        kind=expected.kind,
        expected=expected.routes,
        problems=(*problems, *expected.problems),
        paths=tuple(found),
        nodes={id: node.name for id, node in nodes.items()},
        names=trip.names,
        balancers=balancers,
        links=links,
        good=all(path.good for path in found) and not problems and not expected.problems,
    )


def _place_name(place: str, trip: Itinerary) -> str:
    if place == "network":
        return f"namespace for the network {trip.network_name} (none of its tasks is there yet, or its data plane failed)"
    return f"container of {trip.names.get(place.removeprefix('task:'), place)}"
