"""What only the machine knows and the tables depend on.

Pure: filled in by `mesh.linux.kernel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mesh.errors import ConfigError, NamespaceGone


@dataclass(frozen=True, slots=True)
class Facts:
    """`netns`: inode by path, None where it is gone. `gateways`: gateway link name -> address it has now."""

    underlay_mtu: int
    host_id: int
    netns: Mapping[str, int | None]
    directory: str = "/run/netns"
    gateways: Mapping[str, str] = field(default_factory=dict)
    has_bridge_netfilter: bool = False
    has_ipv6: bool = True
    has_docker_user: bool = False
    has_wireguard: bool = False

    def inode_of(self, path: str) -> int:
        """Of a container's namespace. Raises NamespaceGone, or ConfigError when it is the node's own."""
        inode = self.netns.get(path)
        if inode is None:
            raise NamespaceGone(path)
        if inode == self.host_id:
            raise ConfigError(path, "is the node's own network namespace, not a container's")
        return inode
