"""Names, addresses and paths of a lab: everything that can be said about it before anything exists.

Pure: no I/O.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import ConfigError

DEFAULT_STATE_DIR = Path("/var/lib/meshd-lab")
# TEST-NET-1 (RFC 5737): no real network uses it, so a lab can't shadow one
DEFAULT_SUBNET = "192.0.2.0/24"
MAX_NODES = 200
API_PORT = 2377
# sun_path has 108 bytes; the longest socket below the state directory is containerd's
MAX_PATH_LENGTH = 107 - len("/node-200/engine/run/containerd/containerd-debug.sock")


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """One node: `name` is also its hostname; `port` the name of its link on the lab's bridge."""

    name: str
    index: int
    address: str
    prefix_length: int
    port: str
    directory: Path
    cgroup: str

    @property
    def meshd_socket(self) -> Path:
        return self.directory / "meshd.sock"

    @property
    def engine_socket(self) -> Path:
        return self.directory / "docker.sock"

    @property
    def state_file(self) -> Path:
        """Written by the node's init process: pids and start times of what runs on the node."""
        return self.directory / "node.json"

    @property
    def meshd_dir(self) -> Path:
        return self.directory / "meshd"

    @property
    def log_dir(self) -> Path:
        return self.directory / "log"


@dataclass(frozen=True, slots=True)
class LabLayout:
    """`name` tells labs of one machine apart: the state directory's own, and a digest of its path: one directory is one lab."""

    state_dir: Path
    name: str
    subnet: ipaddress.IPv4Network

    @property
    def switch(self) -> str:
        """The network namespace with the lab's bridge; the lab's outside client lives there, too."""
        return f"meshd-lab-{self.name}"

    @property
    def marker(self) -> str:
        """Environment of every process the lab starts: how a later run recognises what is ours."""
        return f"MESHD_LAB={self.name}:{self.state_dir}"

    @property
    def client_address(self) -> str:
        return str(self.subnet[-2])

    @property
    def record_file(self) -> Path:
        return self.state_dir / "lab.json"

    def node(self, index: int) -> NodeLayout:
        """Node `index`, counted from 1."""
        name = f"node-{index}"
        return NodeLayout(
            name=name,
            index=index,
            address=str(self.subnet[index]),
            prefix_length=self.subnet.prefixlen,
            port=f"n{index}",
            directory=self.state_dir / name,
            cgroup=f"meshd-lab-{self.name}-{name}",
        )

    def node_named(self, name: str, count: int) -> NodeLayout:
        match = re.fullmatch(r"(?:node-)?(\d+)", name)
        if match is None or not 1 <= int(match[1]) <= count:
            raise ConfigError(f"no node {name!r} in this lab; it has {', '.join(f'node-{i + 1}' for i in range(count)) or 'none'}")
        return self.node(int(match[1]))


def layout(state_dir: Path, subnet: str = DEFAULT_SUBNET, name: str = "") -> LabLayout:
    """The layout of the lab in `state_dir`. name: of one that is there already.

    ConfigError: the subnet is no IPv4 network of at least 8 addresses.
    """
    try:
        network = ipaddress.IPv4Network(subnet)
    except ValueError as error:
        raise ConfigError(f"--subnet {subnet!r}: {error}; give an IPv4 network such as {DEFAULT_SUBNET}") from None
    if network.num_addresses < 8:
        raise ConfigError(f"--subnet {subnet}: too small; a lab needs at least 8 addresses (a /29)")
    directory = state_dir.absolute()
    if len(str(directory)) > MAX_PATH_LENGTH:
        raise ConfigError(
            f"--state-dir {directory}: longer than {MAX_PATH_LENGTH} characters; the sockets below it would not fit into 108 (unix(7))"
        )
    return LabLayout(state_dir=directory, name=name or _name_of(directory), subnet=network)


def _name_of(directory: Path) -> str:
    readable = re.sub(r"[^a-z0-9]+", "-", directory.name.lower()).strip("-")[-20:] or "lab"
    return f"{readable}-{hashlib.sha256(str(directory).encode()).hexdigest()[:6]}"


def check_count(count: int, lab: LabLayout) -> None:
    most = min(MAX_NODES, lab.subnet.num_addresses - 4)
    if not 1 <= count <= most:
        raise ConfigError(f"--nodes {count}: a lab on {lab.subnet} has 1 to {most} nodes")


def engine_command(node: NodeLayout, *, live_restore: bool = True) -> list[str]:
    """dockerd for one node: nothing shared with another Engine; bridge, firewall rules and port proxies of its own, as any Engine has. One
    that is to be in swarm mode itself must not have live-restore: dockerd refuses both together."""
    engine = node.directory / "engine"
    return [
        "dockerd",
        f"--config-file={engine / 'daemon.json'}",
        f"--data-root={engine / 'data'}",
        f"--exec-root={engine / 'run'}",
        f"--pidfile={engine / 'dockerd.pid'}",
        f"--host=unix://{node.engine_socket}",
        *(["--live-restore"] if live_restore else []),
        "--exec-opt=native.cgroupdriver=cgroupfs",
        f"--cgroup-parent=/{node.cgroup}",
    ]


def meshd_command(node: NodeLayout, python: str) -> list[str]:
    return [
        python,
        "-m",
        "orchestrator.cli",
        "daemon",
        f"--state-dir={node.meshd_dir}",
        f"--socket={node.meshd_socket}",
        f"--engine=unix://{node.engine_socket}",
        f"--advertise-addr={node.address}",
        f"--listen-addr={node.address}:{API_PORT}",
        f"--hostname={node.name}",
    ]
