"""Links: bridges, the VXLAN device, veth pairs; and the routes through them.

Edge. Source: rtnetlink(7), linux/if_link.h. Requests are encoded by pyroute2 (its classes only: its sockets need an event
loop of their own). Every function acts in the namespace whose socket it is given.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from mesh.errors import KernelError
from mesh.linux.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Netlink, attributes
from mesh.table import TUNNEL, Attachment, Bridge, Tunnel, WireGuard

_RTM_NEWLINK: Final = 16
_RTM_DELLINK: Final = 17
_RTM_GETLINK: Final = 18
_RTM_NEWROUTE: Final = 24
_RTM_DELROUTE: Final = 25
_RTM_GETROUTE: Final = 26
_IFF_UP: Final = 1
_IFINFOMSG = struct.Struct("=BxHiII")
_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_LINK: Final = 5
_IFLA_MASTER: Final = 10
_IFLA_LINKINFO: Final = 18
_IFLA_ALIAS: Final = 20
_INFO_KIND: Final = 1
_INFO_DATA: Final = 2
_INFO_SLAVE_KIND: Final = 4
_INFO_SLAVE_DATA: Final = 5
_BRPORT_MODE: Final = 4
_VXLAN_ID: Final = 1
_VXLAN_LOCAL: Final = 4
_VXLAN_PORT: Final = 15
_VXLAN_LOCAL6: Final = 17
_RT_TABLE_COMPAT: Final = 252
RT_TABLE_MAIN: Final = 254
RT_TABLE_ANSWERS: Final = 0x6D61
"""The table in a container that answers of published ports are routed by."""

_RTMSG = struct.Struct("=BBBBBBBBI")
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PREFSRC: Final = 7
_RTA_TABLE: Final = 15
_RTPROT_STATIC: Final = 4
_RTPROT_KERNEL: Final = 2
_SCOPE_UNIVERSE: Final = 0
_SCOPE_LINK: Final = 253
_RTN_UNICAST: Final = 1
_RTNH_F_ONLINK: Final = 4


@dataclass(frozen=True, slots=True)
class Link:
    """What the kernel says of one link. `peer` is the other end's index (veth). Fields that don't apply are 0, "" or False."""

    index: int
    name: str
    alias: str
    kind: str
    mac: str
    mtu: int
    up: bool
    master: int
    peer: int
    hairpin: bool
    vni: int
    local: str
    port: int


@dataclass(frozen=True, slots=True)
class Route:
    """`destination` as CIDR ("" = default), `via` "" = on-link. `source`: the address of packets that have none yet, "" = the kernel's
    choice."""

    destination: str
    via: str
    index: int
    table: int = RT_TABLE_MAIN
    source: str = ""


def links(netlink: Netlink) -> dict[str, Link]:
    """All links of the namespace by name. Parsed by hand: pyroute2 takes 0.7 ms for a bridge port, for it decodes all its 60 attributes."""
    answers = netlink.dump("list links", _RTM_GETLINK, _IFINFOMSG.pack(0, 0, 0, 0, 0))
    found = (parse(payload) for kind, payload in answers if kind == _RTM_NEWLINK)
    return {link.name: link for link in found}


def parse(payload: bytes) -> Link:
    """One link message without its netlink header."""
    _family, _type, index, flags, _change = _IFINFOMSG.unpack_from(payload)
    values = attributes(payload[_IFINFOMSG.size :])
    information = attributes(values.get(_IFLA_LINKINFO, b""))
    kind = _string(information.get(_INFO_KIND, b""))
    own = attributes(information.get(_INFO_DATA, b"")) if kind == "vxlan" else {}
    local = own.get(_VXLAN_LOCAL) or own.get(_VXLAN_LOCAL6)
    port = attributes(information.get(_INFO_SLAVE_DATA, b"")) if _string(information.get(_INFO_SLAVE_KIND, b"")) == "bridge" else {}
    return Link(
        index=index,
        name=_string(values[_IFLA_IFNAME]),
        alias=_string(values.get(_IFLA_ALIAS, b"")),
        kind=kind,
        mac=values.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(values.get(_IFLA_MTU)),
        up=bool(flags & _IFF_UP),
        master=_number(values.get(_IFLA_MASTER)),
        peer=_number(values.get(_IFLA_LINK)),
        hairpin=port.get(_BRPORT_MODE, b"\0") != b"\0",
        vni=_number(own.get(_VXLAN_ID)),
        local=str(ip_address(local)) if local else "",
        port=int.from_bytes(own.get(_VXLAN_PORT, b""), "big"),
    )


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode()


def _number(value: bytes | None) -> int:
    return int.from_bytes(value, sys.byteorder) if value else 0


def put_bridge(netlink: Netlink, bridge: Bridge) -> None:
    present = links(netlink).get(bridge.name)
    if present is not None and present.kind != "bridge":
        raise KernelError(f"create bridge {bridge.name}", errno.EEXIST, "a link of another kind has its name")
    if present is None:
        _new(netlink, f"create bridge {bridge.name}", {"IFLA_IFNAME": bridge.name, "IFLA_LINKINFO": _kind("bridge")})
    # set after creation: only then does the kernel keep the MTU and the MAC whatever ports come and go
    _set(netlink, bridge.name, {"IFLA_ADDRESS": bridge.mac, "IFLA_MTU": bridge.mtu})


def create_tunnel(host: Netlink, tunnel: Tunnel, namespace: int) -> None:
    """Create the device straight in the namespace of that descriptor; its underlay socket stays in the namespace of `host`."""
    six = ip_address(tunnel.local).version == 6
    settings: dict[str, object] = {
        "IFLA_VXLAN_ID": tunnel.vni,
        "IFLA_VXLAN_LOCAL6" if six else "IFLA_VXLAN_LOCAL": tunnel.local,
        "IFLA_VXLAN_PORT": tunnel.port,
        "IFLA_VXLAN_LEARNING": 0,
        "IFLA_VXLAN_PROXY": 1,
        # the inner packet has its own checksum, and the underlay's frame too
        "IFLA_VXLAN_UDP_CSUM": 0,
    }
    if six:
        # only where it matters: devices with other flags can't share the UDP port, and 4789 has other users (Docker's own overlays)
        settings |= {"IFLA_VXLAN_UDP_ZERO_CSUM6_TX": 1, "IFLA_VXLAN_UDP_ZERO_CSUM6_RX": 1}
    _new(
        host,
        f"create VXLAN device (VNI {tunnel.vni}, UDP port {tunnel.port})",
        {"IFLA_IFNAME": TUNNEL, "IFLA_MTU": tunnel.mtu, "IFLA_NET_NS_FD": namespace, "IFLA_LINKINFO": _kind("vxlan", settings)},
    )


def create_wireguard(host: Netlink, name: str, device: WireGuard, namespace: int) -> None:
    """Create the device straight in the namespace of that descriptor; its UDP socket stays in the namespace of `host`."""
    values: dict[str, object] = {"IFLA_IFNAME": name, "IFLA_MTU": device.mtu, "IFLA_NET_NS_FD": namespace}
    _new(host, f"create WireGuard device {name}", {**values, "IFLA_LINKINFO": _kind("wireguard")})


def join_tunnel(netlink: Netlink, tunnel: Tunnel, bridge: str) -> None:
    """Make it a port of the bridge that learns nothing, up."""
    _set(netlink, TUNNEL, {"IFLA_MTU": tunnel.mtu, "IFLA_MASTER": index(bridge)})
    _set_port(netlink, TUNNEL, {"IFLA_BRPORT_LEARNING": 0})


def create_veth(netlink: Netlink, attachment: Attachment, inner: str, namespace: int) -> None:
    """The pair in one request: the outer end here, up and on its bridge, the inner end in the namespace of that descriptor."""
    peer: dict[str, object] = {
        "IFLA_IFNAME": inner,
        "IFLA_ADDRESS": attachment.mac,
        "IFLA_MTU": attachment.mtu,
        "IFLA_NET_NS_FD": namespace,
    }
    own: dict[str, object] = {"IFLA_IFNAME": attachment.name, "IFLA_MTU": attachment.mtu}
    if attachment.outer_mac:
        own["IFLA_ADDRESS"] = attachment.outer_mac
    if attachment.bridge:
        own["IFLA_MASTER"] = index(attachment.bridge)
    # the inner end is brought up later: a veth without its other end refuses to be (ENOTCONN, Linux 6.18)
    information = {"attrs": [("VETH_INFO_PEER", {"attrs": list(peer.items())})]}
    own["IFLA_LINKINFO"] = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", information)]}
    _new(netlink, f"create link {attachment.name} to {attachment.netns}", own)


def repair_outer(netlink: Netlink, attachment: Attachment) -> None:
    values: dict[str, object] = {"IFLA_MTU": attachment.mtu}
    if attachment.outer_mac:
        values["IFLA_ADDRESS"] = attachment.outer_mac
    if attachment.bridge:
        values["IFLA_MASTER"] = index(attachment.bridge)
    _set(netlink, attachment.name, values)
    if attachment.hairpin:
        _set_port(netlink, attachment.name, {"IFLA_BRPORT_MODE": 1})


def set_mtu(netlink: Netlink, name: str, mtu: int) -> None:
    """Of a device that may be down, and stays so."""
    message = ifinfmsg()
    message["attrs"] = [("IFLA_IFNAME", name), ("IFLA_MTU", mtu)]
    netlink.request(f"set MTU of {name}", _RTM_NEWLINK, 0, _encode(message))


def set_up(netlink: Netlink, name: str, mtu: int | None = None) -> None:
    _set(netlink, name, {"IFLA_MTU": mtu} if mtu else {})


def mark_loopback(netlink: Netlink, alias: str) -> None:
    """Up, and labelled."""
    _set(netlink, "lo", {"IFLA_IFALIAS": alias})


def delete_link(netlink: Netlink, name: str) -> None:
    """Afterwards there is no such link; a veth's other end goes with it."""
    message = ifinfmsg()
    message["attrs"] = [("IFLA_IFNAME", name)]
    netlink.request(f"delete link {name}", _RTM_DELLINK, 0, _encode(message), ignore=(errno.ENODEV,))


def index(name: str) -> int:
    """Of the link with that name in the namespace the calling thread is in."""
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise KernelError(f"find link {name}", errno.ENODEV) from error


def routes(netlink: Netlink) -> list[Route]:
    """Static routes of the main table and of that for answers: not those the kernel makes for addresses."""
    answers = netlink.dump("list routes", _RTM_GETROUTE, _RTMSG.pack(0, 0, 0, 0, 0, 0, 0, 0, 0))
    return [route for kind, payload in answers if kind == _RTM_NEWROUTE and (route := parse_route(payload)) is not None]


def parse_route(payload: bytes) -> Route | None:
    """One route message without its netlink header; None for a route that is none of ours."""
    family, length, _source, _tos, table, protocol, _scope, kind, _flags = _RTMSG.unpack_from(payload)
    if protocol == _RTPROT_KERNEL or kind != _RTN_UNICAST or family not in (socket.AF_INET, socket.AF_INET6):
        return None
    values = attributes(payload[_RTMSG.size :])
    table = _number(values.get(_RTA_TABLE)) or table
    if table not in (RT_TABLE_MAIN, RT_TABLE_ANSWERS):
        return None

    def text(attribute: int) -> str:
        return str(ip_address(values[attribute])) if attribute in values else ""

    destination = f"{text(_RTA_DST)}/{length}" if _RTA_DST in values else ""
    return Route(destination, text(_RTA_GATEWAY), _number(values.get(_RTA_OIF)), table, text(_RTA_PREFSRC))


def put_route(netlink: Netlink, route: Route) -> None:
    flags = NLM_F_CREATE | NLM_F_REPLACE
    netlink.request(f"add route {route.destination or 'default'}", _RTM_NEWROUTE, flags, _route(route))


def delete_route(netlink: Netlink, route: Route) -> None:
    netlink.request(f"delete route {route.destination}", _RTM_DELROUTE, 0, _route(route), ignore=(errno.ESRCH, errno.ENODEV))


def _route(route: Route) -> bytes:
    message = rtmsg()
    address, _, length = route.destination.partition("/")
    text = address or route.via
    message["family"] = 10 if ":" in text else 2
    message["dst_len"] = int(length or 0)
    # the header has one byte for the table; a bigger number is in the attribute alone
    message["table"] = route.table if route.table < 256 else _RT_TABLE_COMPAT
    message["proto"] = _RTPROT_STATIC
    message["scope"] = _SCOPE_UNIVERSE if route.via else _SCOPE_LINK
    message["type"] = _RTN_UNICAST
    message["attrs"] = [("RTA_OIF", route.index), ("RTA_TABLE", route.table)]
    if route.source:
        message["attrs"].append(("RTA_PREFSRC", route.source))
    if address:
        message["attrs"].append(("RTA_DST", address))
    if route.via:
        # the gateway need not be in a subnet of the link: the uplink has no address
        message["flags"] = _RTNH_F_ONLINK
        message["attrs"].append(("RTA_GATEWAY", route.via))
    return _encode(message)


def _kind(kind: str, settings: dict[str, object] | None = None) -> dict[str, object]:
    attributes: list[tuple[str, object]] = [("IFLA_INFO_KIND", kind)]
    if settings:
        attributes.append(("IFLA_INFO_DATA", {"attrs": list(settings.items())}))
    return {"attrs": attributes}


def _new(netlink: Netlink, op: str, values: dict[str, object]) -> None:
    message = ifinfmsg()
    message["flags"] = message["change"] = _IFF_UP if "IFLA_MASTER" in values else 0
    message["attrs"] = list(values.items())
    netlink.request(op, _RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _encode(message))


def _set(netlink: Netlink, name: str, values: dict[str, object]) -> None:
    message = ifinfmsg()
    message["flags"] = message["change"] = _IFF_UP
    message["attrs"] = [("IFLA_IFNAME", name), *values.items()]
    netlink.request(f"set link {name}", _RTM_NEWLINK, 0, _encode(message))


def _set_port(netlink: Netlink, port: str, values: dict[str, object]) -> None:
    message = ifinfmsg()
    slave = [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", {"attrs": list(values.items())})]
    message["attrs"] = [("IFLA_IFNAME", port), ("IFLA_LINKINFO", {"attrs": slave})]
    netlink.request("set bridge port", _RTM_NEWLINK, 0, _encode(message))


def _encode(message: Any) -> bytes:
    """The payload alone: the header is the socket's business."""
    message["header"] = {"type": 0, "flags": 0, "sequence_number": 0, "pid": 0}
    message.encode()
    return bytes(message.data[16:])
