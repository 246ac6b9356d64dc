"""CPUs, memory and generic resources: what a task reserves, what a node has left.

Pure: no I/O. Source: Docker's `--reserve-cpu`, `--reserve-memory`, `--generic-resource`; limits are no business of the scheduler.
A task holds its reservation from the moment it has a node until it has ended, draining included: the process is still there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.model import (
    DiscreteGenericResource,
    GenericResource,
    NamedGenericResource,
    NodeDescription,
    ResourceObject,
    TaskSpec,
)


@dataclass(frozen=True, slots=True)
class Reservation:
    """`generic`: (kind, count), sorted by kind."""

    nano_cpus: int = 0
    memory_bytes: int = 0
    generic: tuple[tuple[str, int], ...] = ()


NOTHING = Reservation()


def reservation(spec: TaskSpec) -> Reservation:
    wanted = spec.resources.reservations if spec.resources else None
    if wanted is None:
        return NOTHING
    generic: Counter[str] = Counter()
    for resource in wanted.generic_resources or ():
        _count(generic, resource)
    return Reservation(wanted.nano_cpus, wanted.memory_bytes, tuple(sorted(generic.items())))


def capacity(resources: ResourceObject, overcommit: float) -> Reservation:
    """What may be reserved on a node. Overcommitted are CPUs and memory; a card is a card."""
    generic: Counter[str] = Counter()
    for resource in resources.generic_resources or ():
        _count(generic, resource)
    factor = 1 + overcommit
    return Reservation(int(resources.nano_cpus * factor), int(resources.memory_bytes * factor), tuple(sorted(generic.items())))


def reservation_of(spec: TaskSpec, given: Iterable[GenericResource] | None) -> Reservation:
    """What a placed task holds: CPUs and memory of its spec, generic resources as it was given them."""
    wanted = reservation(spec)
    if not wanted.generic and not given:
        return wanted
    held: Counter[str] = Counter()
    for resource in given or ():
        _count(held, resource)
    return Reservation(wanted.nano_cpus, wanted.memory_bytes, tuple(sorted(held.items())))


def cpu_words(nano_cpus: int) -> str:
    return f"{nano_cpus / 1e9:g} CPU{'' if nano_cpus == 10**9 else 's'}"


def memory_words(size_bytes: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= unit:
            return f"{round(size_bytes / unit, 1):g} {name}"
    return f"{size_bytes} B"


def _count(counts: Counter[str], resource: GenericResource) -> None:
    if discrete := resource.discrete_resource_spec:
        counts[discrete.kind] += discrete.value
    elif named := resource.named_resource_spec:
        counts[named.kind] += 1


class Available:
    """The generic resources that a node has left, named ones by name."""

    __slots__ = ("_discrete", "_named")

    def __init__(self, description: NodeDescription) -> None:
        self._discrete: Counter[str] = Counter()
        self._named: dict[str, set[str]] = {}
        for resource in description.resources.generic_resources or ():
            if discrete := resource.discrete_resource_spec:
                self._discrete[discrete.kind] += discrete.value
            elif named := resource.named_resource_spec:
                self._named.setdefault(named.kind, set()).add(named.value)

    def hold(self, held: Iterable[GenericResource]) -> None:
        """A task has these."""
        for resource in held:
            if discrete := resource.discrete_resource_spec:
                self._discrete[discrete.kind] -= discrete.value
            elif named := resource.named_resource_spec:
                self._named.get(named.kind, set()).discard(named.value)

    def take(self, wanted: Reservation) -> list[GenericResource]:
        """What one more task is given, named ones by name; there must be enough of each kind."""
        given: list[GenericResource] = []
        for kind, count in wanted.generic:
            names = sorted(self._named.get(kind, ()))[:count]
            given += [GenericResource(named_resource_spec=NamedGenericResource(kind=kind, value=name)) for name in names]
            if count > len(names):
                rest = DiscreteGenericResource(kind=kind, value=count - len(names))
                given.append(GenericResource(discrete_resource_spec=rest))
        self.hold(given)
        return given
