"""Which services the control loops have to look at: all but the settled ones.

Pure: a function of the snapshot (`residents`), so what it leaves out a new leader leaves out too. A service is settled when it has what it
asks for, and neither time nor a node nor a setting of the cluster can give a loop something to do for it: all that could is a change of the
service, its tasks, its claims or its networks, and each of those makes it be judged anew. What asks for more attention than that (global
services, jobs, slots with an identity, updates under way) is never settled.
"""

from __future__ import annotations

from orchestrator.control.defaults import replicas
from orchestrator.control.endpoints import ingress_of, is_complete, targets, wants_vip
from orchestrator.control.labels import STATEFUL
from orchestrator.control.placement_labels import REBALANCE, priority_of
from orchestrator.control.ports import is_of_port
from orchestrator.control.residents import Resident, to_follow
from orchestrator.control.slots import dirty, is_updating, mode_of, wanted
from orchestrator.model import Claim, Network, Object, Service, Task, TaskState, terminal
from orchestrator.store.snapshot import Snapshot


class Attention:
    """Also told by ids: `port_claims`, of published ports; `historic`, the services that have tasks which are not wanted any more, those
    that are gone included; `ownerless`, the services that are gone and have tasks; `priorities`, of the services whose priority isn't 0."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._build(snapshot)

    def _build(self, snapshot: Snapshot) -> None:
        self._shown = snapshot
        self._ingress = ingress_of(snapshot.all(Network))
        self._unsettled: dict[str, Service] = {}
        self._in_order: list[Service] | None = None
        self._with_vip: set[str] = set()
        self.port_claims = {claim.id for claim in snapshot.all(Claim) if is_of_port(claim.id)}
        self.historic: set[str] = set()
        self.ownerless: set[str] = set()
        self.priorities: dict[str, int] = {}
        for id in {*snapshot.tasks_by_service, *(service.id for service in snapshot.all(Service))}:
            self._judge(id)

    def unsettled(self) -> list[Service]:
        """By id."""
        if self._in_order is None:
            self._in_order = [self._unsettled[id] for id in sorted(self._unsettled)]
        return self._in_order

    def follow(self, snapshot: Snapshot) -> None:
        if snapshot is self._shown:
            return
        changed = to_follow(self._shown, snapshot)
        if changed is None:
            self._build(snapshot)
            return
        before, self._shown = self._shown, snapshot
        touched: set[str] = set()
        for kind, id in changed:
            old, new = before.raw(kind, id), snapshot.raw(kind, id)
            if old is new:
                continue
            if kind == "service":
                touched.add(id)
            elif kind == "task":
                touched.update(task.service_id for task in (old, new) if isinstance(task, Task))
            elif kind == "claim" and is_of_port(id):
                _set(self.port_claims, id, new is not None)
                touched.update(claim.owner for claim in (old, new) if isinstance(claim, Claim))
            elif kind == "network":
                touched |= self._concerned_by(id, old, new)
        if any(kind == "network" for kind, _ in changed):
            self._ingress = ingress_of(snapshot.all(Network))
        for id in touched:
            self._judge(id)

    def _concerned_by(self, network_id: str, *ages: Object | None) -> set[str]:
        """The services that want a virtual IP there; of the ingress network all that want any, as those that publish don't name it."""
        if any(isinstance(network, Network) and network.ingress for network in ages):
            return self._with_vip
        found = ((id, self._shown.service(id)) for id in self._with_vip)
        return {id for id, service in found if service is not None and network_id in targets(service.spec)}

    def _judge(self, id: str) -> None:
        service, tasks = self._shown.service(id), self._shown.tasks_of_service(id)
        _set(self.historic, id, any(not wanted(task) for task in tasks))
        _set(self.ownerless, id, service is None and bool(tasks))
        if priority := priority_of(service):
            self.priorities[id] = priority
        else:
            self.priorities.pop(id, None)
        _set(self._with_vip, id, service is not None and wants_vip(service.spec))
        if service is None or self._is_settled(service, tasks):
            if self._unsettled.pop(id, None) is not None:
                self._in_order = None
        elif self._unsettled.get(id) is not service:
            self._unsettled[id] = service
            self._in_order = None

    def _is_settled(self, service: Service, tasks: list[Task]) -> bool:
        labels = service.spec.labels or ()
        return (
            mode_of(service) == "replicated"
            and STATEFUL not in labels
            and REBALANCE not in labels
            and service.mesh_homes is None
            and not is_updating(service)
            and _all_slots_filled(service, tasks)
            and is_complete(service, self._shown, self._ingress)
        )


def _all_slots_filled(service: Service, tasks: list[Task]) -> bool:
    """One task is let run in each slot, and nothing else but history is there."""
    slots: set[int] = set()
    live = 0
    for task in tasks:
        if terminal(task.status.state):
            if wanted(task):
                return False
        elif task.desired_state is TaskState.RUNNING and not dirty(task, service):
            live += 1
            slots.add(task.slot)
        else:
            return False
    if not live == len(slots) == replicas(service):
        return False
    # slots that went earlier are not history but to be forgotten
    return len(tasks) == live or all(task.slot in slots or task.desired_state is TaskState.REMOVE for task in tasks)


def _set(ids: set[str], id: str, there: bool) -> None:
    if there:
        ids.add(id)
    else:
        ids.discard(id)


RESIDENT = Resident(Attention)


def attention(snapshot: Snapshot) -> Attention:
    """Valid until the next call."""
    return RESIDENT.showing(snapshot)
