"""A whole cluster on one machine: N nodes as namespaces on one bridge, each with its own Docker Engine and its own meshd.

Edge. What kind and k3d are to Kubernetes. Everything it makes is below one state directory or carries the lab's name, so `down` finds
it again after any crash; the machine's own namespace, Engine and firewall are never touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker import DockerClient

from orchestrator.errors import ConfigError, MeshdError
from orchestrator.lab import image, processes
from orchestrator.lab.layout import (
    DEFAULT_STATE_DIR,
    DEFAULT_SUBNET,
    LabLayout,
    NodeLayout,
    check_count,
    engine_command,
    layout,
    meshd_command,
)

Progress = Callable[[str], None]
KILLABLE = ("meshd", "engine", "etcd", "dnsd", "all")


class LabError(MeshdError):
    """The lab could not be brought where it should be; the text says what failed and where to look."""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What `status` shows of one node. rss_bytes by program; a program that isn't running is missing from it."""

    name: str
    address: str
    up: bool
    cut: bool
    rss_bytes: dict[str, int]
    restarts: dict[str, int]
    socket: Path


def run(*command: str, check: bool = True, input: str | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, input=input)
    if check and done.returncode != 0:
        raise LabError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def wait_until(condition: Callable[[], bool], deadline_s: float, what: str, every_s: float = 0.05) -> None:
    """Poll until true; LabError naming `what` after the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"{what}: not within {deadline_s:g} s")
        time.sleep(every_s)


class Node:
    """One node of a lab."""

    def __init__(self, lab: Lab, spec: NodeLayout) -> None:
        self.lab = lab
        self.layout = spec
        self.name = spec.name
        self.address = spec.address

    def record(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            record: dict[str, Any] = json.loads(self.layout.state_file.read_text())
            return record
        return {}

    @property
    def init_pid(self) -> int:
        """Pid of the node's first process; 0 when the node is down."""
        record = self.record()
        pid = int(record.get("pid") or 0)
        return pid if pid and processes.is_alive(pid, int(record.get("started") or 0)) else 0

    def pid_of(self, unit: str) -> int:
        """Pid of "meshd", "engine", "etcd" or "dnsd" on this node; 0 when it isn't running."""
        entry = self.record().get("units", {}).get(unit)
        if entry is not None:
            return int(entry["pid"]) if entry["pid"] and processes.is_alive(entry["pid"], entry["started"]) else 0
        return self._descendant(unit)

    def _descendant(self, program: str) -> int:
        """etcd and dnsd are meshd's own: found by their command line's path below this node's state directory."""
        here = str(self.layout.meshd_dir)
        for pid in processes.marked(self.lab.layout.marker):
            command = processes.command_line(pid)
            is_program = (
                Path(command[0]).name == program
                if command and program == "etcd"
                else program in command[1:3] or f"-m {program}" in " ".join(command)
            )
            if is_program and any(here in word for word in command):
                return pid
        return 0

    def exec(self, *command: str, check: bool = True, input: str | None = None) -> str:
        """Run a command on the node and return its standard output."""
        return run(*self.exec_prefix(), *command, check=check, input=input)

    def exec_prefix(self) -> list[str]:
        pid = self.init_pid
        if not pid:
            raise LabError(f"{self.name} is not running; `meshd lab up` starts it")
        return ["nsenter", "-t", str(pid), "--net", "--mount", "--uts", "--"]

    def docker(self) -> DockerClient:
        """A docker-py client of this node's meshd."""
        return DockerClient(base_url=f"unix://{self.layout.meshd_socket}", timeout=120)

    def engine(self) -> DockerClient:
        """A docker-py client of this node's own Engine, past meshd."""
        return DockerClient(base_url=f"unix://{self.layout.engine_socket}", timeout=120)

    def wait_ready(self, deadline_s: float = 30.0, *, meshd: bool = True) -> None:
        def answers(path: Path) -> bool:
            with contextlib.suppress(Exception):
                client = DockerClient(base_url=f"unix://{path}", timeout=5)
                try:
                    return bool(client.ping())
                finally:
                    client.close()
            return False

        wait_until(
            lambda: answers(self.layout.engine_socket),
            deadline_s,
            f"{self.name}: Docker Engine answers (log: {self.layout.log_dir}/engine.log)",
        )
        if meshd:
            wait_until(
                lambda: answers(self.layout.meshd_socket), deadline_s, f"{self.name}: meshd answers (log: {self.layout.log_dir}/meshd.log)"
            )

    def kill(self, what: str = "all") -> None:
        """SIGKILL one program of the node (it comes back as under systemd), or the whole node like a power cut (`up` brings it back)."""
        if what not in KILLABLE:
            raise ConfigError(f"can't kill {what!r}; one of: {', '.join(KILLABLE)}")
        if what == "all":
            self.lab.end_node(self.layout, grace_s=0)
            return
        pid = self.pid_of(what)
        if not pid:
            raise LabError(f"{self.name}: {what} is not running")
        os.kill(pid, 9)

    def cut(self) -> None:
        """Pull the network plug: the node runs on, nobody reaches it."""
        run("ip", "-n", self.lab.layout.switch, "link", "set", self.layout.port, "down")

    def heal(self) -> None:
        run("ip", "-n", self.lab.layout.switch, "link", "set", self.layout.port, "up")

    def report(self) -> NodeReport:
        units = {unit: self.pid_of(unit) for unit in ("meshd", "etcd", "dnsd", "engine")}
        record = self.record().get("units", {})
        state = run("ip", "-n", self.lab.layout.switch, "-o", "link", "show", self.layout.port, check=False)
        return NodeReport(
            name=self.name,
            address=self.address,
            up=self.init_pid != 0,
            cut=bool(state) and ",UP" not in state.partition("<")[2].partition(">")[0],
            rss_bytes={unit: processes.resident_bytes(pid) for unit, pid in units.items() if pid},
            restarts={unit: int(entry.get("restarts", 0)) for unit, entry in record.items()},
            socket=self.layout.meshd_socket,
        )


class Lab:
    """A lab in `state_dir`. Creating the object touches nothing; `up` is idempotent and finishes half-made labs.

    daemon_options: more of `meshd daemon`, the same on every node. environment: what a node's meshd (and so its etcd and dnsd) finds in its
    environment beside the lab's own. live_restore: containers outlive their Engine, which then can't be in swarm mode itself.
    """

    def __init__(
        self,
        state_dir: Path = DEFAULT_STATE_DIR,
        subnet: str | None = None,
        progress: Progress = lambda text: None,
        daemon_options: Sequence[str] = (),
        environment: Callable[[NodeLayout], Mapping[str, str]] = lambda node: {},
        live_restore: bool = True,
    ) -> None:
        self._daemon_options = tuple(daemon_options)
        recorded = _read_record(state_dir)
        if subnet is not None and recorded.get("subnet", subnet) != subnet:
            raise ConfigError(f"the lab in {state_dir} is on {recorded['subnet']}; take it down before you give it another --subnet")
        self.layout: LabLayout = layout(state_dir, subnet or recorded.get("subnet", DEFAULT_SUBNET), recorded.get("name", ""))
        self._progress = progress
        self._environment = environment
        self._live_restore = live_restore

    @property
    def count(self) -> int:
        """Nodes that belong to the lab, running or not; 0 when there is no lab."""
        return int(_read_record(self.layout.state_dir).get("nodes", 0))

    @property
    def nodes(self) -> list[Node]:
        return [Node(self, self.layout.node(i + 1)) for i in range(self.count)]

    def node(self, name: str) -> Node:
        return Node(self, self.layout.node_named(name, self.count))

    def up(self, nodes: int = 3, *, meshd: bool = True, cluster: bool = True, managers: int = 1) -> None:
        """Bring up what is missing: namespaces, Engines, meshd, images, the cluster. Without meshd the Engines are Docker's alone."""
        check_count(nodes, self.layout)
        if not 1 <= managers <= nodes:
            raise ConfigError(f"--managers {managers}: between 1 and the number of nodes ({nodes})")
        check_machine()
        if self.count > nodes:
            raise ConfigError(f"this lab has {self.count} nodes; `meshd lab down` before you make it smaller")
        self.layout.state_dir.mkdir(parents=True, exist_ok=True)
        record = {"nodes": nodes, "subnet": str(self.layout.subnet), "name": self.layout.name}
        self.layout.record_file.write_text(json.dumps(record))
        self._make_switch()
        for node in self.nodes:
            self._begin(node, meshd=meshd)
        for node in self.nodes:
            self._await(node, meshd=meshd)
        if meshd and cluster:
            self._form_cluster(managers)

    def start(self, node: Node) -> None:
        """Bring one killed node back, whatever it is to the cluster by now."""
        self._begin(node, meshd=True)
        self._await(node, meshd=True)

    def _begin(self, node: Node, *, meshd: bool) -> None:
        if not node.init_pid:
            self._progress(f"starting {node.name} ({node.address})")
            self._start_node(node.layout, meshd=meshd)

    def _await(self, node: Node, *, meshd: bool) -> None:
        self._progress(f"waiting for {node.name}")
        node.wait_ready(60, meshd=meshd)
        self._import_images(node)

    def down(self) -> None:
        """End and remove everything of this lab, whatever state a crash left it in."""
        record = _read_record(self.layout.state_dir)
        count = max(int(record.get("nodes", 0)), *(0, *(_node_index(path) for path in self.layout.state_dir.glob("node-*"))))
        specs = [self.layout.node(i + 1) for i in range(count)]
        for spec in specs:
            self._progress(f"stopping {spec.name}")
            self.end_node(spec, grace_s=0)
        survivors = processes.end(lambda: processes.marked(self.layout.marker), grace_s=0)
        if survivors:
            raise LabError(f"processes {survivors} of this lab don't end, even by SIGKILL; look at `cat /proc/{survivors[0]}/stack`")
        if self.layout.switch in run("ip", "netns", "list").split():
            run("ip", "netns", "delete", self.layout.switch)
        _unmount_below(self.layout.state_dir)
        if self.layout.state_dir.exists():
            shutil.rmtree(self.layout.state_dir)

    def end_node(self, spec: NodeLayout, *, grace_s: float) -> None:
        """End all processes of one node (its init first, so that nothing is started again) and its containers; free its cgroups."""
        record = Node(self, spec).record()
        pid, started = int(record.get("pid") or 0), int(record.get("started") or 0)
        processes.end(lambda: [pid] if processes.is_alive(pid, started) else [], grace_s=grace_s)
        here = str(spec.directory)

        def of_node() -> list[int]:
            ours = [p for p in processes.marked(self.layout.marker) if _belongs(p, here)]
            return ours + processes.in_cgroup(spec.cgroup)

        survivors = processes.end(of_node, grace_s=grace_s)
        if survivors:
            raise LabError(f"{spec.name}: processes {survivors} don't end")
        processes.remove_cgroup(spec.cgroup)
        spec.state_file.unlink(missing_ok=True)

    def _make_switch(self) -> None:
        switch = self.layout.switch
        if switch in run("ip", "netns", "list").split():
            return
        run("ip", "netns", "add", switch)
        try:
            run("ip", "-n", switch, "link", "set", "lo", "up")
            run("ip", "-n", switch, "link", "add", "name", "lab0", "type", "bridge")
            run("ip", "-n", switch, "address", "add", f"{self.layout.client_address}/{self.layout.subnet.prefixlen}", "dev", "lab0")
            run("ip", "-n", switch, "link", "set", "lab0", "up")
        except LabError:
            run("ip", "netns", "delete", switch, check=False)
            raise

    def _start_node(self, spec: NodeLayout, *, meshd: bool) -> None:
        self.end_node(spec, grace_s=0)
        engine = spec.directory / "engine"
        engine.mkdir(parents=True, exist_ok=True)
        (engine / "daemon.json").write_text("{}")
        for stale in (engine / "dockerd.pid", spec.engine_socket, engine / "run" / "containerd" / "containerd.pid"):
            stale.unlink(missing_ok=True)
        units: list[dict[str, Any]] = [{"name": "engine", "command": engine_command(spec, live_restore=self._live_restore)}]
        if meshd:
            command, environment = [*meshd_command(spec, sys.executable), *self._daemon_options], dict(self._environment(spec))
            units.append({"name": "meshd", "command": command, "after": str(spec.engine_socket), "environment": environment})
        (spec.directory / "init.json").write_text(json.dumps({"name": spec.name, "units": units}))
        spec.log_dir.mkdir(parents=True, exist_ok=True)
        key, _, value = self.layout.marker.partition("=")
        lab_environment = {**os.environ, key: value, "MESHD_LAB_NODE": str(spec.directory)}
        init_command = [sys.executable, "-m", "orchestrator.lab.init", str(spec.directory)]
        with (spec.log_dir / "init.log").open("ab") as log:
            process = subprocess.Popen(
                ["unshare", "--net", "--mount", "--uts", "--propagation=private", "--", *init_command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=lab_environment,
            )
        node = Node(self, spec)

        def started() -> bool:
            if process.poll() is not None:
                raise LabError(f"{spec.name} ended at once: {(spec.log_dir / 'init.log').read_text()[-500:].strip()}")
            return node.init_pid != 0

        wait_until(started, 10, f"{spec.name} starts", every_s=0.01)
        self._plug(spec, node.init_pid)

    def _plug(self, spec: NodeLayout, pid: int) -> None:
        switch = self.layout.switch
        run("ip", "-n", switch, "link", "delete", spec.port, check=False)
        run("ip", "-n", switch, "link", "add", spec.port, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        run("ip", "-n", switch, "link", "set", spec.port, "master", "lab0", "up")
        enter = ["nsenter", "-t", str(pid), "--net", "--"]
        run(*enter, "ip", "link", "set", "lo", "up")
        run(*enter, "ip", "address", "add", f"{spec.address}/{spec.prefix_length}", "dev", "eth0")
        run(*enter, "ip", "link", "set", "eth0", "up")

    def _import_images(self, node: Node) -> None:
        client = node.engine()
        try:
            have = {tag for present in client.images.list() for tag in present.tags}
            if not {f"{image.DEMO_IMAGE}:{version}" for version in (*image.VERSIONS, "latest")} <= have:
                self._progress(f"loading {image.DEMO_IMAGE} on {node.name}")
                client.images.load(image.archive())
        finally:
            client.close()

    def _form_cluster(self, managers: int) -> None:
        first, *others = self.nodes
        client = first.docker()
        try:
            if client.info()["Swarm"]["LocalNodeState"] == "inactive":
                self._progress(f"swarm init on {first.name}")
                client.api.init_swarm(advertise_addr=first.address)
            # one that was killed finds its quorum first
            wait_until(lambda: bool(client.info()["Swarm"]["ControlAvailable"]), 30, f"{first.name} is a manager again")
            tokens = client.api.inspect_swarm()["JoinTokens"]
            for number, node in enumerate(others, start=2):
                other = node.docker()
                try:
                    if other.info()["Swarm"]["LocalNodeState"] == "inactive":
                        role = "Manager" if number <= managers else "Worker"
                        self._progress(f"{node.name} joins as {role.lower()}")
                        other.api.join_swarm([f"{first.address}:2377"], tokens[role], advertise_addr=node.address)
                finally:
                    other.close()
            names = {node.name for node in self.nodes}

            def all_ready() -> bool:
                ready = {n["Description"]["Hostname"] for n in client.api.nodes() if n["Status"]["State"] == "ready"}
                return names <= ready

            wait_until(all_ready, 30, "all nodes are ready in `docker node ls`")
        finally:
            client.close()


def _belongs(pid: int, directory: str) -> bool:
    return f"MESHD_LAB_NODE={directory}".encode() in processes.environment(pid)


def _node_index(path: Path) -> int:
    number = path.name.partition("-")[2]
    return int(number) if number.isdigit() else 0


def _read_record(state_dir: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        record: dict[str, Any] = json.loads((state_dir / "lab.json").read_text())
        return record
    return {}


def _unmount_below(directory: Path) -> None:
    """The nodes' mounts die with their mount namespaces; this is for what leaked into ours."""
    here = str(directory) + "/"
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for target in sorted((target for target in mounted if target.startswith(here)), reverse=True):
        run("umount", "--lazy", target, check=False)


def check_machine() -> None:
    """ConfigError, with what to do, unless this machine can host a lab."""
    if os.geteuid() != 0:
        raise ConfigError("a lab makes network namespaces and runs Docker Engines: run this as root (sudo)")
    needed: Sequence[tuple[str, str]] = (
        ("dockerd", "docker.io"),
        ("containerd", "containerd"),
        ("etcd", "etcd-server"),
        ("nft", "nftables"),
        ("ip", "iproute2"),
        ("unshare", "util-linux"),
    )
    missing = [package for program, package in needed if shutil.which(program) is None]
    if missing:
        raise ConfigError(f"missing on this machine: apt-get install --no-install-recommends {' '.join(missing)}")
    image.busybox()
