"""What a trace is made of: the probes that are sent, and the sightings of them in the namespaces they pass.

Pure. Every probe carries its trace's `mark` where no translation of addresses changes it: TCP in the upper 24 bits of the initial
sequence number (an answer acknowledges it), UDP and ICMP in the payload, all in the low bits of the client's port. A sighting is one
frame on one link of one namespace; the same probe is sighted once on every link it passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Protocol = Literal["tcp", "udp", "icmp"]
Way = Literal["there", "back"]

MAX_PROBES: Final = 16
_FIRST_PORT: Final = 61008
"""Above Linux's ephemeral ports (32768-60999), and a multiple of MAX_PROBES: a block of ports is recognised by its upper bits."""
_PORT_BLOCKS: Final = (65536 - _FIRST_PORT) // MAX_PROBES

HOST: Final = "host"
NETWORK: Final = "network"


def task_place(task_id: str) -> str:
    return f"task:{task_id}"


@dataclass(frozen=True, slots=True)
class Mark:
    """Tells the frames of one trace from all others. `value`: 24 bits, random."""

    value: int

    def __post_init__(self) -> None:
        if not 0 <= self.value < 1 << 24:
            raise ValueError(f"{self.value} is not a number of 24 bits")

    @property
    def ports(self) -> range:
        """Source ports of the probes, by number."""
        first = _FIRST_PORT + MAX_PROBES * (self.value % _PORT_BLOCKS)
        return range(first, first + MAX_PROBES)

    def sequence(self, number: int) -> int:
        """Initial sequence number of TCP probe `number`; the answer acknowledges this plus one."""
        return self.value << 8 | number << 1

    def number_of(self, sequence: int) -> int | None:
        """Which probe a sequence or acknowledgement number belongs to."""
        number = (sequence & 0xFF) >> 1
        return number if sequence >> 8 == self.value and number < MAX_PROBES else None


@dataclass(frozen=True, slots=True)
class Probe:
    """`count` packets from one namespace to one destination. port: 0 for ICMP."""

    protocol: Protocol
    destination: str
    port: int
    mark: Mark
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_PROBES:
            raise ValueError(f"between 1 and {MAX_PROBES} probes, not {self.count}")


@dataclass(frozen=True, slots=True)
class Capsule:
    """The outer header of an encapsulated frame: the VTEPs, and the network."""

    source: str
    destination: str
    vni: int


@dataclass(frozen=True, slots=True)
class Packet:
    """A probe, an answer to it, or an error about it. `kind`: syn, syn-ack, rst, datagram, echo, echo-reply, unreachable."""

    number: int
    way: Way
    kind: str
    source: str
    destination: str
    source_port: int = 0
    destination_port: int = 0
    source_mac: str = ""
    destination_mac: str = ""
    capsule: Capsule | None = None


@dataclass(frozen=True, slots=True)
class Sighting:
    """`place`: "host", "network" (the network's namespace) or "task:<id>". outgoing: the kernel sends it over `link`."""

    time_ns: int
    place: str
    link: str
    outgoing: bool
    packet: Packet
