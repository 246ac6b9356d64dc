"""What a service's endpoint has to hold: on which networks it has a virtual IP, and whether all of it is there.

Pure: no I/O. Which addresses and ports these are, the allocator decides.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from orchestrator.control.ports import PortClaims, publishes_ingress
from orchestrator.control.subnets import is_allocated
from orchestrator.errors import ConfigError
from orchestrator.model import Endpoint, EndpointSpec, Network, NetworkAttachmentConfig, Service, ServiceSpec
from orchestrator.store.snapshot import Snapshot

# networks of the node itself: nothing of them is ours to allocate
PREDEFINED = frozenset({"host", "bridge", "none"})
NO_INGRESS = "service needs ingress network, but no ingress network is present"


def ingress_of(networks: Iterable[Network]) -> Network | None:
    return next((network for network in networks if network.ingress and is_allocated(network)), None)


def requested(
    of_template: Iterable[NetworkAttachmentConfig] | None, of_service: Iterable[NetworkAttachmentConfig] | None
) -> list[NetworkAttachmentConfig]:
    """The networks of the task template win over the old place, `ServiceSpec.Networks`, as in Swarm."""
    return list(of_template or of_service or ())


def overlay(find: Callable[[str], Network | None], target: str) -> Network | None:
    """An allocated overlay network; None for one of the node's own. ConfigError: it isn't there, or not yet."""
    if target in PREDEFINED:
        return None
    network = find(target)
    if network is None:
        raise ConfigError(f"network {target} not found")
    if network.driver not in ("overlay", ""):
        return None
    if not is_allocated(network):
        raise ConfigError(f"network {network.name} is not allocated yet")
    return network


def networks_with_vip(spec: ServiceSpec, overlay: Callable[[str], Network | None], ingress: Network | None) -> list[Network]:
    """The ingress network first, as Docker lists them. ConfigError: one of them can't be had now."""
    if not wants_vip(spec):
        return []
    wanted: list[Network] = []
    if publishes_ingress(spec):
        if ingress is None:
            raise ConfigError(NO_INGRESS)
        wanted.append(ingress)
    for target in targets(spec):
        network = overlay(target)
        if network is not None and network not in wanted:
            wanted.append(network)
    return wanted


def wants_vip(spec: ServiceSpec) -> bool:
    """On some network, if that is there."""
    if spec.endpoint_spec is not None and spec.endpoint_spec.mode == "dnsrr":
        return False
    return publishes_ingress(spec) or any(target not in PREDEFINED for target in targets(spec))


def targets(spec: ServiceSpec) -> list[str]:
    """Ids of networks, and names of the node's own."""
    return [config.target for config in requested(spec.task_template.networks, spec.networks)]


def is_complete(service: Service, snapshot: Snapshot, ingress: Network | None) -> bool:
    """The endpoint is all that the spec asks for, and its ports are claimed: the allocator has nothing to do for it."""
    had = service.endpoint
    if had.spec != (service.spec.endpoint_spec or EndpointSpec()):
        return False
    try:
        ports, claims = PortClaims(snapshot).allocate(service)
        wanted = networks_with_vip(service.spec, functools.partial(overlay, snapshot.network), ingress)
    except ConfigError:
        return False
    if claims or had.ports != (ports or None) or had.virtual_ips == []:
        return False
    return {vip.network_id for vip in had.virtual_ips or ()} == {network.id for network in wanted}


def of_new_service(spec: ServiceSpec) -> Endpoint:
    """All of it where it takes nothing that could be somebody else's, neither address nor port: that spares a write. Else nothing yet."""
    if wants_vip(spec) or publishes_ingress(spec):
        return Endpoint()
    asked = spec.endpoint_spec or EndpointSpec()
    return Endpoint(spec=asked, ports=asked.ports or None)
