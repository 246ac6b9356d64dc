"""NodeMesh: keeps the kernel of one node equal to a desired state.

Edge. One worker thread does all kernel work; the event loop only waits. Nothing needed after a restart is kept in memory: the first
apply of a process reads the kernel whole and adopts what it finds; later ones plan against what they left there, until asked to look
again or something fails.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

from mesh.address import address_of_gateway_port
from mesh.balance import TABLE
from mesh.drift import Difference, differences
from mesh.errors import MeshError
from mesh.facts import Facts
from mesh.host import GATEWAY_LINK
from mesh.linux.events import Events
from mesh.linux.kernel import Kernel
from mesh.linux.namespace import Namespaces, open_namespace, setns
from mesh.model import NodeState
from mesh.operations import Attach, Op
from mesh.plan import plan
from mesh.render import Names, Rendered, render
from mesh.table import EMPTY, HOST, OWN_NAMESPACE, NamespaceTable, is_container

T = TypeVar("T")
log = logging.getLogger("mesh")
QUIET_S = 0.1
"""From the first event to the word that something changed: what belongs together comes together."""

WATCH_S = 1.0
"""Between two such words at least: a resync costs up to 100 ms of CPU."""

DRIFT_LINES = 20
"""Log lines of one resync, before the rest is counted."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one apply did. `drift`: what others had changed since the last apply and now is as it should be (only known on resync).

    errors: by object: "network:<id>", "endpoint:<network id>/<endpoint id>", "sandbox:<id>", "host_port:<port>/<protocol>", or
    "namespace:<name>" for a kernel refusal; what has no error is in place.
    """

    ops: tuple[Op, ...] = ()
    drift: tuple[Difference, ...] = ()
    errors: Mapping[str, MeshError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What an apply would do, and what that is about. errors: as in Report."""

    ops: tuple[Op, ...]
    differences: tuple[Difference, ...]
    errors: Mapping[str, MeshError]


@dataclass(slots=True)
class Totals:
    """Since this process began, to be exported by whoever embeds the library. operations, drift: by kind. errors: objects that failed, each
    time an apply met them."""

    applies: int = 0
    resyncs: int = 0
    errors: int = 0
    busy_s: float = 0.0
    operations: Counter[str] = field(default_factory=Counter)
    drift: Counter[str] = field(default_factory=Counter)


class NodeMesh:
    """The data plane of one node, as a value to apply.

    `prefix` begins the name of everything created; two meshes in one host namespace need two prefixes. `host_netns`: a path, for a node
    whose host namespace is not the process's own. `directory` holds the namespaces' names, as `ip netns` has them.
    """

    def __init__(self, prefix: str = "mesh", *, host_netns: str | None = None, directory: str = "/run/netns") -> None:
        self._names = Names(prefix)
        self._kernel = Kernel(self._names, Namespaces(directory))
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"{prefix}-kernel", initializer=_enter, initargs=(host_netns,))
        self._applied: dict[str, NamespaceTable] | None = None
        self._rendered: Rendered | None = None
        self._facts: Facts | None = None
        self._underlay: str | None = None
        self._balancer: str | None = None
        self._events: Events | None = None
        self._applying = 0
        self.totals = Totals()

    async def apply(self, state: NodeState, *, resync: bool = False) -> Report:
        """Make the kernel so. Raises ConfigError when the state as a whole makes no sense, KernelUnsupported
        when its balancer is not to be had (nothing is changed then); failures of single
        objects are in the report. Without `resync` what is known of the kernel is what the last apply left there.
        """
        self._applying += 1
        try:
            return await self._run(lambda: self._timed(state, resync))
        finally:
            self._applying -= 1
            if self._events is not None and not self._applying:
                # what came meanwhile was our own doing
                self._events.drain()

    async def watch(self, on_change: Callable[[], None]) -> None:
        """From now on `on_change` is called when somebody else may have changed something of ours: time for `apply(resync=True)`. Not
        everything is heard at once (`mesh.linux.events`): resync at an interval as well. Until `close`, or another `watch`."""
        self._stop_listening()
        loop = asyncio.get_running_loop()
        events = self._events = await self._run(self._listen)
        word: asyncio.TimerHandle | None = None
        silent_until = 0.0

        def speak() -> None:
            nonlocal word, silent_until
            word, silent_until = None, loop.time() + WATCH_S
            on_change()

        def heard() -> None:
            nonlocal word
            if events.drain() and not self._applying and word is None:
                word = loop.call_at(max(loop.time() + QUIET_S, silent_until), speak)

        loop.add_reader(events.links, heard)
        loop.add_reader(events.nft, heard)

    def _stop_listening(self) -> None:
        if self._events is not None:
            for listening in (self._events.links, self._events.nft):
                asyncio.get_running_loop().remove_reader(listening)
            self._events.close()
            self._events = None

    def _listen(self) -> Events:
        events = Events(self._names.table, TABLE, (self._names.gateway_bridge, self._names.uplink, GATEWAY_LINK))
        self._kernel.followed_by(events)
        return events

    async def compare(self, state: NodeState) -> Comparison:
        """What `apply` would do now; nothing is changed. Raises as `apply` does."""

        def work() -> Comparison:
            rendered = render(state, self._kernel.facts(state), self._names)
            actual = self._kernel.read(rendered.tables)
            desired = _frozen(rendered, actual)
            return Comparison(tuple(plan(desired, actual)), tuple(differences(desired, actual)), rendered.errors)

        return await self._run(work)

    async def read(self) -> Mapping[str, NamespaceTable]:
        """All that is ours in the kernel, by namespace ("" is the host's). What lies inside containers is not looked at."""

        def work() -> Mapping[str, NamespaceTable]:
            self._kernel.discover()
            return self._kernel.read({})

        return await self._run(work)

    async def open_connections(self, addresses: Mapping[str, set[str]]) -> dict[tuple[str, str], int]:
        """Open TCP connections by (network id, backend address), for the addresses asked for; 0 where there are none. Every connection
        through a VIP or a published port is counted by one node: where addresses are translated by the client's, else by the backend's.
        """

        def count() -> dict[tuple[str, str], int]:
            found: dict[tuple[str, str], int] = {}
            for network_id, wanted in sorted(addresses.items()):
                network = self._rendered.networks.get(network_id) if self._rendered else None
                containers = {e.address: e.netns for e, _, _ in network.links.values()} if network else {}
                for address, number in self._kernel.open_connections(network_id, wanted, containers).items():
                    found[network_id, address] = number
            return found

        return await self._run(count)

    async def flush(self) -> Report:
        """Remove all of ours from the kernel. What others made stays."""

        def remove() -> Report:
            self._applied = None
            self._kernel.discover()
            actual = self._kernel.read({}) | self._kernel.read_containers()
            return self._execute(plan({HOST: NamespaceTable()}, actual), {}, {}, ())[0]

        return await self._run(remove)

    async def close(self) -> None:
        """Let go of the thread. The kernel keeps what was applied."""
        self._stop_listening()
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _timed(self, state: NodeState, resync: bool) -> Report:
        began = time.monotonic()
        self.totals.applies += 1
        self.totals.resyncs += resync
        try:
            report = self._apply(state, resync)
        finally:
            self.totals.busy_s += time.monotonic() - began
        self.totals.errors += len(report.errors)
        self.totals.operations.update(type(op).__name__ for op in report.ops)
        self.totals.drift.update(one.kind for one in report.drift)
        for one in report.drift[:DRIFT_LINES]:
            log.warning("drift namespace=%s kind=%r name=%r state=%s", one.namespace or "host", one.kind, one.name, one.state)
        if len(report.drift) > DRIFT_LINES:
            log.warning("drift more=%d", len(report.drift) - DRIFT_LINES)
        return report

    def _apply(self, state: NodeState, resync: bool) -> Report:
        remembered = self._applied is not None and not resync
        report = self._attempt(state, resync)
        if self._applied is not None or not remembered:
            return report
        # what was refused may have been planned by a picture that is no longer true: look, and try once more
        log.warning("apply again with a fresh look errors=%s", {name: str(error) for name, error in report.errors.items()})
        again = self._attempt(state, resync=True)
        return Report(report.ops + again.ops, again.drift, again.errors)

    def _attempt(self, state: NodeState, resync: bool) -> Report:
        whole = resync or self._applied is None or self._facts is None
        whole = whole or (state.underlay, state.balancer) != (self._underlay, self._balancer)
        # whether the kernel has WireGuard is asked when it is needed first
        whole = whole or (any(n.encrypted for n in state.networks) and not (self._facts and self._facts.has_wireguard))
        if whole:
            facts = self._kernel.facts(state)
        else:
            assert self._facts is not None and self._applied is not None
            facts = replace(self._facts, netns=self._kernel.netns_inodes(state), gateways=_gateways(self._applied))
        rendered = self._rendered = render(state, facts, self._names, self._rendered)
        if whole:
            left = [n for n in self._applied or () if is_container(n) and n not in rendered.tables]
            actual: Mapping[str, NamespaceTable] = self._kernel.read(rendered.tables) | self._kernel.read_containers(left)
        else:
            assert self._applied is not None
            actual = self._applied
        desired = _frozen(rendered, actual)
        ops = plan(desired, actual)
        drift: tuple[Difference, ...] = ()
        if resync and self._applied is not None:
            drift = tuple(one for one in differences(self._applied, actual) if not self._ended(one, facts))
        report, complete = self._execute(ops, rendered.errors, rendered.owners, drift)
        self._applied = dict(desired) if complete else None
        if self._events is not None:
            self._kernel.followed_by(self._events)
        self._facts, self._underlay, self._balancer = facts, state.underlay, state.balancer
        return report

    def _ended(self, difference: Difference, facts: Facts) -> bool:
        """A link that went with its container, by itself."""
        applied = self._applied.get(difference.namespace, EMPTY) if self._applied else EMPTY
        attachment = applied.attachments.get(difference.name) if difference.kind == "link" else None
        return attachment is not None and attachment.netns_id not in (OWN_NAMESPACE, facts.netns.get(attachment.netns))

    def _execute(
        self, ops: list[Op], known: Mapping[str, MeshError], owners: Mapping[tuple[str, str], str], drift: tuple[Difference, ...]
    ) -> tuple[Report, bool]:
        """Run what can be run: a failure skips the rest of its namespace (later operations build on earlier ones), not the others'. The
        link of one container is nobody's foundation."""
        done: list[Op] = []
        errors = dict(known)
        failed: set[str] = set()
        complete = True
        for op in ops:
            if op.namespace in failed:
                continue
            try:
                self._kernel.run(op)
            except (MeshError, OSError) as error:
                complete = False
                reason = error if isinstance(error, MeshError) else MeshError(f"{type(op).__name__}: {error}")
                if isinstance(op, Attach):
                    errors[owners.get((op.namespace, op.attachment.name), f"link:{op.attachment.name}")] = reason
                else:
                    failed.add(op.namespace)
                    errors[f"namespace:{op.namespace or 'host'}"] = reason
            else:
                done.append(op)
        return Report(tuple(done), drift, errors), complete


def _enter(host_netns: str | None) -> None:
    if host_netns is None:
        return
    descriptor = open_namespace(host_netns)
    try:
        setns(descriptor, host_netns)
    finally:
        os.close(descriptor)


def _gateways(tables: Mapping[str, NamespaceTable]) -> dict[str, str]:
    attachments = tables.get(HOST, NamespaceTable()).attachments
    return {name: address for name, a in attachments.items() if (address := address_of_gateway_port(a.outer_mac))}


def _frozen(rendered: Rendered, actual: Mapping[str, NamespaceTable]) -> dict[str, NamespaceTable]:
    """Desired tables, with those of wrong parts of the state replaced by what is there."""
    desired = dict(rendered.tables)
    for name in rendered.frozen:
        if name in actual:
            desired[name] = actual[name]
        else:
            desired.pop(name, None)
    return desired
