"""The naming rules: what the names of one network stand for.

Pure. A Zone is compiled once from its ZoneSpec; `find` then answers for any name of it, in or without the network's own suffix:

    <service>, <alias>          VIPs, or else the serving tasks         tasks.<service>        the serving tasks, always
    <service>.<slot>            the task of that slot                   <task>, <container>    that one, while it runs
    _<port>._<proto>.<service>  SRV to slots (or task names)            <any of these>.<network>
    PTR of an address           <task>.<network>, or <service>.<network> for a VIP

Names that several services or containers share are answered with all of them, as Docker does for shared network aliases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dnsd.model import ServiceName, TaskName, ZoneSpec
from dnsd.names import labels_of, name_of, packed_address, wire_name

TASKS = b"\x05tasks"
_PROTOCOLS = (b"_tcp", b"_udp", b"_sctp")


@dataclass(frozen=True, slots=True)
class Target:
    """What an SRV record leads to: a port of a name, and that name's addresses (packed)."""

    port: int
    name: bytes
    addresses: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A name that exists. addresses are packed, both families mixed; all empty = it exists but nothing of it can be reached."""

    addresses: tuple[bytes, ...] = ()
    targets: tuple[Target, ...] = ()
    pointer: bytes = b""
    ttl_s: int = 0

    @property
    def empty(self) -> bool:
        return not (self.addresses or self.targets or self.pointer)


EXISTS = Found()


@dataclass(slots=True)
class _Entry:
    """services answer to this name as such; tasks are named by it directly (container name, slot name, alias)."""

    services: list[ServiceName] = field(default_factory=list)
    tasks: list[TaskName] = field(default_factory=list)


class Zone:
    """All names of one network. problems: sentences about what DNS can't carry (left out)."""

    __slots__ = ("_entries", "_parents", "_pointers", "problems", "spec", "suffix")

    def __init__(self, spec: ZoneSpec) -> None:
        self.spec = spec
        self._entries: dict[bytes, _Entry] = {}
        self._pointers: dict[bytes, bytes] = {}
        self._parents: frozenset[bytes] | None = None
        problems: list[str] = []
        suffix = name_of(spec.name)
        if suffix is None:
            problems.append(f"network {spec.name!r}: its name can't be part of a DNS name; <name>.<network> is not answered")
        # b"" never ends a wire name, which all end in a zero byte, so it is checked for before use.
        self.suffix = suffix or b""
        for service in spec.services:
            self._add_service(service, problems)
        for container in spec.containers:
            self._add_task(container, problems)
        self.problems = tuple(problems)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def has_services(self) -> bool:
        return bool(self.spec.services)

    # -- building -----------------------------------------------------------------------------------------------------------

    def _add_service(self, service: ServiceName, problems: list[str]) -> None:
        bases = []
        for text in dict.fromkeys((service.name, *service.aliases)):
            name = name_of(text)
            if name is None:
                problems.append(f"service {service.name!r}: the name {text!r} can't be carried by DNS and is not answered")
                continue
            bases.append(name)
            self._entry(name).services.append(service)
        for task in service.tasks:
            self._add_task(task, problems)
            if task.slot:
                slot = b"%d" % task.slot
                for base in bases:
                    self._entry(base[:-1] + bytes((len(slot),)) + slot + b"\0").tasks.append(task)
        for vip in service.vips:
            packed = packed_address(vip)
            if packed is None:
                problems.append(f"service {service.name!r}: {vip!r} is no address")
            elif bases:
                self._pointers.setdefault(packed, bases[0])

    def _add_task(self, task: TaskName, problems: list[str]) -> None:
        names = []
        for text in dict.fromkeys((task.name, *task.aliases)):
            name = name_of(text)
            if name is None:
                problems.append(f"container {task.name!r}: the name {text!r} can't be carried by DNS and is not answered")
                continue
            names.append(name)
            # Also of one that doesn't run: its name exists without addresses, rather than being asked of the outside.
            self._entry(name).tasks.append(task)
        for address in task.addresses:
            packed = packed_address(address)
            if packed is None:
                problems.append(f"container {task.name!r}: {address!r} is no address")
            elif names:
                self._pointers.setdefault(packed, names[0])

    def _entry(self, name: bytes) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries[name] = _Entry()
        return entry

    # -- finding ------------------------------------------------------------------------------------------------------------

    def find(self, name: bytes, stack_prefix: bytes = b"") -> Found | None:
        """What `name` stands for; None: no such name here. stack_prefix ("x_"): find `x_db` when asked for `db`."""
        found = self._find(name, b"\0", stack_prefix)
        if found is None and (bare := self.without_suffix(name)):
            found = self._find(bare, self.suffix, stack_prefix)
        return found

    def pointer(self, packed: bytes) -> Found | None:
        """The name of an address of this network, with the network's suffix."""
        name = self._pointers.get(packed)
        if name is None:
            return None
        full = name[:-1] + (self.suffix or b"\0")
        return Found(pointer=full if len(full) <= 255 else name, ttl_s=self.spec.task_ttl_s)

    def named(self, name: bytes) -> tuple[Sequence[ServiceName], Sequence[TaskName]]:
        """What has exactly this name (without the network's): services, and tasks named by it directly."""
        entry = self._entries.get(name)
        return (entry.services, entry.tasks) if entry is not None else ((), ())

    def covers(self, name: bytes) -> bool:
        """Whether `name` is the network's own name or below it: ours to deny."""
        return bool(self.suffix) and (name == self.suffix or self.without_suffix(name) is not None)

    def is_parent(self, name: bytes) -> bool:
        """Whether some name exists below `name` (an empty non-terminal, RFC 8020): it exists then, without records."""
        if self._parents is None:
            parents: set[bytes] = set()
            for entry in (*self._entries, self.suffix):
                at = 1 + entry[0] if entry else 0
                while entry and entry[at]:
                    parents.add(entry[at:])
                    at += 1 + entry[at]
            if self.suffix:
                parents.add(self.suffix)
            self._parents = frozenset(parents)
        if name in self._parents or (name == TASKS + b"\0" and self.has_services):
            return True
        labels = labels_of(name)
        if len(labels) < 2 or labels[0] not in _PROTOCOLS:
            return False
        entry_name = wire_name(labels[1:])
        owner = self._entries.get(entry_name) or self._entries.get(self.without_suffix(entry_name) or b"")
        return owner is not None and any(port.protocol.encode() == labels[0][1:] for s in owner.services for port in s.ports)

    def without_suffix(self, name: bytes) -> bytes | None:
        """None: the name isn't below the network's."""
        suffix = self.suffix
        if suffix and len(name) > len(suffix) and name.endswith(suffix):
            return name[: -len(suffix)] + b"\0"
        return None

    def _find(self, name: bytes, tail: bytes, stack_prefix: bytes) -> Found | None:
        entry = self._entries.get(prefixed(name, stack_prefix))
        if entry is not None:
            return self._addresses(entry)
        if name.startswith(TASKS) and name[6]:
            entry = self._entries.get(prefixed(name[6:], stack_prefix))
            if entry is not None and entry.services:
                return self._task_addresses(entry)
        if name[1:2] == b"_":
            return self._find_port(name, tail, stack_prefix)
        return None

    def _addresses(self, entry: _Entry) -> Found:
        """VIPs of services that serve and addresses of what serves; if there is none, of what at least runs."""
        serving: list[str] = []
        running: list[str] = []
        only_vips = not entry.tasks
        for service in entry.services:
            if service.vips:
                (serving if any(task.serving for task in service.tasks) else running).extend(service.vips)
            else:
                only_vips = False
                _sort_tasks(service.tasks, serving, running)
        _sort_tasks(entry.tasks, serving, running)
        return Found(
            addresses=_packed(serving or running),
            ttl_s=self.spec.vip_ttl_s if only_vips else self.spec.task_ttl_s,
        )

    def _task_addresses(self, entry: _Entry) -> Found:
        serving: list[str] = []
        running: list[str] = []
        for service in entry.services:
            _sort_tasks(service.tasks, serving, running)
        return Found(addresses=_packed(serving or running), ttl_s=self.spec.task_ttl_s)

    def _find_port(self, name: bytes, tail: bytes, stack_prefix: bytes) -> Found | None:
        """SRV names. A port that was not declared is no name: its existence is what the record would state."""
        labels = labels_of(name)
        if len(labels) < 3 or labels[1] not in _PROTOCOLS:
            return None
        entry = self._entries.get(prefixed(wire_name(labels[2:]), stack_prefix))
        if entry is None:
            return None
        wanted, protocol = labels[0][1:].decode(errors="replace"), labels[1][1:].decode()
        serving: list[tuple[int, ServiceName, TaskName]] = []
        running: list[tuple[int, ServiceName, TaskName]] = []
        declared = False
        for service in entry.services:
            for port in service.ports:
                if port.protocol.lower() == protocol and wanted in (port.name.lower(), str(port.port)):
                    declared = True
                    for task in service.tasks:
                        if task.serving or task.running:
                            (serving if task.serving else running).append((port.port, service, task))
        if not declared:
            return None
        # One record a (port, name): a slot has two tasks for a moment while it is replaced start-first.
        targets: dict[tuple[int, bytes], list[str]] = {}
        for number, service, task in serving or running:
            target = name_of(f"{service.name}.{task.slot}" if task.slot else task.name)
            if target is not None:
                targets.setdefault((number, target[:-1] + tail), []).extend(task.addresses)
        return Found(
            targets=tuple(Target(number, target, _packed(addresses)) for (number, target), addresses in targets.items()),
            ttl_s=self.spec.task_ttl_s,
        )


def prefixed(name: bytes, prefix: bytes) -> bytes:
    """`prefix` put before the first label; b"" (which is no name) if that label gets too long."""
    if not prefix or not name[0]:
        return name
    size = name[0] + len(prefix)
    return bytes((size,)) + prefix + name[1:] if size <= 63 else b""


def _sort_tasks(tasks: Iterable[TaskName], serving: list[str], running: list[str]) -> None:
    for task in tasks:
        if task.serving:
            serving.extend(task.addresses)
        elif task.running:
            running.extend(task.addresses)


def _packed(addresses: list[str]) -> tuple[bytes, ...]:
    packed = (packed_address(address) for address in dict.fromkeys(addresses))
    return tuple(address for address in packed if address is not None)
