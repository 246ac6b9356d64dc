"""The nodes of one cluster, each applying its side of the same state."""

from __future__ import annotations

from mesh import (
    Backend,
    Balancer,
    HostPort,
    IpvsScheduler,
    LocalEndpoint,
    Network,
    NodeMesh,
    NodeState,
    PublishedPort,
    RemoteEndpoint,
    Sandbox,
    VirtualService,
)
from tests.mesh.bed import Bed

VIP, EMPTY_VIP = "10.9.1.100", "10.9.1.101"
ADDRESSES = {"a1": 11, "a2": 12, "b1": 21, "b2": 22, "c1": 31}
"""Last byte of each container's address, on both networks; the name begins with its host's."""

LB = {"a": 2, "b": 3, "c": 4}
"""Last byte of each host's LB addresses."""


class Pair:
    """Two hosts of the bed, or all three, and the one cluster state that all are given, each its side of it."""

    def __init__(self, bed: Bed, balancer: Balancer = "nftables") -> None:
        self.bed = bed
        self.balancer = balancer
        # what is applied stays, and so do the meshes that know of it
        self.meshes = {host: bed.meshes.get(host) or bed.meshes.setdefault(host, self.fresh(host)) for host in bed.hosts}
        self.backends = (Backend("10.9.1.11"), Backend("10.9.1.21"))
        self.published = (
            PublishedPort("tcp", 8080, 80, (Backend("10.9.0.12"), Backend("10.9.0.22"))),
            PublishedPort("udp", 5353, 53, (Backend("10.9.0.22"),)),
        )
        self.scheduler: IpvsScheduler = "rr"
        self.affinity_s = 0
        self.containers = {name: last for name, last in ADDRESSES.items() if name[0] in bed.hosts}
        self.more: dict[str, tuple[Network, ...]] = {}
        # drawn at random, both of two are seen but for odds of 1e-12; taken in turn, they are seen at once
        bed.draws = 40 if balancer == "nftables" else 4

    def fresh(self, host: str) -> NodeMesh:
        return NodeMesh(self.bed.prefix(host), host_netns=self.bed.path(f"{host}0"))

    def state(self, host: str) -> NodeState:
        return NodeState(
            underlay=self.bed.underlay(host),
            networks=(
                self.network(host, 0, ingress=True),
                self.network(
                    host, 1, services=(VirtualService(VIP, self.backends, self.scheduler, self.affinity_s), VirtualService(EMPTY_VIP))
                ),
                *self.more.get(host, ()),
            ),
            sandboxes=tuple(Sandbox(n, self.bed.path(n)) for n in self.containers if n[0] == host),
            published=self.published,
            host_ports=(HostPort("tcp", 9090, 80, "a1"),) if host == "a" else (),
            balancer=self.balancer,
        )

    def network(self, host: str, number: int, *, ingress: bool = False, services: tuple[VirtualService, ...] = ()) -> Network:
        subnet = f"10.9.{number}"
        there = [h for h in self.bed.hosts if h != host]
        return Network(
            id=f"n{number}",
            vni=40 + number,
            subnets=(f"{subnet}.0/24",),
            lb_address=f"{subnet}.{LB[host]}",
            ingress=ingress,
            local=tuple(LocalEndpoint(n, f"{subnet}.{b}", self.bed.path(n)) for n, b in self.containers.items() if n[0] == host),
            remote=(
                *(RemoteEndpoint(f"{subnet}.{LB[h]}", self.bed.underlay(h), balancer=True) for h in there),
                *(RemoteEndpoint(f"{subnet}.{b}", self.bed.underlay(n[0])) for n, b in self.containers.items() if n[0] in there),
            ),
            services=services,
        )

    async def apply(self, *, resync: bool = False) -> None:
        for host, mesh in self.meshes.items():
            report = await mesh.apply(self.state(host), resync=resync)
            assert not report.errors

    async def serve(self, *backends: Backend) -> None:
        self.backends = backends
        await self.apply()
