"""Keeps kernel and DNS of this node as the newest wanted state says, and tells the managers how far that is.

Edge: calls mesh and dnsd. While one apply runs, changes gather for the next, so a burst costs two applies, not a hundred.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from dnsd.errors import DnsError
from dnsd.model import DnsState
from mesh.errors import MeshError
from mesh.model import NodeState
from mesh.table import ENCRYPTION
from orchestrator.agent.errors import NetworkUnavailable
from orchestrator.agent.ports import Mesh, Names, Session

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One picture of everything. draining: (network id, address) -> task id. keys_step: of the change of keys it is of."""

    revision: int
    state: NodeState
    names: DnsState
    draining: Mapping[tuple[str, str], str] = field(default_factory=dict)
    keys_step: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    resync_s: float = 10.0
    drain_poll_s: float = 0.25
    retry_first_s: float = 0.2
    retry_last_s: float = 5.0


class NetworkLoop:
    """`on_change` is called whenever `attached` or `errors` changed."""

    def __init__(self, mesh: Mesh, names: Names, session: Session, *, on_change: Callable[[], None], timing: Timing | None = None) -> None:
        self._mesh = mesh
        self._names = names
        self._session = session
        self._on_change = on_change
        self._timing = timing or Timing()
        self._wanted: Wanted | None = None
        # Tried: last given to mesh and dnsd. In force: all of that is so. Shown: what other nodes depend on is so, balancers and DNS,
        # but for those of the networks left behind; an endpoint that can't be attached holds nobody else's drain.
        self._tried: Wanted | None = None
        self._in_force: Wanted | None = None
        self._shown: Wanted | None = None
        self._behind: frozenset[str] = frozenset()
        self._unencrypted = False
        self._changed = asyncio.Event()
        self._owed = False
        self._suspect = True
        self._retry_s = 0.0
        self._retry_at = 0.0
        self.attached: frozenset[str] = frozenset()
        self.errors: dict[str, str] = {}

    @property
    def wanted_state(self) -> NodeState | None:
        return self._wanted.state if self._wanted is not None else None

    @property
    def keys_step(self) -> int | None:
        """The step of the change of keys that the kernel shows; None: nothing yet, or it could not be brought there."""
        return self._shown.keys_step if self._shown is not None and not self._unencrypted else None

    def want(self, wanted: Wanted, *, owed: bool = False) -> None:
        """owed: the managers wait for an acknowledgement even if nothing changes."""
        before = self._wanted
        if before is not None:
            wanted = replace(wanted, names=_same_zones(before.names, wanted.names))
        self._owed = self._owed or owed
        if owed or before is None or wanted != before:
            self._wanted = wanted
            self._changed.set()

    def resync(self) -> None:
        """Something may have changed behind our back (dnsd died, a container was restarted): compare with what is really there."""
        self._suspect = True
        self._changed.set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self._mesh.watch(self.resync)
        except MeshError as error:
            log.warning("watch failed, drift is found by resync only error=%s", error)
        resync_at = loop.time() + self._timing.resync_s
        while True:
            try:
                async with asyncio.timeout(self._pause_s(resync_at - loop.time())):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            wanted = self._wanted
            if wanted is None:
                # nothing to compare with yet: the next look is as far away as after one that was made
                resync_at = loop.time() + self._timing.resync_s
                continue
            due = loop.time() >= resync_at or bool(self._retry_s and loop.time() >= self._retry_at)
            if due or self._suspect:
                resync_at = loop.time() + self._timing.resync_s
                await self._apply(wanted, resync=True)
            elif self._tried is None or (wanted.state, wanted.names) != (self._tried.state, self._tried.names):
                await self._apply(wanted, resync=False)
            else:
                self._in_force = self._in_force and wanted
                self._shown = self._shown and wanted
            await self._acknowledge()

    def _pause_s(self, until_resync_s: float) -> float:
        pause_s = until_resync_s
        if self._retry_s:
            pause_s = min(pause_s, self._retry_at - asyncio.get_running_loop().time())
        if self._shown is not None and self._shown.draining:
            pause_s = min(pause_s, self._timing.drain_poll_s)
        return max(0.0, pause_s)

    async def _apply(self, wanted: Wanted, *, resync: bool) -> None:
        """Afterwards `attached` and `errors` tell the truth about `wanted`; it is in force if all of it is."""
        self._suspect = False
        self._tried = wanted
        errors: dict[str, str] = {}
        before = self._in_force
        mesh_due = resync or before is None or wanted.state != before.state
        names_due = resync or before is None or wanted.names != before.names
        mesh_done, names_done = await asyncio.gather(
            self._apply_mesh(wanted, resync) if mesh_due else _nothing(),
            self._apply_names(wanted) if names_due else _nothing(),
            return_exceptions=True,
        )
        broken = False
        for outcome in (mesh_done, names_done):
            if isinstance(outcome, dict):
                errors |= outcome
            elif isinstance(outcome, (MeshError, DnsError, NetworkUnavailable, OSError, ExceptionGroup)):
                broken = True
                errors[type(outcome).__name__] = str(outcome)
            elif outcome is not None:
                raise outcome
        by_task = _reasons(wanted.state, errors, broken)
        if broken:
            # what was in place before still is: nothing was taken away
            attached = self.attached & frozenset(_place(s.id, s.netns) for s in wanted.state.sandboxes)
        else:
            attached = frozenset(_place(s.id, s.netns) for s in wanted.state.sandboxes if s.id not in by_task)
        self._in_force = None if errors else wanted
        self._shown = None if broken else wanted
        self._unencrypted = any(_of_encryption(key) for key in errors)
        self._behind = frozenset(n.id for n in wanted.state.networks if any(_of_network(key, n.id) for key in errors))
        if errors and errors != self.errors:
            log.warning("network_apply incomplete revision=%d errors=%s", wanted.revision, errors)
        self._retry_s = min(max(self._retry_s * 2, self._timing.retry_first_s), self._timing.retry_last_s) if errors else 0.0
        self._retry_at = asyncio.get_running_loop().time() + self._retry_s
        if attached != self.attached or by_task != self.errors:
            self.attached, self.errors = attached, by_task
            self._on_change()

    async def _apply_mesh(self, wanted: Wanted, resync: bool) -> dict[str, str]:
        report = await self._mesh.apply(wanted.state, resync=resync)
        return {str(key): str(reason) for key, reason in report.errors.items()}

    async def _apply_names(self, wanted: Wanted) -> dict[str, str]:
        return dict((await self._names.apply(wanted.names)).failed)

    async def _acknowledge(self) -> None:
        """Only what is shown. Counts of connections come with the revision that made their endpoints drain."""
        wanted = self._shown
        if wanted is None or not (self._owed or wanted.draining):
            return
        counts: dict[str, int] = {}
        if wanted.draining:
            addresses: dict[str, set[str]] = {}
            for network_id, address in wanted.draining:
                addresses.setdefault(network_id, set()).add(address)
            try:
                found = await self._mesh.open_connections(addresses)
            except (MeshError, OSError) as error:
                log.warning("open_connections failed error=%s", error)
            else:
                for place, task_id in wanted.draining.items():
                    counts[task_id] = counts.get(task_id, 0) + found.get(place, 0)
        if self._wanted is not None and self._wanted.revision == wanted.revision:
            self._owed = False
        self._session.applied(wanted.revision, counts, self._behind)


def place(task_id: str, pid: int) -> str:
    """How `attached` names a container's namespaces: a restarted container has others."""
    return _place(task_id, f"/proc/{pid}/ns/net")


def _place(task_id: str, netns: str) -> str:
    return f"{task_id} {netns}"


async def _nothing() -> None:
    return None


def _reasons(state: NodeState, errors: Mapping[str, str], broken: bool) -> dict[str, str]:
    """Sandbox id -> why it isn't whole: its own errors, those of its networks, and those of the node's own namespace."""
    networks: dict[str, set[str]] = {}
    for network in state.networks:
        for endpoint in network.local:
            ids = networks.setdefault(endpoint.netns, set())
            ids.add(network.id)
            if network.encrypted:
                ids |= _ENCRYPTION
    found = {}
    for sandbox in state.sandboxes:
        ids = {sandbox.id, *networks.get(sandbox.netns, ())}
        concerned = {reason for key, reason in errors.items() if broken or _concerns(key, ids, sandbox.netns)}
        if concerned:
            found[sandbox.id] = "; ".join(sorted(concerned))
    return found


def _concerns(key: str, ids: set[str], netns: str) -> bool:
    """mesh names what failed "network:<id>", "endpoint:<network id>/<id>", "sandbox:<id>", "attachment:.../<netns>",
    "namespace:<prefix>-<network id>" or "namespace:<a container's path>"; dnsd gives the bare id of a scope. A port that can't be opened
    keeps nobody waiting.
    """
    kind, _, rest = key.partition(":")
    if kind == "namespace":
        return rest in ("host", netns) or any(rest.endswith(f"-{id}") for id in ids)
    if kind == "attachment":
        return rest.endswith(netns)
    if kind == "endpoint":
        return rest.partition("/")[2].partition("-")[0] in ids
    return (rest or kind) in ids


_ENCRYPTION = frozenset({"encryption", ENCRYPTION})
"""What encrypted networks share: all of the keys, and the namespace of the WireGuard devices."""


def _of_encryption(key: str) -> bool:
    """Of no container in particular."""
    return _concerns(key, set(_ENCRYPTION), "no container")


def _of_network(key: str, id: str) -> bool:
    """Whether the error is one of the network's namespace as a whole: its balancer may show an older picture."""
    kind, _, rest = key.partition(":")
    return (kind == "network" and rest == id) or (kind == "namespace" and rest.endswith(f"-{id}"))


def _same_zones(old: DnsState, new: DnsState) -> DnsState:
    """`new`, with the very objects of `old` where they are equal: the client recognises those and doesn't encode them again."""
    known = {zone.network: zone for zone in old.zones}
    zones = tuple(known[zone.network] if known.get(zone.network) == zone else zone for zone in new.zones)
    return msgspec.structs.replace(new, zones=zones)
