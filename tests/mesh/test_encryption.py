"""Encrypted networks as tables and plans: never plain, and no moment of a change of keys without a way to the peer."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from itertools import product

import pytest

from mesh.__main__ import _plain
from mesh.describe import describe
from mesh.errors import ConfigError
from mesh.facts import Facts
from mesh.linux.netlink import attribute, nested
from mesh.linux.wireguard import decode, encode_peer
from mesh.model import Encryption, EncryptionPeer, Network, NodeState, RemoteEndpoint
from mesh.plan import plan
from mesh.render import Names, render
from mesh.static import parse
from mesh.table import HOST, NamespaceTable, Peer, Tables
from tests.mesh.fake_kernel import FakeKernel, settled

NAMES = Names("mesh")
FACTS = Facts(underlay_mtu=1500, host_id=1, netns={}, has_wireguard=True)
OWN, B, C = "fd00::1", "fd00::b", "fd00::c"
SPACE = "mesh-+encryption"


def key(number: int) -> str:
    return base64.b64encode(bytes([number]) * 32).decode()


SECRETS = (key(1), key(2))
NETWORK = Network("n", 5, ("10.0.0.0/24",), "10.0.0.2", remote=(RemoteEndpoint("10.0.0.9", B),), encrypted=True)
ENCRYPTION = Encryption(OWN, SECRETS, peers=(EncryptionPeer(B, "192.0.2.2", (key(11), key(12))),))
STATE = NodeState("192.0.2.1", (NETWORK,), encryption=ENCRYPTION)


def tables(state: NodeState, facts: Facts = FACTS) -> Tables:
    rendered = render(state, facts, NAMES)
    assert not rendered.errors
    return rendered.tables


def test_its_tunnels_begin_in_the_namespace_of_the_devices() -> None:
    made = tables(STATE)
    tunnel = made["mesh-n"].tunnel
    assert tunnel is not None and tunnel.encrypted and tunnel.local == OWN
    # 1500 - 60 for WireGuard over IPv4 - 70 for VXLAN over IPv6
    assert tunnel.mtu == 1370 and made["mesh-n"].bridge.mtu == 1370  # type: ignore[union-attr]
    assert {name: (d.port, d.mtu, d.address) for name, d in made[SPACE].wireguards.items()} == {
        "wg0": (51871, 1440, "fd00::1/128"),
        "wg1": (51872, 1440, "fd00::1/128"),
    }
    assert made[SPACE].host_routes == {B: "wg0"}
    assert made[SPACE].peers["wg1", key(12)] == Peer(("192.0.2.2", 51872), frozenset({"fd00::b/128"}))
    assert made[SPACE].bridge is None and not made[SPACE].attachments, "there is no other way out"
    plain = tables(replace(STATE, networks=(replace(NETWORK, encrypted=False),)))
    assert SPACE not in plain and plain["mesh-n"].tunnel.local == "192.0.2.1"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("state", "facts", "says"),
    [
        (replace(STATE, encryption=None), FACTS, "was given no keys"),
        (STATE, replace(FACTS, has_wireguard=False), "kernel has no WireGuard: load the module wireguard"),
        (STATE, replace(FACTS, has_ipv6=False), "has no IPv6"),
    ],
)
def test_where_it_can_not_be_encrypted_it_is_not_made(state: NodeState, facts: Facts, says: str) -> None:
    rendered = render(state, facts, NAMES)
    assert says in str(rendered.errors["network:n"])
    assert "mesh-n" not in rendered.tables and SPACE not in rendered.tables
    # and stays as it is where it was: encrypted
    assert "mesh-n" in rendered.frozen


@pytest.mark.parametrize(
    ("encryption", "says"),
    [
        (replace(ENCRYPTION, address="10.0.0.1"), "not of the private IPv6 addresses"),
        (replace(ENCRYPTION, address="2001:4860::1"), "not of the private IPv6 addresses"),
        (replace(ENCRYPTION, port=65535), "must be ports"),
        (replace(ENCRYPTION, keys=("secret", SECRETS[1])), "a private key is not the base64 of 32 bytes"),
    ],
)
def test_what_makes_no_sense_is_said_and_nothing_is_touched(encryption: Encryption, says: str) -> None:
    rendered = render(replace(STATE, encryption=encryption), FACTS, NAMES)
    assert says in str(rendered.errors["encryption"]) and "secret" not in str(rendered.errors["encryption"])
    assert SPACE in rendered.frozen


@pytest.mark.parametrize(
    ("peer", "says"),
    [
        (ENCRYPTION.peers[0], "fd00::b: is there twice"),
        (EncryptionPeer(OWN, "192.0.2.3", ("", "")), "fd00::1: is there twice"),
        (EncryptionPeer(C, "192.0.2.3", (key(3), key(3))), "key that is there twice"),
        (EncryptionPeer(C, "192.0.2.3", (key(11), "")), "key that is there twice"),
        (EncryptionPeer(C, "192.0.2.3", ("garbage", "")), "'garbage' is not the base64 of 32 bytes"),
        (EncryptionPeer(C, "nowhere", ("", "")), "underlay"),
    ],
)
def test_a_peer_that_makes_no_sense_is_left_out_and_stops_no_other(peer: EncryptionPeer, says: str) -> None:
    rendered = render(replace(STATE, encryption=replace(ENCRYPTION, peers=(*ENCRYPTION.peers, peer))), FACTS, NAMES)
    assert says in str(rendered.errors[f"peer:{peer.address}"])
    assert rendered.tables == tables(STATE) and SPACE not in rendered.frozen


def universe() -> list[Tables]:
    """One or two peers with each of two keys a device, either device active; other keys of one's own; no network, no encrypted one."""
    found: list[Tables] = [{HOST: NamespaceTable()}, tables(NodeState("192.0.2.1", (replace(NETWORK, encrypted=False),)))]
    for active, first, second in product((0, 1), (11, 13), (12, 14)):
        peer = EncryptionPeer(B, "192.0.2.2", (key(first), key(second)))
        found.append(tables(replace(STATE, encryption=replace(ENCRYPTION, active=active, peers=(peer,)))))  # type: ignore[arg-type]
    found.append(tables(replace(STATE, encryption=replace(ENCRYPTION, keys=(SECRETS[0], key(3))))))
    found.append(tables(replace(STATE, encryption=replace(ENCRYPTION, peers=()))))
    two = (*ENCRYPTION.peers, EncryptionPeer(C, "192.0.2.3", (key(21), "")))
    found.append(tables(replace(STATE, encryption=replace(ENCRYPTION, peers=two))))
    return found


def test_every_pair_converges_from_every_prefix_and_a_peer_is_never_without_a_way() -> None:
    states = universe()
    for actual, desired in product(states, states):
        ops = plan(desired, actual)
        assert bool(ops) == (actual != desired)
        carried = FakeKernel(actual).carries(SPACE, B) and FakeKernel(desired).carries(SPACE, B)
        kernel = FakeKernel(actual, {})
        for op in [*ops, None]:
            resumed = FakeKernel(kernel.tables, {})
            for again in plan(desired, resumed.tables):
                resumed.run(again)
            assert settled(resumed.tables) == settled(desired)
            if carried:
                assert kernel.carries(SPACE, B), (op, ops)
            if op is not None:
                kernel.run(op)


def test_a_change_of_keys_touches_nothing_that_carries() -> None:
    """Until the routes move, the active device, its peer and its route are not in any operation."""
    peers = (EncryptionPeer(B, "192.0.2.2", (key(11), key(15))),)
    fresh = replace(ENCRYPTION, keys=(SECRETS[0], key(3)), peers=peers)
    before, prepared = tables(STATE), tables(replace(STATE, encryption=fresh))
    ops = [describe(op) for op in plan(prepared, before)]
    assert len(ops) == 3 and all("wg1" in op for op in ops), ops
    switched = tables(replace(STATE, encryption=replace(fresh, active=1)))
    assert [describe(op) for op in plan(switched, prepared)] == [f"{SPACE}: PutHostRoute fd00::b wg1"]


def test_a_file_may_describe_it() -> None:
    network = {"id": "n", "vni": 5, "subnets": ["10.0.0.0/24"], "lb_address": "10.0.0.2", "encrypted": True}
    encryption = {"address": OWN, "keys": list(SECRETS), "peers": [{"address": B, "underlay": "192.0.2.2", "keys": [key(11), key(12)]}]}
    file = {"underlay": "192.0.2.1", "networks": [network], "encryption": encryption}
    assert parse(file, balancer="nftables").encryption == ENCRYPTION
    with pytest.raises(ConfigError, match=r"encryption\.adress: there is no such field; is it address"):
        parse({**file, "encryption": {"adress": OWN}}, balancer="nftables")


def test_private_keys_are_not_shown() -> None:
    made = tables(STATE)
    shown = json.dumps([_plain(table) for table in made.values()], default=str) + repr(STATE) + repr(made)
    shown += " ".join(describe(op) + repr(op) for op in plan(made, {}))
    assert SECRETS[0] not in shown and SECRETS[1] not in shown
    assert key(11) in shown


def test_a_device_is_read_back_from_several_messages() -> None:
    four = Peer(("192.0.2.2", 51871), frozenset({"fd00::b/128"}))
    six = Peer(("2001:db8::2", 51872), frozenset({"fd00::c/128", "10.0.0.0/8"}), 0)
    first = attribute(3, base64.b64decode(SECRETS[0])) + attribute(6, (51871).to_bytes(2, "little"))
    first += nested(8, nested(0, encode_peer(key(11), four) + attribute(6, bytes(16))))
    second = nested(8, nested(0, encode_peer(key(12), six) + attribute(6, b"\1" + bytes(15))))
    device = decode([first, second])
    assert (device.private_key, device.port, dict(device.peers)) == (SECRETS[0], 51871, {key(11): four, key(12): six})
    assert device.heard == {key(12)}
    assert SECRETS[0] not in repr(device)
