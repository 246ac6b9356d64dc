"""What an overlay network is given when it is new: VNI, subnets, gateways.

Pure: no I/O. Source: Docker's IPAM (subnets cut from the default address pools, the gateway is a subnet's first address) and
libnetwork's option that shows the VNI. A subnet that the user chose is kept as it is; one that we choose overlaps no other overlay
network, no node's underlay address and not the bridge by which containers leave a node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec
from netaddr import AddrFormatError, IPAddress, IPNetwork, IPSet

from orchestrator.errors import ConfigError
from orchestrator.model import Cluster, IPAMConfig, Network, Node

FIRST_VNI = 4097
_LAST_VNI = (1 << 24) - 1
_VNI_OPTION = "com.docker.network.driver.overlay.vxlanid_list"
_DEFAULT_POOLS = ("10.0.0.0/8",)
_DEFAULT_SUBNET_SIZE = 20
# mesh.model.NodeState.gateway_subnet: containers have a link in it besides their overlay ones
_GATEWAY_SUBNET = "172.30.0.0/16"
_NO_SUBNET = (
    "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network: "
    "give it one by --subnet, or remove networks that are no longer used"
)


def is_allocated(network: Network) -> bool:
    configs = network.ipam.config or []
    return bool(network.mesh_vni and configs and all(config.subnet and config.gateway for config in configs))


def allocated(network: Network, cluster: Cluster | None, others: Iterable[Network], nodes: Iterable[Node]) -> Network:
    """The network with everything it needs. ConfigError says why it can't have it now."""
    others = [other for other in others if other.id != network.id]
    vni = network.mesh_vni or _free_vni(others)
    configs = [config for config in network.ipam.config or () if config.subnet]
    taken = [_parse(config.subnet) for other in others for config in other.ipam.config or () if _is_subnet(config.subnet)]
    # a network of IPv6 alone is possible only if the user asks for exactly that
    has_ipv4 = any(_parse(config.subnet).version == 4 for config in configs)
    if not has_ipv4 and not (configs and network.enable_ipv6):
        configs.insert(0, IPAMConfig(subnet=_free_subnet(cluster, taken, nodes)))
    if network.enable_ipv6 and not any(_parse(config.subnet).version == 6 for config in configs):
        configs.append(IPAMConfig(subnet=_free_ula(cluster, vni, taken)))
    return msgspec.structs.replace(
        network,
        mesh_vni=vni,
        options={**(network.options or {}), _VNI_OPTION: str(vni)},
        ipam=msgspec.structs.replace(network.ipam, config=[_with_gateway(config) for config in configs]),
    )


def _free_vni(others: Iterable[Network]) -> int:
    taken = {other.mesh_vni for other in others}
    vni = next((vni for vni in range(FIRST_VNI, _LAST_VNI + 1) if vni not in taken), None)
    if vni is None:
        raise ConfigError("all VXLAN network identifiers are in use")
    return vni


def _free_subnet(cluster: Cluster | None, taken: Iterable[IPNetwork], nodes: Iterable[Node]) -> str:
    """The first subnet of the pools that meets nothing taken."""
    pools = (cluster.default_addr_pool if cluster else None) or _DEFAULT_POOLS
    size = (cluster.subnet_size if cluster else 0) or _DEFAULT_SUBNET_SIZE
    avoided = IPSet([*taken, *_underlay(nodes), _GATEWAY_SUBNET])
    for pool in pools:
        network = _parse(pool)
        if network.version == 4:
            for free in (IPSet([network]) - avoided).iter_cidrs():
                if free.prefixlen <= size:
                    return str(next(free.subnet(size)))
    raise ConfigError(_NO_SUBNET)


def _free_ula(cluster: Cluster | None, vni: int, taken: Iterable[IPNetwork]) -> str:
    """A /64 of the cluster's own RFC 4193 prefix: 40 bits from the cluster's id, the subnet number from the VNI."""
    cluster_bits = int.from_bytes(hashlib.sha256((cluster.id if cluster else "").encode()).digest()[:5], "big")
    prefix = (0xFD << 120) | (cluster_bits << 80)
    avoided = IPSet(network for network in taken if network.version == 6)
    for offset in range(1 << 16):
        subnet = IPNetwork((prefix | (((vni + offset) & 0xFFFF) << 64), 64), version=6)
        if avoided.isdisjoint(IPSet([subnet])):
            return str(subnet)
    raise ConfigError("the cluster's IPv6 prefix has no subnet left")


def _with_gateway(config: IPAMConfig) -> IPAMConfig:
    if config.gateway:
        return config
    network = _parse(config.subnet)
    return msgspec.structs.replace(config, gateway=str(IPAddress(network.first + 1, network.version)))


def _underlay(nodes: Iterable[Node]) -> list[IPNetwork]:
    """The nodes' own addresses; how wide their networks are is not known, so only subnets that hold one of them are avoided."""
    addresses = {address for node in nodes for address in (node.description.mesh_data_addr, node.status.addr) if address}
    return [_parse(address) for address in addresses if _is_subnet(address)]


def _parse(subnet: str) -> IPNetwork:
    try:
        return IPNetwork(subnet).cidr
    except (AddrFormatError, ValueError) as error:
        raise ConfigError(f"'{subnet}' is not a subnet") from error


def _is_subnet(text: str) -> bool:
    try:
        _parse(text)
    except ConfigError:
        return False
    return True
