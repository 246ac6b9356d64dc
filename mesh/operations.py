"""The operations a plan is made of: each one request to the kernel, one batch of rows, or one transaction.

Pure: values only. `mesh.plan` lists them, `mesh.linux.kernel` runs them. Rows of a batch take effect one by one; only LoadNft and
ChangeElements are all or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mesh.nft import MapChange
from mesh.table import Attachment, Bridge, Flow, IpvsService, NftTable, Peer, Policy, Tunnel, WireGuard


@dataclass(frozen=True, slots=True)
class CreateNamespace:
    namespace: str


@dataclass(frozen=True, slots=True)
class DeleteNamespace:
    namespace: str


@dataclass(frozen=True, slots=True)
class PutBridge:
    namespace: str
    bridge: Bridge


@dataclass(frozen=True, slots=True)
class DeleteLink:
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class PutSysctls:
    namespace: str
    values: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class PutTunnel:
    """Create the VXLAN device, or repair it; `replace`: its identity differs, delete the old one first."""

    namespace: str
    tunnel: Tunnel
    replace: bool


@dataclass(frozen=True, slots=True)
class PutAddresses:
    namespace: str
    link: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeleteAddresses:
    namespace: str
    link: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PutNeighbours:
    namespace: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class DeleteNeighbours:
    namespace: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PutTunnels:
    """MAC -> VTEP, tunnel row and bridge row."""

    namespace: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class DeleteTunnels:
    namespace: str
    macs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PutWireGuard:
    """Create the WireGuard device, or make it so."""

    namespace: str
    name: str
    device: WireGuard


@dataclass(frozen=True, slots=True)
class PutPeers:
    """Public key -> peer."""

    namespace: str
    device: str
    rows: tuple[tuple[str, Peer], ...]


@dataclass(frozen=True, slots=True)
class DeletePeers:
    namespace: str
    device: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Attach:
    """Create the veth pair, or add what is missing of it; `replace`: the present one leads elsewhere, delete it first."""

    namespace: str
    attachment: Attachment
    replace: bool


@dataclass(frozen=True, slots=True)
class PutHostRoute:
    namespace: str
    address: str
    link: str


@dataclass(frozen=True, slots=True)
class DeleteHostRoute:
    namespace: str
    address: str
    link: str


@dataclass(frozen=True, slots=True)
class PutIpvs:
    """Make virtual services and their destinations so: (desired, actual)s; actual None: there is nothing."""

    namespace: str
    changes: tuple[tuple[IpvsService, IpvsService | None], ...]


@dataclass(frozen=True, slots=True)
class DeleteIpvs:
    namespace: str
    services: tuple[IpvsService, ...]


@dataclass(frozen=True, slots=True)
class PutIpvsTimeout:
    """Of idle TCP connections, for the whole namespace."""

    namespace: str
    timeout_s: int


@dataclass(frozen=True, slots=True)
class PutPolicies:
    namespace: str
    policies: tuple[Policy, ...]


@dataclass(frozen=True, slots=True)
class DeletePolicies:
    namespace: str
    policies: tuple[Policy, ...]


@dataclass(frozen=True, slots=True)
class LoadNft:
    """One atomic nft transaction: `text` turns `actual` into `desired`."""

    namespace: str
    desired: NftTable | None = field(repr=False)
    actual: NftTable | None = field(repr=False)
    text: str


@dataclass(frozen=True, slots=True)
class ChangeElements:
    """One atomic transaction that changes nothing but elements: `changes` turn `actual` into `desired`."""

    namespace: str
    desired: NftTable = field(repr=False)
    actual: NftTable = field(repr=False)
    changes: tuple[MapChange, ...]


@dataclass(frozen=True, slots=True)
class ForgetFlows:
    """Delete the tracked connections of these kinds: their backend is gone for good."""

    namespace: str
    flows: frozenset[Flow]


@dataclass(frozen=True, slots=True)
class PutEngineAccept:
    namespace: str
    rule: str


@dataclass(frozen=True, slots=True)
class DeleteEngineAccept:
    namespace: str
    rule: str


Op = (
    CreateNamespace
    | DeleteNamespace
    | PutBridge
    | DeleteLink
    | PutSysctls
    | PutTunnel
    | PutAddresses
    | DeleteAddresses
    | PutNeighbours
    | DeleteNeighbours
    | PutTunnels
    | DeleteTunnels
    | PutWireGuard
    | PutPeers
    | DeletePeers
    | Attach
    | PutHostRoute
    | DeleteHostRoute
    | PutIpvs
    | DeleteIpvs
    | PutIpvsTimeout
    | PutPolicies
    | DeletePolicies
    | LoadNft
    | ChangeElements
    | ForgetFlows
    | PutEngineAccept
    | DeleteEngineAccept
)
