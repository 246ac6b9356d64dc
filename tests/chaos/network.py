"""What the switch of a lab does to packets while faults last.

Pure. A rule stands where packets of a node enter the switch, so one direction between two nodes can be cut without the other.
Source: nft(8), family netdev, hook ingress; numgen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .schedule import Fault

_TABLE = "netdev chaos"


@dataclass(slots=True)
class Network:
    """cut: (from, to address). loss: node -> part of what it sends that is lost. bits_a_second: node -> speed towards it."""

    cut: set[tuple[str, str]] = field(default_factory=set)
    loss: dict[str, float] = field(default_factory=dict)
    bits_a_second: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, faults: Mapping[Fault, tuple[str, ...]], addresses: Mapping[str, str]) -> Network:
        """faults: with the names of the nodes that each hits. addresses: of all nodes."""
        network = cls()
        for fault, names in faults.items():
            match fault.kind:
                case "partition":
                    apart = set(names)
                    network.cut |= {(a, addresses[b]) for a in addresses for b in addresses if (a in apart) != (b in apart)}
                case "one_way":
                    network.cut.add((names[0], addresses[names[1]]))
                case "loss":
                    network.loss[names[0]] = max(fault.amount, network.loss.get(names[0], 0.0))
                case "slow_link":
                    network.bits_a_second[names[0]] = min(fault.amount, network.bits_a_second.get(names[0], fault.amount))
        return network


def rules(network: Network, ports: Mapping[str, str]) -> str:
    """The whole table as an nft script, applied at once. ports: of the nodes that are plugged in."""
    lines = [f"table {_TABLE} {{}}", f"delete table {_TABLE}", f"table {_TABLE} {{"]
    for name, port in sorted(ports.items()):
        drops = [f"ip daddr {address} drop" for source, address in sorted(network.cut) if source == name]
        if name in network.loss:
            drops.append(f"numgen random mod 100 < {round(100 * network.loss[name])} drop")
        if drops:
            lines += [f'  chain {port} {{ type filter hook ingress device "{port}" priority 0;', *(f"    {drop}" for drop in drops), "  }"]
    return "\n".join([*lines, "}"]) + "\n"
