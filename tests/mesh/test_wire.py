"""Bytes to and from the kernel: attributes, IPVS, tracked connections, links."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.linux import conntrack, elements, ipvs, link, policy
from mesh.linux.netlink import Netlink, attribute, attributes, nested
from mesh.table import IpvsDestination, IpvsService, Policy


@given(st.dictionaries(st.integers(1, 1000), st.binary(max_size=40)))
def test_attributes_round_trip(values: dict[int, bytes]) -> None:
    assert attributes(b"".join(attribute(k, v) for k, v in values.items())) == values
    assert attributes(attributes(nested(3, *(attribute(k, v) for k, v in values.items())))[3]) == values


@given(st.binary(max_size=80))
def test_attributes_of_noise_end(noise: bytes) -> None:
    attributes(noise)


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6).filter(lambda a: not a.ipv4_mapped)).map(str)


@given(st.integers(1, 2**32 - 1), st.sampled_from([4, 6]), st.sampled_from(["rr", "wlc", "mh"]), st.integers(0, 86400))
def test_ipvs_service_round_trip(mark: int, family: int, scheduler: str, timeout_s: int) -> None:
    service = IpvsService(mark, family, scheduler, timeout_s)
    assert ipvs.decode_service(attributes(ipvs.encode_service(service, whole=True))[1]) == service


DESTINATIONS = st.builds(IpvsDestination, addresses, st.integers(0, 65535), st.integers(0, 65535), st.booleans())


@given(DESTINATIONS)
def test_ipvs_destination_attributes(d: IpvsDestination) -> None:
    """Of linux/ip_vs.h: address, port, forwarding method, weight, thresholds, family."""
    values = attributes(attributes(ipvs.encode_destination(d))[2])
    packed = ip_address(d.address).packed
    assert values[1] == packed.ljust(16, b"\0")
    assert values[2] == struct.pack(">H", d.port)
    assert [struct.unpack("=I", values[kind])[0] for kind in (3, 4, 5, 6)] == [0 if d.masqueraded else 3, d.weight, 0, 0]
    assert struct.unpack("=H", values[11])[0] == (10 if len(packed) == 16 else 2)


@given(st.dictionaries(st.integers(1, 2**32 - 1), st.frozensets(DESTINATIONS, max_size=4), max_size=4))
def test_ipvs_destinations_are_read_from_the_kernels_text(services: dict[int, frozenset[IpvsDestination]]) -> None:
    lines = ["IP Virtual Server version 1.2.1 (size=4096)", "Prot LocalAddress:Port Scheduler Flags"]
    lines += [
        "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn",
        "TCP  0A000001:0050 rr ",
        "  -> 0A000002:0050      Masq    1      0          0",
    ]
    for number, (mark, destinations) in enumerate(services.items()):
        lines.append(f"FWM  {mark:08X} rr " + ("persistent 60 FFFFFFFF" if number % 2 else ""))
        for d in destinations:
            parsed = ip_address(d.address)
            where = f"{int(parsed):08X}" if parsed.version == 4 else f"[{parsed.exploded}]"
            lines.append(f"  -> {where}:{d.port:04X}      {'Masq' if d.masqueraded else 'Route':7} {d.weight:<6} 12         3")
    assert ipvs.parse_destinations("\n".join(lines)) == services


@given(st.integers(1, 32766), st.ip_addresses(v=4).map(str) | st.just(""), st.integers(0, 65535))
def test_routing_rule_round_trip(priority: int, source: str, udp_port: int) -> None:
    wanted = Policy(priority, source, udp_port)
    assert policy.decode(policy.encode(wanted)) == wanted


NETWORKS = st.tuples(st.ip_addresses(v=4) | st.ip_addresses(v=6), st.integers(1, 32)).map(lambda t: f"{t[0]}/{t[1]}")


@given(NETWORKS, st.integers(1, 9999), st.sampled_from([link.RT_TABLE_MAIN, link.RT_TABLE_ANSWERS]))
def test_route_round_trip(destination: str, index: int, table: int) -> None:
    """Encoded by pyroute2, decoded by hand."""
    for wanted in (link.Route(destination, "", index, table), link.Route("", "10.0.0.1", index, table)):
        assert link.parse_route(link._route(wanted)) == wanted


ELEMENTS = {
    "ipv4_addr": st.ip_addresses(v=4).map(str),
    "ipv6_addr": st.ip_addresses(v=6).filter(lambda a: not a.ipv4_mapped).map(str),
    "ether_addr": st.binary(min_size=6, max_size=6).map(lambda b: b.hex(":")),
    "inet_proto": st.integers(0, 255).map(str),
    "inet_service": st.integers(0, 65535).map(str),
    "mark": st.integers(0, 2**32 - 1).map(str),
}


@given(st.lists(st.sampled_from(sorted(ELEMENTS)), min_size=1, max_size=3), st.data())
def test_element_round_trip(types: list[str], data: st.DataObject) -> None:
    kind, wanted = " . ".join(types), " . ".join(data.draw(ELEMENTS[name]) for name in types)
    assert elements.supported(kind)
    assert elements.decoder(kind)(elements.encoder(kind)(wanted)) == wanted


@pytest.mark.parametrize("verdict", ["goto vip4-3", "jump ports", "return", "accept", "drop"])
def test_verdict_round_trip(verdict: str) -> None:
    assert elements.decoder("verdict")(elements.encoder("verdict")(verdict)) == verdict


def test_an_ipvs_service_on_the_wire() -> None:
    """Firewall mark 10, round robin, in the attributes of linux/ip_vs.h."""
    wire = ipvs.encode_service(IpvsService(10, 4, "rr"), whole=True)
    assert (
        wire.hex()
        == (
            "38000180"  # IPVS_CMD_ATTR_SERVICE, nested
            "0600010002000000"  # AF_INET
            "080005000a000000"  # fwmark 10
            "07000600727200" + "00"  # "rr"
            "0c00070000000000ffffffff"  # flags, mask
            "0800080000000000"  # timeout
            "08000900ffffffff"  # netmask
        )
    )


def _tuple(source: bytes, destination: bytes, protocol: int, sport: int, dport: int) -> bytes:
    return nested(1, attribute(1, source), attribute(2, destination)) + nested(
        2, attribute(1, bytes([protocol])), attribute(2, struct.pack(">H", sport)), attribute(3, struct.pack(">H", dport))
    )


@pytest.mark.parametrize(("state", "is_open"), [(1, True), (3, True), (6, True), (7, False), (8, False), (0, False)])
def test_a_tracked_connection(state: int, is_open: bool) -> None:
    client, vip, backend = b"\x0a\0\0\5", b"\x0a\0\0\x64", b"\x0a\0\0\7"
    payload = (
        struct.pack("=BBH", 2, 0, 0)
        + nested(1, _tuple(client, vip, 6, 40000, 80))
        + nested(2, _tuple(backend, client, 6, 80, 40000))
        + attribute(3, struct.pack(">I", 0x20 | 8))
        + nested(4, nested(1, attribute(1, bytes([state]))))
        + attribute(12, struct.pack(">I", 99))
    )
    connection = conntrack.parse(payload)
    assert connection is not None
    assert (connection.destination, connection.port, connection.answerer) == ("10.0.0.100", 80, "10.0.0.7")
    assert connection.translated and connection.open is is_open


@given(st.binary(min_size=4, max_size=60))
def test_noise_is_no_tracked_connection(noise: bytes) -> None:
    conntrack.parse(noise)


def test_answers_come_in_the_order_of_requests() -> None:
    with Netlink(0) as netlink:
        # RTM_GETLINK of an index that isn't, RTM_DELROUTE of nothing sensible: each gets an errno of its own
        answers = netlink.send([(18, 0, struct.pack("=BxHiII", 0, 0, 1 << 30, 0, 0)), (25, 0, b"\0" * 12)])
    assert len(answers) == 2 and all(answers)
