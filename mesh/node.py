"""NodeMesh: keeps the kernel of one node equal to a desired state.

Edge. One worker thread does all kernel work; the event loop only waits. Nothing needed after a restart is kept in memory: the first
apply of a process reads the kernel whole and adopts what it finds; later ones plan against what they left there, until asked to look
again or something fails.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

from mesh.address import address_of_gateway_port
from mesh.errors import MeshError
from mesh.facts import Facts
from mesh.linux.kernel import Kernel
from mesh.linux.namespace import Namespaces, open_namespace, setns
from mesh.model import NodeState
from mesh.plan import Attach, Op, plan
from mesh.render import Names, Rendered, render
from mesh.table import HOST, NamespaceTable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Report:
    """What one apply did. `drift`: those of `ops` that undid a change somebody else made since the last apply (only known on resync).

    errors: by object: "network:<id>", "endpoint:<network id>/<endpoint id>", "sandbox:<id>", "host_port:<port>/<protocol>", or
    "namespace:<name>" for a kernel refusal; what has no error is in place.
    """

    ops: tuple[Op, ...] = ()
    drift: tuple[Op, ...] = ()
    errors: Mapping[str, MeshError] = field(default_factory=dict)


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

    async def apply(self, state: NodeState, *, resync: bool = False) -> Report:
        """Make the kernel so. Raises ConfigError when the state as a whole makes no sense, KernelUnsupported
        when its balancer is not to be had (nothing is changed then); failures of single
        objects are in the report. Without `resync` what is known of the kernel is what the last apply left there.
        """
        return await self._run(lambda: self._apply(state, resync))

    async def open_connections(self, addresses: Mapping[str, set[str]]) -> dict[tuple[str, str], int]:
        """Open TCP connections of this node's clients by (network id, backend address), for the addresses asked for; 0 where there are
        none."""

        def count() -> dict[tuple[str, str], int]:
            found: dict[tuple[str, str], int] = {}
            for network_id, wanted in sorted(addresses.items()):
                for address, number in self._kernel.open_connections(network_id, wanted).items():
                    found[network_id, address] = number
            return found

        return await self._run(count)

    async def flush(self) -> Report:
        """Remove all of ours from the kernel. What others made stays."""

        def remove() -> Report:
            self._applied = None
            actual = self._kernel.read({})
            return self._execute(plan({HOST: NamespaceTable()}, actual), {}, {}, ())[0]

        return await self._run(remove)

    async def close(self) -> None:
        """Let go of the thread. The kernel keeps what was applied."""
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _apply(self, state: NodeState, resync: bool) -> Report:
        whole = resync or self._applied is None or self._facts is None
        whole = whole or (state.underlay, state.balancer) != (self._underlay, self._balancer)
        if whole:
            facts = self._kernel.facts(state)
        else:
            assert self._facts is not None and self._applied is not None
            facts = replace(self._facts, netns=self._kernel.netns_inodes(state), gateways=_gateways(self._applied))
        rendered = self._rendered = render(state, facts, self._names, self._rendered)
        actual = self._kernel.read(rendered.tables) if whole else self._applied
        assert actual is not None
        desired = _frozen(rendered, actual)
        ops = plan(desired, actual)
        drift: tuple[Op, ...] = ()
        if resync and self._applied is not None:
            expected = set(map(_key, plan(self._applied, actual)))
            drift = tuple(op for op in ops if _key(op) in expected)
        report, complete = self._execute(ops, rendered.errors, rendered.owners, drift)
        self._applied = dict(desired) if complete else None
        self._facts, self._underlay, self._balancer = facts, state.underlay, state.balancer
        return report

    def _execute(
        self, ops: list[Op], known: Mapping[str, MeshError], owners: Mapping[tuple[str, str], str], drift: tuple[Op, ...]
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


def _key(op: Op) -> str:
    return repr(op)
