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
        if discrete := resource.discrete_resource_spec:
            generic[discrete.kind] += discrete.value
        elif named := resource.named_resource_spec:
            generic[named.kind] += 1
    return Reservation(wanted.nano_cpus, wanted.memory_bytes, tuple(sorted(generic.items())))


class Available:
    """What a node has left; changed by `take` as tasks are placed. Below zero where the node shrank under its tasks."""

    __slots__ = ("_discrete", "_named", "memory_bytes", "nano_cpus")

    def __init__(self, description: NodeDescription) -> None:
        resources = description.resources
        self.nano_cpus = resources.nano_cpus
        self.memory_bytes = resources.memory_bytes
        self._discrete: Counter[str] = Counter()
        self._named: dict[str, set[str]] = {}
        for resource in resources.generic_resources or ():
            if discrete := resource.discrete_resource_spec:
                self._discrete[discrete.kind] += discrete.value
            elif named := resource.named_resource_spec:
                self._named.setdefault(named.kind, set()).add(named.value)

    def fits(self, wanted: Reservation) -> bool:
        # what is not reserved is not asked for: a node short of memory still takes tasks that reserve none
        return (
            (not wanted.nano_cpus or wanted.nano_cpus <= self.nano_cpus)
            and (not wanted.memory_bytes or wanted.memory_bytes <= self.memory_bytes)
            and (not wanted.generic or self._fits_generic(wanted))
        )

    def _fits_generic(self, wanted: Reservation) -> bool:
        return all(count <= self._discrete[kind] + len(self._named.get(kind, ())) for kind, count in wanted.generic)

    def hold(self, wanted: Reservation, held: Iterable[GenericResource] = ()) -> None:
        """A task that already runs here; `held` are the generic resources it was given."""
        self.nano_cpus -= wanted.nano_cpus
        self.memory_bytes -= wanted.memory_bytes
        for resource in held:
            if discrete := resource.discrete_resource_spec:
                self._discrete[discrete.kind] -= discrete.value
            elif named := resource.named_resource_spec:
                self._named.get(named.kind, set()).discard(named.value)

    def take(self, wanted: Reservation) -> list[GenericResource]:
        """Reserve for one more task (`fits` said yes); returns the generic resources it gets, named ones by name."""
        given: list[GenericResource] = []
        for kind, count in wanted.generic:
            names = sorted(self._named.get(kind, ()))[:count]
            given += [GenericResource(named_resource_spec=NamedGenericResource(kind=kind, value=name)) for name in names]
            if count > len(names):
                rest = DiscreteGenericResource(kind=kind, value=count - len(names))
                given.append(GenericResource(discrete_resource_spec=rest))
        self.hold(wanted, given)
        return given
