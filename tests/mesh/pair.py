"""Two nodes of one cluster, each applying its side of the same state."""

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
ADDRESSES = {"a1": 11, "a2": 12, "b1": 21, "b2": 22}
"""Last byte of each container's address, on both networks."""


class Pair:
    """The two nodes and the one cluster state both are given, each its side of it."""

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
        self.containers = dict(ADDRESSES)
        # drawn at random, both of two are seen but for odds of 1e-12; taken in turn, they are seen at once
        bed.draws = 40 if balancer == "nftables" else 4

    def fresh(self, host: str) -> NodeMesh:
        return NodeMesh(self.bed.prefix(host), host_netns=self.bed.path(f"{host}0"))

    def state(self, host: str) -> NodeState:
        other = "b" if host == "a" else "a"
        lb = {"a": 2, "b": 3}

        def network(number: int, ingress: bool, services: tuple[VirtualService, ...]) -> Network:
            return Network(
                id=f"n{number}",
                vni=40 + number,
                subnets=(f"10.9.{number}.0/24",),
                lb_address=f"10.9.{number}.{lb[host]}",
                ingress=ingress,
                local=tuple(LocalEndpoint(n, f"10.9.{number}.{b}", self.bed.path(n)) for n, b in self.containers.items() if n[0] == host),
                remote=(
                    RemoteEndpoint(f"10.9.{number}.{lb[other]}", self.bed.underlay(other), balancer=True),
                    *(RemoteEndpoint(f"10.9.{number}.{b}", self.bed.underlay(other)) for n, b in self.containers.items() if n[0] == other),
                ),
                services=services,
            )

        return NodeState(
            underlay=self.bed.underlay(host),
            networks=(
                network(0, True, ()),
                network(1, False, (VirtualService(VIP, self.backends, self.scheduler), VirtualService(EMPTY_VIP))),
            ),
            sandboxes=tuple(Sandbox(n, self.bed.path(n)) for n in self.containers if n[0] == host),
            published=self.published,
            host_ports=(HostPort("tcp", 9090, 80, "a1"),) if host == "a" else (),
            balancer=self.balancer,
        )

    async def apply(self, *, resync: bool = False) -> None:
        for host, mesh in self.meshes.items():
            report = await mesh.apply(self.state(host), resync=resync)
            assert not report.errors

    async def serve(self, *backends: Backend) -> None:
        self.backends = backends
        await self.apply()
