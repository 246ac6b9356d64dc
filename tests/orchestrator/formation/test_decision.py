"""Machines that were told the same: every order of questions, answers, crashes and lost answers, as far as a small world goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec
import pytest

from orchestrator.formation.decision import (
    Answer,
    Found,
    Join,
    Membership,
    Record,
    Standing,
    Wait,
    answer,
    decide,
    managers_to_ask,
    promise_kept,
)
from orchestrator.formation.order import Order

A, B, C, OTHER = "10.0.0.1:2377", "10.0.0.2:2377", "10.0.0.3:2377", "10.0.0.9:2377"
TOKENS = {"worker": "W", "manager": "M"}
ORDER = Order((A, B, C), 3)


@dataclass(frozen=True)
class Machine:
    """own: which peer it is, "" = the later one. heard: answers of this process. cluster: what it is in, also when it is down."""

    own: str
    record: Record
    up: bool = False
    cluster: str = ""
    role: str = ""
    heard: tuple[tuple[str, Answer], ...] = ()


@dataclass(frozen=True)
class World:
    """wipes, by_hand: how many disks may still be lost, and clusters made by hand. founded: clusters made so far, for their names."""

    machines: tuple[Machine, ...]
    wipes: int = 0
    by_hand: int = 0
    founded: int = 0


def standing(machine: Machine, order: Order) -> Standing:
    member = Membership(machine.cluster, (), TOKENS if machine.role == "manager" else None) if machine.cluster else None
    return Standing(record=machine.record, order=order, own=machine.own, member=member)


def begin(order: Order, *, later: int = 0, wipes: int = 0, by_hand: int = 0) -> World:
    owns = [*order.peers, *[""] * later]
    return World(tuple(Machine(own, Record(machine=f"m{number}")) for number, own in enumerate(owns)), wipes, by_hand)


def steps(world: World, order: Order) -> Iterator[World]:
    """All that may happen next. A machine may decide by answers that are old by now: worse than what the daemon does."""

    def changed(number: int, **fields: object) -> World:
        machines = list(world.machines)
        machines[number] = replace(machines[number], **fields)  # type: ignore[arg-type]
        return replace(world, machines=tuple(machines))

    for number, me in enumerate(world.machines):
        if not me.up:
            yield changed(number, up=True)
            continue
        yield changed(number, up=False, heard=())
        if world.wipes:
            fresh = Record(machine=f"{me.record.machine}'")
            yield replace(changed(number, up=False, heard=(), record=fresh, cluster="", role=""), wipes=world.wipes - 1)
        if me.cluster:
            if me.record.cluster != me.cluster:
                yield changed(number, record=msgspec.structs.replace(me.record, cluster=me.cluster))
            continue
        if me.record.cluster:
            continue
        if world.by_hand and not promise_kept(me.record):
            yield replace(changed(number, cluster="by hand", role="manager", heard=()), by_hand=world.by_hand - 1)
        for other, peer in enumerate(world.machines):
            if other != number and peer.up and peer.own:
                record, said = answer(standing(peer, order), standing(me, order).question)
                # the answer gets lost, or it arrives
                yield changed(other, record=record)
                told = changed(other, record=record)
                heard = tuple(sorted({**dict(me.heard), peer.own: said}.items()))
                machines = list(told.machines)
                machines[number] = replace(machines[number], heard=heard)
                yield replace(told, machines=tuple(machines))
        yield from decided(world, number, order)


def decided(world: World, number: int, order: Order) -> Iterator[World]:
    me = world.machines[number]
    machines = list(world.machines)
    answers = {peer: dict(me.heard).get(peer, "no answer") for peer in order.peers if peer != me.own}
    match decide(standing(me, order), answers):
        case Found():
            assert not any(machine.cluster for machine in machines), "a second cluster is founded"
            machines[number] = replace(me, cluster=f"c{world.founded}", role="manager", heard=())
            yield replace(world, machines=tuple(machines), founded=world.founded + 1)
        case Join(managers, token):
            manager = next(machine for machine in machines if machine.own == managers[0])
            if manager.up and manager.role == "manager":
                machines[number] = replace(me, cluster=manager.cluster, role={"W": "worker", "M": "manager"}[token], heard=())
                yield replace(world, machines=tuple(machines))
        case Wait():
            pass


def explored(start: World, order: Order) -> set[World]:
    seen, ahead = {start}, [start]
    while ahead:
        for following in steps(ahead.pop(), order):
            if following not in seen:
                seen.add(following)
                ahead.append(following)
    return seen


def healed(world: World, order: Order) -> World:
    """Everything is up and everybody hears everybody, for as long as anything changes."""
    while True:
        before = world
        world = replace(world, machines=tuple(replace(machine, up=True, heard=()) for machine in world.machines))
        for number in range(len(world.machines)):
            if world.machines[number].cluster:
                continue
            for other, peer in enumerate(world.machines):
                if peer.own and other != number:
                    me = world.machines[number]
                    record, said = answer(standing(peer, order), standing(me, order).question)
                    machines = list(world.machines)
                    machines[other] = replace(peer, record=record)
                    machines[number] = replace(me, heard=tuple(sorted({**dict(me.heard), peer.own: said}.items())))
                    world = replace(world, machines=tuple(machines))
            world = next(decided(world, number, order), world)
        world = replace(world, machines=tuple(replace(machine, heard=()) for machine in world.machines))
        if world == before:
            return world


def clusters(world: World) -> set[str]:
    return {machine.cluster for machine in world.machines}


@pytest.mark.parametrize(("peers", "later"), [((A,), 1), ((A, B), 0), ((A, B), 1), ((A, B, C), 0)])
def test_whatever_happens_there_is_one_cluster_and_in_the_end_everybody_is_in_it(peers: tuple[str, ...], later: int) -> None:
    order = Order(peers, len(peers))
    worlds = explored(begin(order, later=later), order)
    assert any(len(clusters(world)) == 1 and "" not in clusters(world) for world in worlds)
    for world in worlds:
        assert len(clusters(world) - {""}) <= 1, world
        end = healed(world, order)
        assert len(clusters(end)) == 1 and "" not in clusters(end), (world, end)
        assert all(machine.role == ("manager" if machine.own else "worker") for machine in end.machines)


def test_a_lost_disk_makes_no_second_cluster() -> None:
    """It may end in waiting for a machine that is no more; never in two clusters."""
    worlds = explored(begin(ORDER, wipes=1), ORDER)
    for world in worlds:
        assert len(clusters(world) - {""}) <= 1, world
    assert any(world.wipes == 0 and clusters(healed(world, ORDER)) == {"c0"} for world in worlds), "a wiped machine joins again"


def test_a_cluster_made_by_hand_meanwhile_is_the_one_that_is_joined() -> None:
    worlds = explored(begin(ORDER, by_hand=1), ORDER)
    for world in worlds:
        assert len(clusters(world) - {""}) <= 1, world
        assert len(clusters(healed(world, ORDER))) == 1
    assert any(clusters(world) == {"by hand"} for world in worlds)


# ---- single decisions ----------------------------------------------------------------------------------------------------------


def at(own: str, *, record: Record | None = None, order: Order = ORDER, member: Membership | None = None, busy: bool = False) -> Standing:
    return Standing(record=record or Record(machine="me"), order=order, own=own, member=member, busy=busy)


def test_the_founder_waits_for_everyone_and_says_whom() -> None:
    follows = Answer(follows="me")
    assert decide(at(A), {B: follows, C: follows}) == Found()
    step = decide(at(A), {B: follows, C: "connection refused"})
    assert step == Wait("a cluster begins when all 3 are there: 10.0.0.3:2377: connection refused")
    assert isinstance(decide(at(A), {B: follows, C: Answer(follows="somebody else")}), Wait)
    assert isinstance(decide(at(B), {A: follows, C: follows}), Wait), "the first founds, nobody else"
    assert isinstance(decide(at(""), {A: follows, B: follows, C: follows}), Wait)


def test_a_promise_is_given_to_one_machine_under_the_same_orders_only() -> None:
    question = at(A, record=Record(machine="a")).question
    record, said = answer(at(B), question)
    assert (record.follows, record.founder, said.follows) == ("a", A, "a")
    assert answer(at(B, record=record), question) == (record, said)
    again = at(A, record=Record(machine="a2")).question
    kept, refused = answer(at(B, record=record), again)
    assert kept == record and "waits for the machine that was 10.0.0.1:2377 before" in refused.refusal
    assert "are not the same" in answer(at(B), at(A, order=Order((A, B), 2)).question)[1].refusal
    assert "by hand" in answer(at(B, busy=True), question)[1].refusal
    assert answer(at(B, busy=True), question)[0].follows == ""
    assert "left it" in answer(at(B, record=Record(machine="b", cluster="x")), question)[1].refusal
    assert answer(at(B), at(C).question)[0].follows == "", "who doesn't found is promised nothing"


def test_a_promise_binds_hand_made_clusters_until_it_is_kept() -> None:
    record, _ = answer(at(B), at(A).question)
    assert "has promised to join the cluster that 10.0.0.1:2377 founds" in promise_kept(record)
    assert promise_kept(msgspec.structs.replace(record, cluster="c")) == ""
    assert promise_kept(Record(machine="b")) == ""


def test_members_tell_the_way_and_managers_open_the_door() -> None:
    member = Membership("c", (A, B), TOKENS)
    assert answer(at(A, member=member), at(C).question)[1] == Answer(cluster="c", managers=(A, B), token="M")
    assert answer(at(A, member=member), at("").question)[1].token == "W"
    worker = answer(at(C, member=Membership("c", (A, B))), at("").question)[1]
    assert worker == Answer(cluster="c", managers=(A, B))
    assert managers_to_ask({C: worker, A: "no answer"}) == (B,)
    assert decide(at(""), {C: worker, A: "no answer"}) == Wait(
        "there is a cluster, but none of its managers answers: 10.0.0.1:2377: no answer; 10.0.0.3:2377: waits, too"
    )
    assert decide(at(""), {C: worker, B: Answer(cluster="c", managers=(A, B), token="W")}) == Join((B, A), "W")
    assert managers_to_ask({C: worker, B: Answer(cluster="c", managers=(A, B), token="W")}) == ()


def test_of_two_clusters_none_is_joined() -> None:
    step = decide(at(C), {A: Answer(cluster="x", token="M"), B: Answer(cluster="y", token="M")})
    assert step == Wait("there is more than one cluster, none is joined: 10.0.0.1:2377 is in x, 10.0.0.2:2377 is in y")


def test_who_only_joins_waits_for_a_cluster() -> None:
    order = Order((A, B))
    assert decide(at("", order=order), {A: "connection refused", B: Answer()}) == Wait(
        "there is no cluster yet, it is waited for: 10.0.0.1:2377: connection refused; 10.0.0.2:2377: waits, too"
    )
    assert isinstance(decide(at(A, order=order), {B: Answer(follows="me")}), Wait), "without --bootstrap-expect nobody founds"
    assert OTHER not in order.peers


def test_tokens_are_in_no_repr() -> None:
    assert "SECRET" not in repr(Answer(token="SECRET")) + repr(Membership("c", (), {"worker": "SECRET", "manager": "SECRET"}))
