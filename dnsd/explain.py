"""Why an answer is what it is: which of the asker's networks knows the name, by which rule, which tasks are left out and why.

Pure. It tells in words what `resolve.View.find` and `zone.Zone.find` decide, in the same order, and asks them wherever it can.
"""

from __future__ import annotations

import difflib
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

from dnsd import names
from dnsd.errors import ConfigError
from dnsd.model import ScopeSpec, TaskName, TaskShown
from dnsd.policy import Policy
from dnsd.resolve import LOCALHOST, LOOPBACK, View
from dnsd.zone import TASKS, Named, Zone, prefixed

_SHOWN = 10
# So much of an id is enough to mean it.
_ID_BEGINNING = 3

_T = TypeVar("_T")
# All names of a network may have to be read: with pauses, in which askers are answered (`loop.Pace.run`).
Steps = Generator[None, None, _T]


@dataclass(slots=True)
class Reason:
    """origin "zone": one of ours, answered or denied. rule: a sentence."""

    rule: str
    origin: str = "zone"
    network: str = ""
    tasks: tuple[TaskShown, ...] = ()
    notes: list[str] = field(default_factory=list)


def reason_of(view: View, name: bytes) -> Steps[Reason]:
    """name: as a lower-case wire name."""
    text = names.text_of(name)
    found = view.find(name)
    if found is None:
        if denied := _denial(view, name):
            return Reason(denied)
        return Reason(f"{text} is not ours: {_forwarding(view.policy, name)}", origin="upstream")
    if name == LOCALHOST:
        return Reason("localhost is every asker's own loopback (RFC 6761)")
    if (packed := names.reverse_address(name)) is not None:
        return (yield from _pointer(view, packed))
    candidates = [(zone, prefix, zone.find(name, prefix)) for prefix in view.prefixes for zone in view.zones]
    known = [(zone, prefix, here) for zone, prefix, here in candidates if here is not None]
    # As in `find`: the asker's own stack first, then the first network that can be reached, then the first that knows the name.
    for wanted in view.prefixes:
        ranked = sorted((here.empty, number) for number, (_, prefix, here) in enumerate(known) if prefix == wanted)
        if ranked:
            zone, prefix, _ = known[ranked[0][1]]
            reason = yield from _match(zone, name, prefix)
            if prefix:
                stacked = f"{prefix.decode()}{text.split('.')[0]}"
                reason.notes.append(f"the asker's own stack comes first: {stacked} goes before what is called {text}")
            others = {other.name: None for other, _, _ in known if other is not zone}
            if others:
                reason.notes.append(
                    f"also known on {', '.join(others)}: not used; the asker's first network that can be reached wins, they are never mixed"
                )
            return reason
    return Reason(f"{text} exists only because there are names below it (RFC 8020): no records")


def find_asker(reference: str, scopes: Mapping[str, ScopeSpec], zones: Iterable[Zone]) -> Steps[tuple[str, str]]:
    """(scope id, name) of the one asker that is meant: by id, container name, the beginning of either, or its service's name.
    ConfigError: nobody, or several."""
    named: dict[str, list[str]] = {scope_id: [] for scope_id in scopes}
    elsewhere = False
    for zone in zones:
        services, containers = zone.pieces()
        of_services = ((task, (task.name, service.name)) for service, tasks in services for task in tasks)
        for task, texts in chain(of_services, ((task, (task.name,)) for task in containers)):
            if task.id in named:
                named[task.id] += [text for text in texts if text not in named[task.id]]
            else:
                elsewhere = elsewhere or any(_is_meant(reference, text) for text in texts)
            yield
    shown = {scope_id: (texts or [scope_id])[0] for scope_id, texts in named.items()}
    for meant in (
        [scope_id for scope_id in named if scope_id == reference],
        [scope_id for scope_id, texts in named.items() if reference in texts],
        [scope_id for scope_id, texts in named.items() if any(_is_meant(reference, text) for text in texts)],
        [scope_id for scope_id in named if len(reference) >= _ID_BEGINNING and scope_id.startswith(reference)],
    ):
        if len(meant) == 1:
            return meant[0], shown[meant[0]]
        if meant:
            raise ConfigError(f"{reference!r} may be {_listed(shown[scope_id] for scope_id in meant)}: say which")
    if elsewhere:
        raise ConfigError(f"{reference} is not on this node: ask on the node where it runs (docker service ps says which)")
    if not shown:
        raise ConfigError(f"no task {reference!r} on this node: no task with names of its own runs here")
    texts_of = {text: shown[scope_id] for scope_id, texts in named.items() for name in texts for text in (name, name.rpartition(".")[0])}
    near = {texts_of[text] for text in difflib.get_close_matches(reference, sorted(texts_of))}
    hint = f"did you mean {_listed(near)}?" if near else f"there are {_listed(shown.values())}"
    raise ConfigError(f"no task {reference!r} on this node: {hint}")


def _is_meant(reference: str, text: str) -> bool:
    return text == reference or text.startswith(f"{reference}.")


def _listed(texts: Iterable[str]) -> str:
    ordered = sorted(texts)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more


# -- what has the name ----------------------------------------------------------------------------------------------------------


def _match(zone: Zone, name: bytes, prefix: bytes) -> Steps[Reason]:
    """The zone knows the name, with this prefix."""
    reason = yield from _match_bare(zone, name, prefix)
    if reason is None and (bare := zone.without_suffix(name)):
        reason = yield from _match_bare(zone, bare, prefix)
    assert reason is not None
    reason.network = zone.name
    return reason


def _match_bare(zone: Zone, name: bytes, prefix: bytes) -> Steps[Reason | None]:
    full = prefixed(name, prefix)
    found = yield from zone.named(full)
    if found.services or found.tasks:
        return _by_name(names.text_of(full), found)
    if name.startswith(TASKS) and name[6]:
        found = yield from zone.named(prefixed(name[6:], prefix))
        if found.services:
            rule = f"{names.text_of(name)} is always the addresses of {_services(found)}'s serving tasks, in turns"
            return _offering(rule, _tasks(found))
    labels = names.labels_of(name)
    if name[1:2] == b"_" and len(labels) > 2:
        found = yield from zone.named(prefixed(names.wire_name(labels[2:]), prefix))
        port = b".".join(labels[:2]).decode(errors="replace")
        return _offering(f"{port} is a declared port of {_services(found)}: SRV records lead to its serving tasks by slot", _tasks(found))
    return None


def _by_name(text: str, found: Named) -> Reason:
    sentences = []
    for service, _ in found.services:
        if service.name.lower() != text:
            sentences.append(f"{text} is an alias of service {service.name}")
        if service.vips:
            sentences.append(f"service {service.name} has a virtual IP: connections to it are spread over its serving tasks")
        else:
            sentences.append(f"service {service.name} has no virtual IP (dnsrr): the addresses of its serving tasks, in turns")
    for task in found.tasks:
        called = "an alias" if text in (alias.lower() for alias in task.aliases) else "the slot"
        sentences.append(
            f"{text} is container {task.name}" if text == task.name.lower() else f"{text} is {called} of container {task.name}"
        )
    reason = _offering("; ".join(dict.fromkeys(sentences)), _tasks(found) + found.tasks)
    if len(found.services) + len(found.tasks) > 1:
        reason.notes.append("several have this name: answered with all of them")
    return reason


def _offering(rule: str, tasks: Sequence[TaskName]) -> Reason:
    """All tasks a name stands for, and which of them are offered: those that serve, else those that at least run."""
    serving = any(task.serving for task in tasks)
    shown = {
        task.id: TaskShown(
            name=task.name,
            addresses=task.addresses,
            state="serving" if task.serving else task.left_out or ("not serving" if task.running else "not running"),
            offered=task.serving or (task.running and not serving),
        )
        for task in sorted(tasks, key=lambda task: (task.slot, task.name))
    }
    reason = Reason(rule, tasks=tuple(shown.values()))
    if not serving:
        reason.notes.append(
            "none of them serves: those that run are offered all the same, a try is better than a dead name"
            if any(task.running for task in tasks)
            else "nothing of it runs: the name stays ours and is not asked of the outside"
        )
    return reason


def _services(found: Named) -> str:
    return " and ".join(f"service {service.name}" for service, _ in found.services)


def _tasks(found: Named) -> list[TaskName]:
    return [task for _, tasks in found.services for task in tasks]


def _pointer(view: View, packed: bytes) -> Steps[Reason]:
    address = names.address_text(packed)
    if packed in LOOPBACK:
        return Reason(f"{address} is every asker's own loopback")
    zone = next(zone for zone in view.zones if zone.pointer(packed))
    for service, _ in zone.pieces()[0]:
        if any(names.packed_address(vip) == packed for vip in service.vips):
            return Reason(f"{address} is a virtual IP of service {service.name}", network=zone.name)
        yield
    return Reason(f"{address} is the address of a task or container", network=zone.name)


# -- what hasn't ----------------------------------------------------------------------------------------------------------------


def _denial(view: View, name: bytes) -> str:
    """Why an unknown name is denied rather than asked of others; "": it isn't."""
    if not view.denies(name):
        return ""
    text, labels = names.text_of(name), names.labels_of(name)
    networks = ", ".join(zone.name for zone in view.zones) or "none"
    start = f"no such name on the asker's networks ({networks}), and it is not asked of others"
    if not view.policy.forward:
        return f"{start}: a network of the asker, or the asker itself, forbids to forward"
    if len(labels) == 1:
        return f"{start}: {text} is a single label"
    for zone in view.zones:
        if zone.covers(name):
            return f"{start}: it is below the name of network {zone.name}"
    if len(labels) == 3 and labels[0].startswith(b"_") and labels[1].startswith(b"_"):
        return f"{start}: it asks for a port of a single-label name"
    return f"{start}: no public domain is called {labels[-1].decode(errors='replace')}"


def _forwarding(policy: Policy, name: bytes) -> str:
    routed = policy.route_of(name)
    whom = (
        "the node's own resolvers are asked"
        if policy.upstreams_of(name) is None
        else "the servers that the asker or its network names are asked"
    )
    return whom if routed is None else f"{whom} about {names.text_of(routed)} and all below it"
