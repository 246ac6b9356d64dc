"""When a started task may be offered traffic: healthy where it has a check, else its TCP ports listen, at the latest after 30 s.

Pure: parses what /proc shows, reads nothing. Source: proc(5), /proc/<pid>/net/tcp and tcp6.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.model import PortConfig

# a program that opens its ports late, or never, is not held back for ever
READY_BOUND_S = 30.0
# what an image exposes is said of its own command; of another one ("sleep", a client) it is only a hint
HINT_BOUND_S = 2.0
_LISTEN = "0A"


@dataclass(frozen=True, slots=True)
class PortRule:
    """all_of must listen; if it is empty, any one of any_of. Both empty: ready at once.

    Published ports were promised by the user, so every one counts; an image often exposes ports that its configuration leaves closed.
    """

    all_of: frozenset[int] = frozenset()
    any_of: frozenset[int] = frozenset()
    bound_s: float = READY_BOUND_S

    def met_by(self, listening: frozenset[int]) -> bool:
        if self.all_of:
            return self.all_of <= listening
        return not self.any_of or bool(self.any_of & listening)


def port_rule(published: Iterable[PortConfig], exposed: Iterable[int], *, own_command: bool = True) -> PortRule:
    """published: the service's ports, ingress and host mode. exposed: the image's TCP ports. own_command: the image's, not the spec's."""
    promised = frozenset(port.target_port for port in published if port.protocol == "tcp" and port.target_port)
    return PortRule(promised, frozenset(exposed), READY_BOUND_S if promised or own_command else HINT_BOUND_S)


def listening_ports(*tables: str) -> frozenset[int]:
    """TCP ports in LISTEN that can be reached from another host: what listens on a loopback address only doesn't count."""
    ports = set()
    for table in tables:
        for line in table.splitlines()[1:]:
            fields = line.split()
            if len(fields) > 3 and fields[3] == _LISTEN:
                address, _, port = fields[1].rpartition(":")
                if not _is_loopback(address):
                    ports.add(int(port, 16))
    return frozenset(ports)


def _is_loopback(address: str) -> bool:
    """Addresses are 32-bit words in the host's byte order: 127.0.0.1 is 0100007F on a little-endian machine."""
    if len(address) == 8:
        return address.endswith("7F")
    mapped = address.startswith("0000000000000000FFFF0000")
    return address == "00000000000000000000000001000000" or (mapped and address.endswith("7F"))
