"""Three managers: promoted, killed, stopped, demoted, gone; the tasks and who asks for them notice nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.lab.lab import Lab, LabError, Node, wait_until
from orchestrator.lab.probe import Log, Probe, http_get
from tests.lab.asking import answers, switch
from tests.lab.cli import Cli, meshd, task_containers
from tests.lab.members import leader_seen_by, managers, three_managers_agree
from tests.lab.temporary import temporary_lab

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with temporary_lab("m") as lab:
        lab.up(3)
        Cli(lab.nodes[0]).create("web", "--replicas", "3", "-p", "8080:80")
        yield lab


def tasks(cli: Cli) -> str:
    """Ids and nodes of web's tasks; every task that was ever made is in it."""
    return cli.ok("service", "ps", "web", "--no-trunc", "--format", "{{.ID}} {{.Node}}")


def three_managers(lab: Lab) -> Node:
    """All three nodes are managers and say so; returns the leader."""
    if not three_managers_agree(lab.nodes):
        cli = Cli(next(node for node in lab.nodes if leader_seen_by(node)))
        for node in lab.nodes:
            # one at a time: etcd wants rest between two changes of its members
            cli.ok("node", "promote", node.name)
            wait_until(lambda node=node: managers(node).get(node.name) in ("Leader", "Reachable"), 60, f"{node.name} is a manager")
        wait_until(lambda: three_managers_agree(lab.nodes), 60, "three managers agree")
    return lab.node(leader_seen_by(lab.nodes[0]))


def others(lab: Lab, node: Node) -> list[Node]:
    return [other for other in lab.nodes if other.name != node.name]


def written(node: Node, name: str) -> Callable[[], bool]:
    """A write at this node is acknowledged; a name that is taken was written by a try whose answer was lost."""

    def attempt() -> bool:
        done = Cli(node).run("service", "create", "-d", "--name", name, "--replicas", "0", "meshd/demo:v1")
        return done.returncode == 0 or "already exists" in done.stderr or "conflicts with an existing object" in done.stderr

    return attempt


@contextlib.contextmanager
def nobody_notices(lab: Lab, ask: Node) -> Iterator[None]:
    """No request to the published port fails, no task is touched."""
    before = tasks(Cli(ask))
    log = Log()
    probe = Probe(log, "x", "port", switch(lab), 20, lambda: http_get(ask.address, 8080))
    try:
        yield
    finally:
        probe.stop()
    assert [answer.error for answer in log.failed(0)] == []
    assert log.count(0) > 0
    assert tasks(Cli(ask)) == before


def test_promoted_workers_are_managers_that_answer_and_a_killed_leader_is_replaced(lab: Lab) -> None:
    leader = three_managers(lab)
    ask, also = others(lab, leader)
    with nobody_notices(lab, ask):
        pid = leader.pid_of("meshd")
        leader.kill("meshd")
        wait_until(lambda: leader_seen_by(ask) not in ("", leader.name), 15, "another manager leads")
        wait_until(written(also, "after-the-kill"), 10, "writes go on")
        wait_until(lambda: leader.pid_of("meshd") not in (0, pid), 20, "meshd is back")
        assert three_managers(lab).name != ""


def test_a_leader_that_was_stopped_does_no_harm_when_it_goes_on(lab: Lab) -> None:
    leader = three_managers(lab)
    ask, _ = others(lab, leader)
    pid = leader.pid_of("meshd")
    with nobody_notices(lab, ask):
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: leader_seen_by(ask) not in ("", leader.name), 30, "another manager leads")
            wait_until(written(ask, "while-it-slept"), 10, "writes go on")
        finally:
            os.kill(pid, signal.SIGCONT)
        three_managers(lab)
        assert leader.pid_of("meshd") == pid
        assert "while-it-slept" in Cli(leader).ok("service", "ls", "--format", "{{.Name}}")


def test_a_leader_is_demoted_and_goes_on_as_a_worker_with_its_tasks(lab: Lab) -> None:
    leader = three_managers(lab)
    ask, also = others(lab, leader)
    with nobody_notices(lab, ask):
        Cli(leader).ok("node", "demote", leader.name)
        wait_until(lambda: leader.name not in managers(ask), 40, "it is no manager any more")
        wait_until(lambda: "Worker nodes can't be used" in Cli(leader).run("node", "ls").stderr, 30, "it knows")
        wait_until(lambda: leader.pid_of("etcd") == 0, 10, "its etcd is gone")
        wait_until(written(ask, "with-two"), 20, "two managers write")
        # two of two: neither may be lost without the other
        wait_until(lambda: sorted(managers(ask).values()) == ["Leader", "Reachable"], 20, "two managers agree")
        Cli(ask).ok("node", "demote", also.name)
        wait_until(lambda: managers(ask) == {ask.name: "Leader"}, 40, "one manager is left")
        assert "attempting to demote the last manager of the swarm" in Cli(ask).fails("node", "demote", ask.name)
        wait_until(written(ask, "with-one"), 20, "it writes alone")
    three_managers(lab)


def test_a_manager_demoted_and_promoted_again_at_once_is_one(lab: Lab) -> None:
    """Whether its etcd was let go in between or not."""
    leader = three_managers(lab)
    other = others(lab, leader)[0]
    with nobody_notices(lab, leader):
        for number, moment in enumerate((lambda: True, lambda: other.pid_of("etcd") == 0)):
            Cli(leader).ok("node", "demote", other.name)
            # at once, which nearly always is before its etcd was let go, and as soon as that has ended
            wait_until(moment, 60, "its etcd has ended")
            Cli(leader).ok("node", "promote", other.name)
            wait_until(lambda: managers(leader).get(other.name) == "Reachable", 60, "it is a manager")
            wait_until(lambda: leader_seen_by(other) == leader.name, 60, "it answers as one")
            wait_until(written(other, f"again-{number}"), 20, "it writes")


def test_a_dead_manager_is_demoted_and_removed_and_comes_back_as_nobody(lab: Lab) -> None:
    leader = three_managers(lab)
    ask, dead = others(lab, leader)
    dead.kill("all")
    cli = Cli(ask)
    wait_until(lambda: managers(ask).get(dead.name) == "Unreachable", 30, "it is unreachable")
    assert "It must be demoted to worker before removal" in cli.fails("node", "rm", dead.name)
    assert "loss of quorum" in cli.fails("node", "demote", ask.name)
    cli.ok("node", "demote", dead.name)
    wait_until(lambda: dead.name not in managers(ask), 40, "its member is out")
    wait_until(lambda: cli.run("node", "rm", dead.name).returncode == 0, 60, "it is down and removed")
    wait_until(written(ask, "without-the-dead"), 10, "writes go on")
    cli.wait_replicas("web", "3/3")
    lab.start(dead)
    Cli(dead).ok("swarm", "leave", "--force")
    token = cli.ok("swarm", "join-token", "-q", "manager")
    Cli(dead).ok("swarm", "join", "--token", token, "--advertise-addr", dead.address, f"{ask.address}:2377")
    wait_until(lambda: sorted(managers(ask).values()) == ["Leader", "Reachable", "Reachable"], 40, "it joined anew")


def test_without_a_quorum_everything_goes_on_but_changes_and_one_manager_recovers(lab: Lab) -> None:
    leader = three_managers(lab)
    ask, also = others(lab, leader)
    cli = Cli(ask)
    here = cli.ok("service", "ps", "web", "--filter", f"node={ask.name}", "-q").split()
    for lost in (leader, also):
        lost.kill("all")
    wait_until(lambda: "no majority of the managers" in cli.run("info").stderr + cli.run("info").stdout, 30, "it is said")
    assert "web" in cli.ok("service", "ls", "--format", "{{.Name}}")
    started = time.monotonic()
    assert "Make sure more than half of the managers are online" in cli.fails("service", "scale", "-d", "web=4")
    assert time.monotonic() - started < 10
    if here:
        # the tasks of the lost nodes stay in the balancers: nobody can say that they are gone
        wait_until(lambda: answers(switch(lab), ask.address, 8080), 30, "its own task answers through its port")
    assert "is the only manager now" in meshd(ask, "recover", "--yes")
    wait_until(lambda: managers(ask) == {ask.name: "Leader"}, 15, "it is alone")
    wait_until(written(ask, "recovered"), 10, "it writes")
    for lost in (leader, also):
        lab.start(lost)
    for lost in (leader, also):
        wait_until(lambda lost=lost: "Worker nodes can't be used" in Cli(lost).run("node", "ls").stderr, 40, f"{lost.name} is a worker")
    cli.wait_replicas("web", "3/3")
    three_managers(lab)


def test_a_cluster_is_restored_from_a_backup_and_its_workers_come_back(lab: Lab, tmp_path: Path) -> None:
    keep = three_managers(lab)
    file = tmp_path / "cluster.backup"
    for other in others(lab, keep):
        Cli(keep).ok("node", "demote", other.name)
        wait_until(lambda other=other: other.name not in managers(keep), 40, f"{other.name} is a worker")
    Cli(keep).wait_replicas("web", "3/3")
    assert "checked" in meshd(keep, "backup", str(file))
    running = {node.name: task_containers(node, "web") for node in others(lab, keep)}
    Cli(keep).ok("swarm", "leave", "--force")
    assert "This node is not a swarm manager" in Cli(keep).fails("service", "ls")
    with pytest.raises(LabError, match="no backup of meshd"):
        meshd(keep, "restore", __file__)
    assert "restored" in meshd(keep, "restore", str(file), "--advertise-addr", keep.address)
    with pytest.raises(LabError, match="this node is part of a cluster"):
        meshd(keep, "restore", str(file))
    cli = Cli(keep)

    def back() -> bool:
        lines = cli.ok("node", "ls", "--format", "{{.Hostname}} {{.Status}}").splitlines()
        return all(f"{node.name} Ready" in lines for node in lab.nodes)

    wait_until(back, 40, "the workers are back")
    for other in others(lab, keep):
        assert set(running[other.name]) <= set(task_containers(other, "web")), "their tasks ran on"
    cli.wait_replicas("web", "3/3")
    for line in cli.ok("node", "ls", "--format", "{{.ID}} {{.Status}}").splitlines():
        if line.endswith("Down"):
            cli.ok("node", "rm", line.split()[0])
    assert len(cli.ok("node", "ls", "-q").split()) == 3


def test_a_manager_that_leaves_is_not_counted_any_more(lab: Lab) -> None:
    """Of two left by force one is enough: Swarm would have lost its quorum."""
    leader = three_managers(lab)
    ask, also = others(lab, leader)
    assert "Use `--force` to suppress this message" in Cli(also).fails("swarm", "leave")
    for leaving in (leader, also):
        Cli(leaving).ok("swarm", "leave", "--force")
        wait_until(lambda leaving=leaving: leaving.name not in managers(ask), 30, f"{leaving.name} is no manager")
    wait_until(written(ask, "alone"), 15, "the last one writes")
    for leaving in (leader, also):
        wait_until(lambda leaving=leaving: Cli(ask).run("node", "rm", leaving.name).returncode == 0, 30, f"{leaving.name} is removed")
    assert managers(ask) == {ask.name: "Leader"}
