"""Compare desired and actual tables and list the operations that lead from one to the other.

Pure. `plan(t, t) == []`. Make before break: what traffic needs is added before the balancer is told to use it, and taken away after it
was told not to. Any prefix of a plan may run; planning again from there ends in the same place, and no VIP that is live before and
after goes dark between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

from mesh.nft import element_changes, script, without_elements
from mesh.operations import (
    Attach,
    ChangeElements,
    CreateNamespace,
    DeleteAddresses,
    DeleteEngineAccept,
    DeleteHostRoute,
    DeleteIpvs,
    DeleteLink,
    DeleteNamespace,
    DeleteNeighbours,
    DeletePeers,
    DeletePolicies,
    DeleteTunnels,
    ForgetFlows,
    LoadNft,
    Op,
    PutAddresses,
    PutBridge,
    PutEngineAccept,
    PutHostRoute,
    PutIpvs,
    PutIpvsTimeout,
    PutNeighbours,
    PutPeers,
    PutPolicies,
    PutSysctls,
    PutTunnel,
    PutTunnels,
    PutWireGuard,
)
from mesh.table import (
    EMPTY,
    HOST,
    Attachment,
    Flow,
    NamespaceTable,
    NftChain,
    NftTable,
    Tables,
    is_container,
)
from mesh.versioned import difference, set_difference

BATCH = 128
"""Rows of one operation."""


K = TypeVar("K")
V = TypeVar("V")


def plan(desired: Tables, actual: Tables) -> list[Op]:
    """Operations in the order to run them. A namespace missing in `desired` is deleted, with all that is in it; the host's is only
    emptied.

    Containers first, as no balancer may send to one before it can take it, and last, where they no longer have to. Networks in the order
    of their names (so a container's links are numbered by it) and the host last when building, ports being published once they lead
    somewhere; the other way round when taking down.
    """
    ops: list[Op] = []
    containers = [_container(n, desired.get(n, EMPTY), actual.get(n, EMPTY)) for n in sorted({*desired, *actual}) if is_container(n)]
    ops += [op for early, _ in containers for op in early]
    built = sorted(n for n in desired if n != HOST and not is_container(n))
    ops += [CreateNamespace(n) for n in built if n not in actual]
    host = (desired.get(HOST, EMPTY), actual.get(HOST, EMPTY))
    pairs = [(n, desired[n], actual.get(n, EMPTY)) for n in built] + [(HOST, *host)]
    pairs = [(n, d, a) for n, d, a in pairs if d is not a and d != a]
    for namespace, wanted, present in pairs:
        ops += _make(namespace, wanted, present)
    for namespace, wanted, present in pairs:
        ops += _switch(namespace, wanted, present)
    for namespace, wanted, present in reversed(pairs):
        ops += _break(namespace, wanted, present)
    ops += [DeleteNamespace(n) for n in sorted(actual) if n != HOST and n not in desired and not is_container(n)]
    return ops + [op for _, late in containers for op in late]


def _container(path: str, desired: NamespaceTable, actual: NamespaceTable) -> tuple[list[Op], list[Op]]:
    """What to do before and what after everything else."""
    if desired.netns_id and desired.netns_id != actual.netns_id:
        # the path means another namespace today: nothing of what we knew is in it
        actual = EMPTY
    early: list[Op] = []
    late: list[Op] = []
    # the table, by which a container is known to have something of ours, is made first and goes last
    if gone := sorted(actual.policies - desired.policies):
        late.append(DeletePolicies(path, tuple(gone)))
    first = _joined(desired.nft, actual.nft)
    early += _load(path, first, actual.nft)
    late += _load(path, desired.nft, first)
    if fresh := sorted(desired.policies - actual.policies):
        early.append(PutPolicies(path, tuple(fresh)))
    return early, late


def _joined(desired: NftTable | None, actual: NftTable | None) -> NftTable | None:
    """What takes all that either of them takes, as far as that can be made: elements always, rules unless there are new ones, too."""
    if desired is None or actual is None:
        return desired or actual
    same = all(set(chain.rules) <= set(actual.chains.get(name, NftChain()).rules) for name, chain in desired.chains.items())
    maps = dict(actual.maps) if same else {}
    for name, wanted in desired.maps.items():
        present = actual.maps.get(name, wanted)
        if (present.key_type, present.value_type) == (wanted.key_type, wanted.value_type):
            wanted = replace(wanted, elements={**present.elements, **wanted.elements})
        maps[name] = wanted
    return replace(desired, chains=actual.chains if same else desired.chains, maps=maps)


def _make(namespace: str, desired: NamespaceTable, actual: NamespaceTable) -> Iterator[Op]:
    if desired.bridge and desired.bridge != actual.bridge:
        yield PutBridge(namespace, desired.bridge)
    replaced = _replaced(desired, actual)
    # settings of a link and routes through it go with it
    wrong = {k: v for k, v in desired.sysctls.items() if actual.sysctls.get(k) != v or any(f".conf.{name}." in k for name in replaced)}
    # those of a link that is made later (the uplink) wait for it
    early = {k: v for k, v in wrong.items() if not _is_of_attachment(k, desired)}
    if early:
        yield PutSysctls(namespace, tuple(sorted(early.items())))
    for name, device in sorted(desired.wireguards.items()):
        if actual.wireguards.get(name) != device:
            yield PutWireGuard(namespace, name, device)
    yield from _peers(_changed(desired.peers, actual.peers), lambda device, part: PutPeers(namespace, device, part))
    if desired.tunnel and desired.tunnel != actual.tunnel:
        other = actual.tunnel is not None and actual.tunnel.identity != desired.tunnel.identity
        yield PutTunnel(namespace, desired.tunnel, other)
        if other:
            # its rows went with it
            actual = _without_tunnel_rows(actual)
    link = desired.bridge.name if desired.bridge else ""
    yield from _batches(sorted(set_difference(desired.addresses, actual.addresses)[0]), lambda part: PutAddresses(namespace, link, part))
    # The device answers ARP only for what it can also deliver, so the neighbour comes after the rows that deliver.
    yield from _batches(_changed(desired.tunnels, actual.tunnels), lambda part: PutTunnels(namespace, part))
    yield from _batches(_changed(desired.neighbours, actual.neighbours), lambda part: PutNeighbours(namespace, part))
    for name, attachment in sorted(desired.attachments.items()):
        if actual.attachments.get(name) != attachment:
            yield Attach(namespace, attachment, name in replaced and name in actual.attachments)
    late = {k: v for k, v in wrong.items() if k not in early}
    if late:
        yield PutSysctls(namespace, tuple(sorted(late.items())))
    for address, via in sorted(desired.host_routes.items()):
        if actual.host_routes.get(address) != via or via in replaced:
            yield PutHostRoute(namespace, address, via)
    for rule in sorted(desired.engine_accepts - actual.engine_accepts):
        yield PutEngineAccept(namespace, rule)
    if desired.ipvs_timeout_s and desired.ipvs_timeout_s != actual.ipvs_timeout_s:
        yield PutIpvsTimeout(namespace, desired.ipvs_timeout_s)
    changed = [(desired.ipvs[mark], actual.ipvs.get(mark)) for mark in sorted(difference(desired.ipvs, actual.ipvs)[0])]
    yield from _batches(changed, lambda part: PutIpvs(namespace, part))


def _switch(namespace: str, desired: NamespaceTable, actual: NamespaceTable) -> Iterator[Op]:
    for wanted, present in ((desired.frames, actual.frames), (desired.nft, actual.nft)):
        yield from _load(namespace, wanted, present)
    gone = {*set_difference(desired.flows, actual.flows)[1], *_refused_until_now(desired, actual)}
    if gone:
        yield ForgetFlows(namespace, frozenset(gone))


def _load(namespace: str, desired: NftTable | None, actual: NftTable | None) -> Iterator[Op]:
    if desired is actual:
        return
    if desired is not None and actual is None:
        # nobody uses a table that isn't there: first the rules, then the elements, for which there is a faster way
        actual = without_elements(desired)
        yield LoadNft(namespace, actual, None, script(actual, None))
    changes = element_changes(desired, actual)
    if changes is None:
        if text := script(desired, actual):
            yield LoadNft(namespace, desired, actual, text)
    elif changes:
        assert desired is not None and actual is not None
        yield ChangeElements(namespace, desired, actual, changes)


def _break(namespace: str, desired: NamespaceTable, actual: NamespaceTable) -> Iterator[Op]:
    gone = [actual.ipvs[mark] for mark in sorted(difference(desired.ipvs, actual.ipvs)[1])]
    yield from _batches(gone, lambda part: DeleteIpvs(namespace, part))
    for rule in sorted(actual.engine_accepts - desired.engine_accepts):
        yield DeleteEngineAccept(namespace, rule)
    # a route through a link that was replaced went with it
    replaced = _replaced(desired, actual)
    for address, via in sorted(actual.host_routes.items()):
        if address not in desired.host_routes and via not in replaced:
            yield DeleteHostRoute(namespace, address, via)
    for name in sorted(actual.attachments.keys() - desired.attachments.keys()):
        yield DeleteLink(namespace, name)
    gone_peers = [(key, None) for key in sorted(difference(desired.peers, actual.peers)[1]) if key[0] in desired.wireguards]
    yield from _peers(gone_peers, lambda device, part: DeletePeers(namespace, device, tuple(key for key, _ in part)))
    for name in sorted(actual.wireguards.keys() - desired.wireguards.keys()):
        yield DeleteLink(namespace, name)
    if desired.tunnel and actual.tunnel and actual.tunnel.identity != desired.tunnel.identity:
        actual = _without_tunnel_rows(actual)
    yield from _batches(sorted(difference(desired.neighbours, actual.neighbours)[1]), lambda part: DeleteNeighbours(namespace, part))
    yield from _batches(sorted(difference(desired.tunnels, actual.tunnels)[1]), lambda part: DeleteTunnels(namespace, part))
    if actual.bridge and not desired.bridge:
        yield DeleteLink(namespace, actual.bridge.name)
    elif actual.bridge:
        link = actual.bridge.name
        yield from _batches(
            sorted(set_difference(desired.addresses, actual.addresses)[1]), lambda part: DeleteAddresses(namespace, link, part)
        )


def _replaced(desired: NamespaceTable, actual: NamespaceTable) -> set[str]:
    """Links that are made anew."""
    return {
        name for name, a in desired.attachments.items() if name not in actual.attachments or not _same_link(a, actual.attachments[name])
    }


def _same_link(desired: Attachment, actual: Attachment) -> bool:
    return (desired.netns_id, desired.mac) == (actual.netns_id, actual.mac)


def _without_tunnel_rows(table: NamespaceTable) -> NamespaceTable:
    return replace(table, tunnels={}, neighbours={})


def _is_of_attachment(sysctl: str, table: NamespaceTable) -> bool:
    return any(f".conf.{name}." in sysctl for name in table.attachments)


def _refused_until_now(desired: NamespaceTable, actual: NamespaceTable) -> set[Flow]:
    """Untranslated UDP flows to ports that are published only now: they would stick to the refusal they got before."""
    fresh: set[Flow] = set()
    for name in ("published", "host_ports"):
        wanted = desired.nft.maps.get(name) if desired.nft else None
        present = actual.nft.maps.get(name) if actual.nft else None
        before = present.elements if present else {}
        for key in difference(wanted.elements, before)[0] if wanted else ():
            protocol, port = key.split(" . ")
            if protocol == "17" and key not in before:
                fresh.add(Flow("", (17, int(port)), ""))
    return fresh


def _changed(desired: Mapping[K, V], actual: Mapping[K, V]) -> list[tuple[K, V]]:
    return sorted((k, desired[k]) for k in difference(desired, actual)[0])


def _peers(rows: list[tuple[tuple[str, str], V]], make: Callable[[str, tuple[tuple[str, V], ...]], Op]) -> Iterator[Op]:
    """Rows by (device, key): an operation is about one device."""
    for device in sorted({device for (device, _), _ in rows}):
        yield from _batches([(key, row) for (of, key), row in rows if of == device], partial(make, device))


def _batches(items: list[V], make: Callable[[tuple[V, ...]], Op]) -> Iterator[Op]:
    for start in range(0, len(items), BATCH):
        yield make(tuple(items[start : start + BATCH]))
