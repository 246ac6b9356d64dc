"""What goes wrong when: a seed's list of faults, the same in every run.

Pure. Faults come in rounds of some seconds, several in each and across each other; a round troubles a minority of the managers at
most, but for those of `no_quorum`. The first half leaves the network, the machines' power and DNS alone: whatever happens to meshd,
etcd, Engines, disks and clocks there, no request may fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

Kind = Literal[
    "kill", "stop", "no_quorum", "full_disk", "slow_fsync", "clock", "partition", "one_way", "loss", "slow_link", "power",
]  # fmt: skip
# the node that leads when the fault's round begins
LEADER = "leader"
_FIRST_S, _LAST_S = 2.0, 3.0
# part of the rounds
_NO_QUORUM = 0.15
_ROUND_S, _LEAST_ROUND_S, _REST_S = (8.0, 20.0), 4.0, (4.0, 8.0)


@dataclass(frozen=True, slots=True)
class Fault:
    """From `at_s` for `for_s` seconds (0: a moment). nodes: whom it hits; partition: who is cut off from the rest; one_way: the first
    can't send to the second. unit: of kill and stop. amount: seconds (slow_fsync, clock), part of the packets (loss), bits a second
    (slow_link)."""

    round: int
    at_s: float
    for_s: float
    kind: Kind
    nodes: tuple[str, ...]
    unit: str = ""
    amount: float = 0.0

    @property
    def end_s(self) -> float:
        return self.at_s + self.for_s

    @property
    def of_network(self) -> bool:
        """Requests and questions may fail by it; all others go on through every other fault."""
        return self.kind in ("partition", "one_way", "loss", "slow_link", "power") or self.unit == "dnsd"

    def __str__(self) -> str:
        amount = {"slow_fsync": f" {self.amount:g} s", "clock": f" {self.amount:+g} s", "loss": f" {self.amount:.0%}"}.get(self.kind, "")
        span = f" for {self.for_s:.1f} s" if self.for_s else ""
        return f"{self.kind}{' ' + self.unit if self.unit else ''} {', '.join(self.nodes)}{amount}{span}"


# (kind, unit) and how often, of all cards of a deck: every deck has every card
_OF_PROCESSES: dict[tuple[Kind, str], int] = {
    ("kill", "meshd"): 3, ("kill", "etcd"): 3, ("kill", "engine"): 1, ("stop", "meshd"): 2, ("stop", "etcd"): 2, ("stop", "engine"): 1,
    ("full_disk", ""): 2, ("slow_fsync", ""): 2, ("clock", ""): 2,
}  # fmt: skip
_OF_NETWORK: dict[tuple[Kind, str], int] = {
    ("kill", "dnsd"): 1, ("stop", "dnsd"): 1, ("partition", ""): 3, ("one_way", ""): 2, ("loss", ""): 2, ("slow_link", ""): 1,
    ("power", ""): 2,
}  # fmt: skip
_FOR_S: dict[Kind, tuple[float, float]] = {
    "kill": (0, 0), "stop": (1, 12), "no_quorum": (4, 10), "full_disk": (3, 10), "slow_fsync": (5, 15), "clock": (5, 20),
    "partition": (3, 20), "one_way": (3, 12), "loss": (4, 12), "slow_link": (4, 12), "power": (2, 15),
}  # fmt: skip
_AMOUNTS: dict[Kind, tuple[float, ...]] = {
    "slow_fsync": (0.05, 0.3, 1.0, 2.5),
    # a certificate that was made just now must stay valid: authorities date them back an hour
    "clock": (-2400, -60, -3, 3, 60, 3600, 259_200),
    "loss": (0.1, 0.3, 0.5),
    "slow_link": (300_000, 1_000_000),
}


def schedule(seed: int, duration_s: float, managers: Sequence[str], workers: Sequence[str] = ()) -> list[Fault]:
    """Faults in the order they begin, all of them over before `duration_s`."""
    random = Random(f"chaos {seed}")
    faults: list[Fault] = []
    round = 0
    calm, wild = _cards(random, _OF_PROCESSES), _cards(random, {**_OF_PROCESSES, **_OF_NETWORK})
    for cards, start_s, end_s in ((calm, _FIRST_S, duration_s / 2), (wild, duration_s / 2 + _FIRST_S, duration_s)):
        at_s, end_s = start_s, end_s - _LAST_S
        while end_s - at_s >= _LEAST_ROUND_S:
            round += 1
            made = _round(random, cards, round, at_s, min(at_s + random.uniform(*_ROUND_S), end_s), managers, workers)
            faults += made
            at_s = max((fault.end_s for fault in made), default=at_s) + random.uniform(*_REST_S)
    return sorted(faults, key=lambda fault: fault.at_s)


def _cards(random: Random, deck: dict[tuple[Kind, str], int]) -> Iterator[tuple[Kind, str]]:
    """Deck after deck, each shuffled."""
    while True:
        cards = [card for card, count in deck.items() for _ in range(count)]
        random.shuffle(cards)
        yield from cards


def _round(
    random: Random, cards: Iterator[tuple[Kind, str]], round: int, start_s: float, end_s: float, managers: Sequence[str],
    workers: Sequence[str],
) -> list[Fault]:  # fmt: skip
    most = (len(managers) - 1) // 2
    if random.random() < _NO_QUORUM:
        for_s = _hundredths(min(random.uniform(*_FOR_S["no_quorum"]), end_s - start_s))
        return [Fault(round, _hundredths(start_s), for_s, "no_quorum", tuple(sorted(random.sample(list(managers), most + 1))))]
    # the leader's troubles are the most instructive
    troubled = [*([LEADER] if random.random() < 0.4 else []), *random.sample(list(managers), len(managers))][:most]
    faults: list[Fault] = []
    at_s = start_s
    while at_s < end_s:
        kind, unit = next(cards)
        for_s = _hundredths(min(random.uniform(*_FOR_S[kind]), end_s - at_s))
        amount = random.choice(_AMOUNTS.get(kind, (0.0,)))
        nodes = _nodes(random, kind, unit, troubled, managers, workers)
        same = [fault for fault in faults if (fault.kind, fault.unit) == (kind, unit) and set(fault.nodes) & set(nodes)]
        too_short = kind != "kill" and for_s < 0.5
        if nodes and not too_short and not any(fault.end_s >= at_s for fault in same):
            faults.append(Fault(round, _hundredths(at_s), for_s, kind, nodes, unit, amount))
        at_s += random.choice((0.3, 1.0, 2.0, 4.0)) * random.uniform(0.5, 1.5)
    return faults


def _nodes(
    random: Random, kind: Kind, unit: str, troubled: Sequence[str], managers: Sequence[str], workers: Sequence[str]
) -> tuple[str, ...]:  # fmt: skip
    """Whom the fault hits; () = there is nobody that it may hit."""
    of_managers = kind in ("full_disk", "slow_fsync") or unit == "etcd"
    may = [*troubled, *(() if of_managers else workers)]
    if not may:
        return ()
    # managers are what this is about
    first = random.choice(may if random.random() < 0.5 else troubled or may)
    if kind == "one_way":
        return (first, random.choice([node for node in (*managers, *workers) if node != first]))
    if kind == "partition":
        return tuple(sorted({first, *(node for node in may if random.random() < 0.4)}))
    return (first,)


def _hundredths(seconds: float) -> float:
    return int(seconds * 100) / 100
