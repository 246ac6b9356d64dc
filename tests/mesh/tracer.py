"""Walk a packet through rendered tables, as the kernels of all nodes would: rules, IPVS, forwarding rows, a container's rules.

Pure. A strict reader of the rules we write: text it does not know fails the test. Random draws are explored, not drawn: a walk has
every outcome that can be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from ipaddress import ip_address, ip_network

from mesh.address import mac
from mesh.ipvs import MASQUERADED
from mesh.table import BRIDGE, EMPTY, HOST, UPLINK, NamespaceTable, NftTable, Tables

PROTOCOLS = {"tcp": "6", "udp": "17", "sctp": "132"}


class UnknownRule(Exception):
    """The tracer must learn it, or it is a mistake."""


@dataclass(frozen=True, slots=True)
class Packet:
    source: str
    destination: str
    protocol: str
    port: int
    iif: str = ""
    oif: str = ""
    frame: str = ""
    mark: int = 0
    tracked: bool = True
    translated: bool = False
    local: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """`server`: the container (its path) that takes it, "refused" or "dropped". What the server sees: the client's address and its own
    port. `back`: the answer reaches the client: the way it came when it was translated on it, else by the container's own means."""

    server: str
    source: str = ""
    port: int = 0
    back: bool = False


@dataclass(slots=True)
class Node:
    name: str
    vtep: str
    tables: Tables


# ---------------------------------------------------------------- rules

Verdict = str | None
Step = Callable[[Packet, NftTable, "re.Match[str]"], list[tuple[Packet, Verdict]]]
NEXT = "next"
"""The rule does not match."""


def _set(text: str) -> list[str]:
    return [part.strip().strip('"') for part in text.strip("{} ").split(",")]


def _key(p: Packet, text: str) -> str:
    fields = {"saddr": p.source, "daddr": p.destination, "mark": str(p.mark), "l4proto": PROTOCOLS[p.protocol], "dport": str(p.port)}
    return " . ".join(fields[part.split()[-1]] for part in text.split(" . "))


def _when(truth: bool) -> Step:
    return lambda p, _t, _m: [(p, None if truth else NEXT)]


def _address(p: Packet, _t: NftTable, m: re.Match[str]) -> list[tuple[Packet, Verdict]]:
    value = p.source if m["field"] == "saddr" else p.destination
    if (":" in value) != (m["ip"] == "ip6"):
        return [(p, NEXT)]
    inside = any(ip_address(value) in ip_network(net) for net in _set(m["value"]))
    return [(p, None if inside != bool(m["not"]) else NEXT)]


def _link(p: Packet, _t: NftTable, m: re.Match[str]) -> list[tuple[Packet, Verdict]]:
    value = p.iif if m["field"] == "iifname" else p.oif
    return [(p, None if any(fnmatch(value, name) for name in _set(m["value"])) != bool(m["not"]) else NEXT)]


def _map(use: Callable[[Packet, str], tuple[Packet, Verdict]]) -> Step:
    def step(p: Packet, t: NftTable, m: re.Match[str]) -> list[tuple[Packet, Verdict]]:
        if ("ip6 " in m["key"]) != (":" in p.destination) and "addr" in m["key"]:
            return [(p, NEXT)]
        value = t.maps[m["map"]].elements.get(_key(p, m["key"]))
        return [(p, NEXT) if value is None else use(p, value)]

    return step


def _dnat(p: Packet, value: str) -> tuple[Packet, Verdict]:
    address, _, port = value.partition(" . ")
    return replace(p, destination=address, port=int(port) if port else p.port, translated=True), "accept"


def _draw(p: Packet, _t: NftTable, m: re.Match[str]) -> list[tuple[Packet, Verdict]]:
    return [(replace(p, mark=number), None) for number in range(int(m["count"]))]


def _by_source(p: Packet, _t: NftTable, m: re.Match[str]) -> list[tuple[Packet, Verdict]]:
    return [(replace(p, mark=int(ip_address(p.source)) % int(m["count"])), None)]


def _compare(value: int, m: re.Match[str]) -> Verdict:
    return None if ((value & int(m["mask"], 0)) == 0) == (m["is"] == "==") else NEXT


_KEY = r"(?P<key>(?:ip6? [sd]addr|meta l4proto|th dport|meta mark)(?: \. (?:ip6? [sd]addr|meta l4proto|th dport|meta mark))*)"
_VALUE = r"(?P<value>\{[^}]*\}|\S+)"
_STEPS: list[tuple[str, Step]] = [
    (r'(?P<field>[io]ifname) (?P<not>!= )?(?P<value>\{[^}]*\}|"[^"]*")', _link),
    (rf"meta mark set {_KEY} map @(?P<map>\w+)", _map(lambda p, v: (replace(p, mark=int(v)), None))),
    (r"meta mark set numgen random mod (?P<count>\d+)", _draw),
    (r"meta mark set jhash ip6? saddr mod (?P<count>\d+) seed \S+", _by_source),
    (r"meta mark set meta mark or (?P<bits>\S+)", lambda p, _t, m: [(replace(p, mark=p.mark | int(m["bits"], 0)), None)]),
    (r"meta mark & (?P<mask>\S+) (?P<is>==|!=) 0", lambda p, _t, m: [(p, _compare(p.mark, m))]),
    (r"meta mark != 0", lambda p, _t, _m: [(p, None if p.mark else NEXT)]),
    (r"meta l4proto (?P<value>\{[^}]*\})", lambda p, _t, m: [(p, None if PROTOCOLS[p.protocol] in _set(m["value"]) else NEXT)]),
    (r"meta nfproto ipv(?P<v>[46])", lambda p, _t, m: [(p, None if (":" in p.source) == (m["v"] == "6") else NEXT)]),
    (rf"{_KEY} vmap @(?P<map>\w+)", _map(lambda p, v: (p, v))),
    (rf"(?:dnat ip6? (?:addr \. port )?to) {_KEY} map @(?P<map>\w+)", _map(_dnat)),
    (r"dnat ip6? to (?P<value>\S+)", lambda p, _t, m: [_dnat(p, m["value"])]),
    (r"snat ip6? to (?P<value>\S+)", lambda p, _t, m: [(replace(p, source=m["value"]), "accept")]),
    (rf"ether daddr set {_KEY} map @(?P<map>\w+)", _map(lambda p, v: (replace(p, frame=v), None))),
    (r"ether daddr (?P<value>\S+)", lambda p, _t, m: [(p, None if p.frame == m["value"] else NEXT)]),
    (r"ether type ip", lambda p, _t, _m: [(p, None if ":" not in p.source else NEXT)]),
    (rf"(?P<ip>ip6?) (?P<field>[sd]addr) (?P<not>!= )?{_VALUE}", _address),
    (r"fib daddr type local", lambda p, _t, _m: [(p, None if p.local else NEXT)]),
    (r"ct status & dnat (?P<is>==|!=) 0", lambda p, _t, m: [(p, None if p.translated == (m["is"] == "!=") else NEXT)]),
    (r"ct status dnat", lambda p, _t, _m: [(p, None if p.translated else NEXT)]),
    (r"ct direction original", _when(True)),
    (r"ct direction reply", _when(False)),
    (r"ct state established,related", _when(False)),
    (r"tcp flags & \(syn \| rst\) == syn tcp option maxseg size set rt mtu", _when(True)),
    (r"notrack", lambda p, _t, _m: [(replace(p, tracked=False), None)]),
    (r"(?P<verdict>accept|drop|goto \S+)", lambda p, _t, m: [(p, m["verdict"])]),
]
_COMPILED = [(re.compile(pattern + r"(?: |$)"), step) for pattern, step in _STEPS]


def _rule(p: Packet, table: NftTable, text: str) -> list[tuple[Packet, Verdict]]:
    """Outcomes of one rule: the packet as it left it, and a verdict, NEXT where it did not match, None at its end."""
    if not text:
        return [(p, None)]
    for pattern, step in _COMPILED:
        if found := pattern.match(text):
            outcomes = step(p, table, found)
            rest = text[found.end() :]
            return [o for after, verdict in outcomes for o in ([(after, verdict)] if verdict else _rule(after, table, rest))]
    raise UnknownRule(text)


def _chain(p: Packet, table: NftTable, name: str) -> Iterator[tuple[Packet, bool]]:
    """The packet at the chain's end, and whether it was dropped."""
    waiting = [p]
    for rule in table.chains[name].rules:
        following: list[Packet] = []
        for packet in waiting:
            for after, verdict in _rule(packet, table, rule.text):
                if verdict in ("accept", "drop"):
                    yield after, verdict == "drop"
                elif verdict and verdict.startswith("goto "):
                    yield from _chain(after, table, verdict.removeprefix("goto "))
                else:
                    following.append(packet if verdict == NEXT else after)
        waiting = following
    yield from ((packet, False) for packet in waiting)


def hook(p: Packet, table: NftTable | None, point: str) -> Iterator[tuple[Packet, bool]]:
    """Through all base chains of the hook, by priority. What is not tracked passes no nat chain."""
    if table is None:
        yield p, False
        return
    pattern = re.compile(rf"type (\w+) hook {point} priority (-?\d+);")
    chains = sorted((int(m[2]), m[1], name) for name, c in table.chains.items() if (m := pattern.match(c.hook)))
    outcomes = [(p, False)]
    for _priority, kind, name in chains:
        passing = [o for packet, dropped in outcomes for o in ([(packet, dropped)] if dropped else _nat_or_all(packet, table, kind, name))]
        outcomes = passing
    yield from outcomes


def _nat_or_all(p: Packet, table: NftTable, kind: str, name: str) -> Iterator[tuple[Packet, bool]]:
    return iter([(p, False)]) if kind == "nat" and not p.tracked else _chain(p, table, name)


# ---------------------------------------------------------------- walks


class Tracer:
    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.nodes = nodes

    def from_container(self, node: str, network: str, packet: Packet) -> set[Outcome]:
        """A container of `network` sends to an address of its subnet."""
        table = self._table(node, network)
        if packet.destination not in _own(table):
            return set(self._deliver(node, network, packet, packet.destination))
        return set(self._balance(node, network, replace(packet, iif=BRIDGE)))

    def from_outside(self, node: str, ingress: str, packet: Packet) -> set[Outcome]:
        """Somebody calls one of the node's addresses."""
        return set(self._published(node, ingress, replace(packet, iif="eth0", local=True), "prerouting"))

    def from_node(self, node: str, ingress: str, packet: Packet) -> set[Outcome]:
        return set(self._published(node, ingress, replace(packet, local=True), "output"))

    def _published(self, node: str, ingress: str, packet: Packet, point: str) -> Iterator[Outcome]:
        host = self.nodes[node].tables[HOST]
        for translated, dropped in hook(packet, host.nft, point):
            uplink = host.host_routes.get(translated.destination)
            if dropped or uplink is None:
                yield Outcome("dropped" if dropped else "refused")
                continue
            leaving = replace(translated, oif=uplink)
            forwarded = hook(leaving, host.nft, "forward") if point == "prerouting" else [(leaving, False)]
            for passed, stopped in forwarded:
                for sent, gone in hook(passed, host.nft, "postrouting"):
                    if stopped or gone:
                        yield Outcome("dropped")
                    else:
                        fresh = replace(sent, iif=UPLINK, oif="", mark=0, translated=False, tracked=True)
                        yield from self._balance(node, ingress, fresh)

    def _balance(self, node: str, network: str, packet: Packet) -> Iterator[Outcome]:
        table = self._table(node, network)
        for p, dropped in hook(packet, table.nft, "prerouting"):
            if dropped:
                yield Outcome("dropped")
            elif p.destination not in _own(table):
                yield from self._send(node, network, replace(p, oif=BRIDGE), p.destination)
            elif (service := table.ipvs.get(p.mark)) is None or not p.mark:
                yield Outcome("refused")
            else:
                for d in service.destinations:
                    if d.weight:
                        assert d.masqueraded == bool(p.mark & MASQUERADED) == p.tracked
                        changed = replace(p, destination=d.address, port=d.port or p.port, translated=True) if d.masqueraded else p
                        yield from self._send(node, network, replace(changed, oif=BRIDGE), d.address)

    def _send(self, node: str, network: str, packet: Packet, to: str) -> Iterator[Outcome]:
        for p, dropped in hook(packet, self._table(node, network).nft, "postrouting"):
            if dropped:
                yield Outcome("dropped")
            else:
                yield from self._deliver(node, network, p, to)

    def _deliver(self, node: str, network: str, packet: Packet, to: str) -> Iterator[Outcome]:
        """A frame to the MAC of `to`: by a local link or through the tunnel."""
        frame = mac(to)
        place = self._place(node, network, frame)
        if place is None:
            yield Outcome("dropped")
            return
        there, path = place
        if not path:
            yield Outcome("refused")
            return
        taken = replace(packet, frame=frame, iif="eth0", oif="", mark=0, translated=False, tracked=True)
        for p, dropped in hook(taken, self.nodes[there].tables.get(path, EMPTY).nft, "prerouting"):
            if dropped or p.destination != to:
                yield Outcome("dropped")
            else:
                yield Outcome(path, p.source, p.port, self._answered(node, there, network, path, packet, p))

    def _place(self, node: str, network: str, frame: str) -> tuple[str, str] | None:
        """(node, path of the container with that MAC, "" for the bridge itself); None: nowhere."""
        table = self._table(node, network)
        if path := _container(table, frame):
            return node, path
        if table.bridge and table.bridge.mac == frame:
            return node, ""
        vtep = table.tunnels.get(frame)
        there = next((name for name, n in self.nodes.items() if n.vtep == vtep), None)
        if there is None or there == node:
            return None
        far = self._table(there, network)
        return (there, _container(far, frame)) if _container(far, frame) or (far.bridge and far.bridge.mac == frame) else None

    def _answered(self, node: str, there: str, network: str, path: str, sent: Packet, taken: Packet) -> bool:
        """Whether the server's answer comes to `node`'s client. `sent`: as it left the balancer; `taken`: as the server has it."""
        table = self._table(there, network)
        link = next(a for a in table.attachments.values() if a.netns == path)
        on_link = [ip_network(cidr, strict=False) for cidr in link.addresses] + [ip_network(r) for r in link.routes]
        if any(ip_address(taken.source) in net for net in on_link):
            # an LB address: its node undoes its translation; a client on the network: it gets the address back that it called
            return self._place(there, network, mac(taken.source)) is not None
        policies = self.nodes[there].tables.get(path, EMPTY).policies
        if link.reply_via is None or not any(p.source == taken.destination for p in policies):
            return False
        if sent.protocol == "udp" and not any(p.udp_port == taken.port for p in policies):
            return False
        answer = replace(taken, source=sent.destination, destination=taken.source, iif="mv-x", frame=mac(link.reply_via))
        ((on_bridge, _),) = hook(answer, table.frames, "prerouting")
        place = self._place(there, network, on_bridge.frame)
        if place != (node, ""):
            return False
        leaving = replace(on_bridge, iif=BRIDGE, oif=UPLINK, port=0)
        home = self._table(node, network)
        (came, _), *_ = hook(leaving, home.nft, "prerouting")
        return all(not dropped for _, dropped in hook(came, home.nft, "forward"))

    def _table(self, node: str, network: str) -> NamespaceTable:
        return self.nodes[node].tables.get(f"mesh-{network}", EMPTY)


def _own(table: NamespaceTable) -> set[str]:
    return {cidr.partition("/")[0] for cidr in table.addresses}


def _container(table: NamespaceTable, frame: str) -> str:
    return next((a.netns for a in table.attachments.values() if a.mac == frame and a.bridge == BRIDGE), "")
