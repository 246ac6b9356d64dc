"""A change of keys from the leader's loop to the kernels: whatever comes first, whoever sends is understood."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from mesh.model import Encryption
from orchestrator.agent.encryption_state import encryption as encryption_state
from orchestrator.agent.encryption_state import step_of
from orchestrator.agent.rows import Rows
from orchestrator.control.context import Context
from orchestrator.control.encryption import PERIOD, encryption
from orchestrator.dispatcher.assignment import network_scope_rows
from orchestrator.encryption import device, epochs, sending_epoch, tunnel_address, wants_encryption
from orchestrator.errors import ConfigError
from orchestrator.model import Cluster, KeyChange, Network, Node, NodeAttachment, NodeDescription, NodeEncryption, NodeStatus
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NETWORK = Network(id="net", name="net", mesh_vni=5, mesh_encrypted=True)
CONTEXT = Context(now=NOW, new_id=lambda: "id")


def node(name: str, own: NodeEncryption | None, *, state: str = "ready") -> Node:
    return Node(
        id=name,
        description=NodeDescription(hostname=name, mesh_data_addr=f"192.0.2.{ord(name)}", mesh_encryption=own),
        status=NodeStatus(state=state),
        mesh_attachments=[NodeAttachment(network_id="net", addr=f"10.0.0.{ord(name)}/24")],
    )


def stored(keys: KeyChange, *nodes: Node) -> Snapshot:
    cluster = Cluster(id="c", mesh_keys=keys)
    return Snapshot().with_changes([("cluster", "c", cluster), ("network", "net", NETWORK), *(("node", one.id, one) for one in nodes)])


def next_keys(snapshot: Snapshot, now: datetime = NOW) -> KeyChange | None:
    decision = encryption(snapshot, replace(CONTEXT, now=now))
    if not decision.steps:
        return None
    (put,) = decision.steps[0]
    assert isinstance(put, Put) and isinstance(put.obj, Cluster)
    return put.obj.mesh_keys


# ---- every order -----------------------------------------------------------------------------------------------------------------


def rows_of(snapshot: Snapshot) -> Rows:
    rows = Rows()
    rows.update(1, network_scope_rows(snapshot, "net").values(), (), True)
    return rows


Said = tuple[int, int]
"""Of a machine: the step its keys are made for, and the one its kernel shows."""


def described(name: str, said: Said) -> NodeEncryption:
    """A key is told by its node and epoch: "a3", public or private."""
    return NodeEncryption(keys={str(epoch): f"{name}{epoch}" for epoch in epochs(said[0])}, step=said[1])


def picture(step: int, said: tuple[Said, ...]) -> Snapshot:
    nodes = (node(name, described(name, one)) for name, one in zip("ab", said, strict=True))
    return stored(KeyChange(step=step, since=NOW, wanted=True), *nodes)


@dataclass(frozen=True)
class Machine:
    """sent: the step and the published keys that its newest rows are made of; told: the step its own keys are made for."""

    name: str
    sent: tuple[int, tuple[Said, ...]]
    told: int = 0
    shows: int = -1
    kernel: Encryption | None = None

    def with_keys(self) -> Machine:
        return replace(self, told=step_of(rows_of(picture(*self.sent))))

    def applied(self) -> Machine:
        told = self.with_keys()
        private = {epoch: f"{self.name}{epoch}" for epoch in epochs(told.told)}
        kernel = encryption_state(rows_of(picture(*self.sent)), private, cluster_id="c", node_id=self.name)
        return replace(told, kernel=kernel, shows=told.told)


@dataclass(frozen=True)
class World:
    """published: what the store has of each machine."""

    step: int
    machines: tuple[Machine, ...]
    published: tuple[Said, ...]


def following(world: World, last_step: int) -> Iterator[World]:
    keys = next_keys(picture(world.step, world.published))
    if keys is not None and keys.step <= last_step:
        yield replace(world, step=keys.step)
    for number, machine in enumerate(world.machines):
        before, after = slice(number), slice(number + 1, None)
        sent = replace(machine, sent=(world.step, world.published))
        # the keyring is on disk, and may be published, before the kernel has the keys
        for changed in (sent, machine.with_keys(), machine.applied()):
            yield replace(world, machines=(*world.machines[before], changed, *world.machines[after]))
        said = (machine.told, machine.shows)
        yield replace(world, published=(*world.published[before], said, *world.published[after]))


def understood(sender: Machine, receiver: Machine) -> bool:
    """The device that the sender sends by has the receiver's key, and the other way round."""
    assert sender.kernel is not None and receiver.kernel is not None
    active = sender.kernel.active
    of_receiver = {peer.address: peer.keys for peer in sender.kernel.peers}[receiver.kernel.address]
    of_sender = {peer.address: peer.keys for peer in receiver.kernel.peers}[sender.kernel.address]
    return of_receiver[active] == receiver.kernel.keys[active] and of_sender[active] == sender.kernel.keys[active]


def test_in_every_order_whoever_sends_is_understood() -> None:
    """Two nodes, two whole changes of keys; every order of the leader's steps, rows applied, keys published."""
    said = ((0, -1), (0, -1))
    ready = World(0, tuple(Machine(name, (0, said)).applied() for name in "ab"), said)
    seen, ahead = {ready}, [ready]
    while ahead:
        world = ahead.pop()
        a, b = world.machines
        assert understood(a, b) and understood(b, a), world
        for after in following(world, 6):
            if after not in seen:
                seen.add(after)
                ahead.append(after)
    assert any(world.step == 6 and all(machine.shows == 6 for machine in world.machines) for world in seen)
    assert len(seen) > 200


# ---- single decisions ------------------------------------------------------------------------------------------------------------


def test_keys_are_changed_twice_a_day_or_when_asked() -> None:
    at_rest = node("a", NodeEncryption(keys={"0": "k", "1": "k"}, step=0))
    assert next_keys(stored(KeyChange(), at_rest)) == KeyChange(since=NOW), "the first time counts from now"
    waiting = stored(KeyChange(since=NOW), at_rest)
    assert encryption(waiting, CONTEXT).wakeup == NOW + PERIOD
    assert next_keys(waiting, NOW + PERIOD) == KeyChange(step=1, since=NOW)
    assert next_keys(stored(KeyChange(since=NOW, wanted=True), at_rest)) == KeyChange(step=1, since=NOW, wanted=True)
    last = node("a", NodeEncryption(keys={"0": "k", "1": "k"}, step=2))
    later = NOW + timedelta(minutes=1)
    assert next_keys(stored(KeyChange(step=2, since=NOW, wanted=True), last), later) == KeyChange(step=3, since=later)
    plain = stored(KeyChange(), at_rest).with_changes([("network", "net", msgspec.structs.replace(NETWORK, mesh_encrypted=False))])
    assert next_keys(plain) is None, "nothing is encrypted"


@pytest.mark.parametrize(
    ("other", "waits"),
    [
        (node("b", NodeEncryption(keys={"0": "k", "1": "k"}, step=0)), False),
        (node("b", NodeEncryption(keys={"0": "k"}, step=0)), True),
        (node("b", NodeEncryption(keys={"0": "k", "1": "k"}, step=-1)), True),
        (node("b", NodeEncryption(keys={"0": "k"}, step=0), state="down"), False),
        (node("b", NodeEncryption(unable="no WireGuard")), False),
        (node("b", None), False),
        (msgspec.structs.replace(node("b", NodeEncryption()), mesh_attachments=None), False),
    ],
)
def test_whom_a_step_waits_for(other: Node, waits: bool) -> None:
    mine = node("a", NodeEncryption(keys={"0": "k", "1": "k"}, step=0))
    assert (next_keys(stored(KeyChange(since=NOW, wanted=True), mine, other)) is None) is waits


def test_each_epoch_has_its_device() -> None:
    assert [epochs(step) for step in range(4)] == [(0, 1), (0, 1), (0, 1), (1, 2)]
    assert [sending_epoch(step) for step in range(7)] == [0, 0, 1, 1, 1, 2, 2]
    assert [device(epoch) for epoch in range(3)] == [0, 1, 0]


def test_tunnel_addresses_are_of_the_cluster_and_the_node() -> None:
    assert tunnel_address("c", "a") == tunnel_address("c", "a")
    assert tunnel_address("c", "a").startswith("fd") and len({tunnel_address(c, n) for c in "cd" for n in "ab"}) == 4
    assert tunnel_address("c", "a").split(":")[:4] == tunnel_address("c", "b").split(":")[:4]


def test_the_option() -> None:
    assert wants_encryption({"encrypted": ""}) and wants_encryption({"encrypted": "True"})
    assert not wants_encryption({"encrypted": "false"}) and not wants_encryption({}) and not wants_encryption(None)
    with pytest.raises(ConfigError, match="invalid value 'perhaps'"):
        wants_encryption({"encrypted": "perhaps"})
