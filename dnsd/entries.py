"""What names stand for, as small as it can be: a node may have to know a hundred thousand of them.

Pure.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from dnsd.model import PortName

# A task as its names know it: one of these states, how many of its addresses are IPv4 (2 bytes), all its addresses (those first).
Task = bytes
GONE, RUNNING, SERVING = range(3)


class Service:
    """A service as its names know it. targets: what SRV records call its tasks, in their order; only if it has ports."""

    __slots__ = ("ports", "targets", "tasks", "vips")

    def __init__(self, vips: tuple[bytes, ...], ports: tuple[PortName, ...]) -> None:
        self.vips = vips
        self.ports = ports
        self.tasks: tuple[Task, ...] = ()
        self.targets: tuple[bytes, ...] = ()


class Several(list[Service | Task]):
    """Services that share a name, and tasks that are named by it directly (container name, slot name, alias)."""


Entry = Service | Task | Several


class Fingerprints:
    """A set that can only be asked whether it has an item: eight bytes each, where Python's own takes a hundred. It takes one item for
    another once in 10**14 questions."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: dict[int, array[int]] = {}

    def add(self, item: bytes) -> bool:
        """Whether it is new."""
        number = hash(item)
        bucket = self._buckets.setdefault(number & 1023, array("q"))
        if number in bucket:
            return False
        bucket.append(number)
        return True

    def __contains__(self, item: bytes) -> bool:
        number = hash(item)
        return number in self._buckets.get(number & 1023, ())


class Choice:
    """Addresses of what serves, or else of what runs."""

    def __init__(self, tasks: Iterable[Task] = ()) -> None:
        self.serving: list[bytes] = []
        self.running: list[bytes] = []
        self.add(tasks)

    def add(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            if task[0] != GONE:
                (self.serving if task[0] == SERVING else self.running).extend(addresses_in(task))

    def made(self) -> tuple[bytes, ...]:
        """In order, each once."""
        return tuple(dict.fromkeys(self.serving or self.running))


def packed_task(state: int, addresses: Iterable[bytes]) -> Task:
    four = [address for address in addresses if len(address) == 4]
    six = [address for address in addresses if len(address) == 16]
    return bytes((state,)) + len(four).to_bytes(2) + b"".join(four + six)


def addresses_in(task: Task) -> Iterable[bytes]:
    end = 3 + 4 * int.from_bytes(task[1:3])
    for at in range(3, end, 4):
        yield task[at : at + 4]
    for at in range(end, len(task), 16):
        yield task[at : at + 16]


def split(entry: Entry | None) -> tuple[Sequence[Service], Sequence[Task]]:
    """The services that have a name, and the tasks."""
    match entry:
        case None:
            return (), ()
        case Service():
            return (entry,), ()
        case bytes():
            return (), (entry,)
    return [one for one in entry if isinstance(one, Service)], [one for one in entry if isinstance(one, bytes)]
