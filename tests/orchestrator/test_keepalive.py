"""What the kernel says of a peer that is gone without a word, in two network namespaces."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from orchestrator.keepalive import impatient
from orchestrator.lab.probe import enter_network

pytestmark = pytest.mark.root
NEAR, FAR = f"keep-near-{os.getpid()}", f"keep-far-{os.getpid()}"
ADDRESS = ("198.51.100.2", 4000)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def cable() -> Iterator[None]:
    try:
        for name in (NEAR, FAR):
            ip("netns", "add", name)
        ip("-n", NEAR, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", FAR)
        for name, address in ((NEAR, "198.51.100.1/24"), (FAR, "198.51.100.2/24")):
            ip("-n", name, "address", "add", address, "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        yield
    finally:
        for name in (NEAR, FAR):
            subprocess.run(["ip", "netns", "delete", name], check=False)


def inside(name: str, work: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        enter_network(f"/run/netns/{name}")
        work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("speaks", [False, True], ids=["idle", "with something under way"])
def test_a_peer_without_power_is_noticed(cable: None, speaks: bool) -> None:
    listening, connected, cut = threading.Event(), threading.Event(), threading.Event()
    outcome: list[object] = []

    def far() -> None:
        with socket.create_server(ADDRESS) as server:
            listening.set()
            accepted, _ = server.accept()
            cut.wait(60)
            accepted.close()

    def near() -> None:
        with impatient((socket.AF_INET, socket.SOCK_STREAM, 0, "", ADDRESS)) as client:
            client.connect(ADDRESS)
            connected.set()
            cut.wait(60)
            if speaks:
                client.send(b"anybody there?")
            try:
                outcome.append(client.recv(1))
            except OSError as error:
                outcome.append(type(error))

    inside(FAR, far)
    assert listening.wait(10)
    waiting = inside(NEAR, near)
    assert connected.wait(10)
    # the switch loses everything; the near end's cable is whole
    drop = "{{ type filter hook {0} priority raw; policy drop; }}"
    rules = [f"add chain ip off {hook} {drop.format(hook)}" for hook in ("prerouting", "output")]
    table = "\n".join(["add table ip off", *rules, ""])
    subprocess.run(["ip", "netns", "exec", FAR, "nft", "-f", "-"], input=table, text=True, check=True)
    cut.set()
    waiting.join(60)
    assert outcome == [TimeoutError]
