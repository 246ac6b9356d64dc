"""Doing a fault to a lab, and undoing it.

Edge: signals, nftables and traffic control in the lab's switch, files. What the machines need for it from their start (an etcd that can be
slowed down, a clock that can be set, a small disk) is `environment` and `prepare`. The clock is meshd's and dnsd's; etcd reads the
time without the C library and keeps the true one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.lab import processes
from orchestrator.lab.lab import Lab, LabError, Node, run
from orchestrator.lab.layout import NodeLayout

from . import slow_fsync
from .network import Network, rules
from .schedule import LEADER, Fault

# etcd's write-ahead log takes 128 MB of it at once, and a doctor wants some to be free
DISK_BYTES = 512 * 2**20


def _fsync_file(node: NodeLayout) -> Path:
    return node.directory / "fsync-delay"


def _clock_file(node: NodeLayout) -> Path:
    return node.directory / "clock"


def _clock_library(node: NodeLayout) -> Path:
    return node.directory / "bin" / "clock.so"


def environment(node: NodeLayout) -> Mapping[str, str]:
    """For the node's meshd: its etcd is the one of `prepare`, its clock the one in the node's file."""
    preload = {"LD_PRELOAD": str(_clock_library(node)), "CHAOS_CLOCK": str(_clock_file(node))} if _clock_library(node).exists() else {}
    return {"PATH": f"{node.directory / 'bin'}:{os.environ['PATH']}", **preload}


def prepare(lab: Lab, count: int) -> None:
    """Before the lab comes up. meshd's directory is a disk of its own, which outlives the node's power; `lab.down` unmounts it."""
    etcd, compiler = shutil.which("etcd"), shutil.which("cc")
    for node in (lab.layout.node(i + 1) for i in range(count)):
        node.meshd_dir.mkdir(parents=True)
        run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(node.meshd_dir))
        wrapper = node.directory / "bin" / "etcd"
        wrapper.parent.mkdir()
        # etcd's version is asked for without slowing anything down
        slow = f"{sys.executable} -I -S {slow_fsync.__file__} {_fsync_file(node)} {etcd}"
        wrapper.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec {etcd} "$@"\nexec {slow} "$@"\n')
        wrapper.chmod(0o755)
        _fsync_file(node).write_text("0")
        _set_clock(node, 0.0)
        if compiler is not None:
            library, source = _clock_library(node), Path(__file__).with_name("clock.c")
            run(compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl", "-lm")


def _set_clock(node: NodeLayout, offset_s: float) -> None:
    """In place: the clock has the file in its memory."""
    file = _clock_file(node)
    file.touch()
    with open(file, "r+b", buffering=0) as clock:
        clock.write(struct.pack("=d", offset_s))


class Faults:
    """`begin(fault)`, later `end(fault)`; `heal()` at the end of all. Safe to call from several threads.

    leader: names the node that leads now, "" if nobody knows.
    """

    def __init__(self, lab: Lab, leader: Callable[[], str]) -> None:
        self._lab, self._leader = lab, leader
        self._lock = threading.Lock()
        self._network: dict[Fault, tuple[str, ...]] = {}
        self._victims: dict[int, str] = {}
        self._stopped: dict[Fault, list[tuple[int, int]]] = {}

    def nodes_of(self, fault: Fault) -> tuple[str, ...]:
        """Whom it hits, by name; the leader is who led when the first fault of the round asked for it."""
        with self._lock:
            if LEADER in fault.nodes and fault.round not in self._victims:
                self._victims[fault.round] = self._leader() or self._lab.nodes[0].name
            return tuple(self._victims[fault.round] if name == LEADER else name for name in fault.nodes)

    def begin(self, fault: Fault) -> None:
        """LabError: it could not be done (the program isn't running just now): nothing to undo."""
        names = self.nodes_of(fault)
        nodes = [self._lab.node(name) for name in names]
        match fault.kind:
            case "kill":
                nodes[0].kill(fault.unit)
            case "stop":
                self._stop(fault, nodes, fault.unit)
            case "no_quorum":
                self._stop(fault, nodes, "etcd")
            case "full_disk":
                _fill(nodes[0].layout.meshd_dir)
            case "slow_fsync":
                _fsync_file(nodes[0].layout).write_text(f"{fault.amount:g}")
            case "clock":
                if not _clock_library(nodes[0].layout).exists():
                    raise LabError("setting a clock takes a compiler: apt-get install gcc libc6-dev")
                _set_clock(nodes[0].layout, fault.amount)
            case "power":
                nodes[0].kill("all")
            case "partition" | "one_way" | "loss" | "slow_link":
                self._change_network(fault, names)

    def end(self, fault: Fault) -> None:
        """As it was, whatever else happened to the node since; what is down is started."""
        nodes = [self._lab.node(name) for name in self.nodes_of(fault)]
        match fault.kind:
            case "stop" | "no_quorum":
                self._go_on(fault)
            case "full_disk":
                (nodes[0].layout.meshd_dir / "ballast").unlink(missing_ok=True)
            case "slow_fsync":
                _fsync_file(nodes[0].layout).write_text("0")
            case "clock":
                _set_clock(nodes[0].layout, 0.0)
            case "power":
                self._lab.start(nodes[0])
                self._change_network(fault, None)
            case "partition" | "one_way" | "loss" | "slow_link":
                self._change_network(fault, None)
            case "kill":
                pass

    def heal(self) -> None:
        """Whatever was done to whomever, and whether or not it was undone."""
        with self._lock:
            faults = [*self._stopped, *self._network]
        for fault in faults:
            self.end(fault)
        for node in self._lab.nodes:
            (node.layout.meshd_dir / "ballast").unlink(missing_ok=True)
            _fsync_file(node.layout).write_text("0")
            _set_clock(node.layout, 0.0)
            if not node.init_pid:
                self._lab.start(node)

    def _stop(self, fault: Fault, nodes: list[Node], unit: str) -> None:
        stopped = []
        for node in nodes:
            pid = node.pid_of(unit)
            started = processes.start_time(pid) if pid else None
            if started is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    stopped.append((pid, started))
        if not stopped:
            raise LabError(f"{unit} of {', '.join(node.name for node in nodes)} is not running")
        with self._lock:
            self._stopped[fault] = stopped

    def _go_on(self, fault: Fault) -> None:
        with self._lock:
            stopped = self._stopped.pop(fault, [])
        for pid, started in stopped:
            if processes.is_alive(pid, started):
                os.kill(pid, signal.SIGCONT)

    def _change_network(self, fault: Fault, names: tuple[str, ...] | None) -> None:
        """The whole network anew: every port of the switch gets its rules and its speed."""
        with self._lock:
            if names is None:
                self._network.pop(fault, None)
            else:
                self._network[fault] = names
            network = Network.of(self._network, {node.name: node.address for node in self._lab.nodes})
            switch = self._lab.layout.switch
            links = run("ip", "-n", switch, "-o", "link", "show").splitlines()
            present = {line.split()[1].partition("@")[0].rstrip(":") for line in links}
            ports = {node.name: node.layout.port for node in self._lab.nodes if node.layout.port in present}
            run("ip", "netns", "exec", switch, "nft", "-f", "-", input=rules(network, ports))
            for name, port in ports.items():
                shaper = ["tc", "-n", switch, "qdisc"]
                if name in network.bits_a_second:
                    # a queue of most of a second: what gets through comes late
                    rate = f"{network.bits_a_second[name]:g}bit"
                    run(*shaper, "replace", "dev", port, "root", "tbf", "rate", rate, "burst", "8kb", "latency", "600ms")
                else:
                    run(*shaper, "del", "dev", port, "root", check=False)


def _fill(directory: Path) -> None:
    """Not a byte is free any more."""
    with open(directory / "ballast", "wb", buffering=0) as ballast:
        for chunk_bytes in (2**20, 4096):
            with contextlib.suppress(OSError):
                while ballast.write(b"\0" * chunk_bytes):
                    pass


def copy_logs(lab: Lab, target: Path) -> None:
    """What the nodes' programs had to say, one directory a node."""
    for node in lab.nodes:
        place = target / node.name
        place.mkdir(parents=True, exist_ok=True)
        for log in [*node.layout.log_dir.glob("*.log*"), *node.layout.meshd_dir.glob("*.log*"), *node.layout.meshd_dir.glob("etcd/*.log*")]:
            shutil.copy(log, place)
