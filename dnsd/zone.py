"""The naming rules: what the names of one network stand for.

Pure. A Zone is compiled once; `find` then answers for any name of it, in or without the network's own suffix:

    <service>, <alias>          VIPs, or else the serving tasks         tasks.<service>        the serving tasks, always
    <service>.<slot>            the task of that slot                   <task>, <container>    that one, while it runs
    _<port>._<proto>.<service>  SRV to slots (or task names)            <any of these>.<network>
    PTR of an address           <task>.<network>, or <service>.<network> for a VIP

Names that several services or containers share are answered with all of them, as Docker does for shared network aliases.
A node may have to know a hundred thousand names and be asked for a few of them: what is compiled is small rather than ready.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence

import msgspec

from dnsd.encoded import EncodedZone, ServiceHead
from dnsd.entries import GONE, RUNNING, SERVING, Choice, Entry, Fingerprints, Service, Several, Task, packed_task, split
from dnsd.model import ServiceName, TaskName, ZoneSpec
from dnsd.names import MAX_NAME_BYTES, labels_of, name_of, packed_address, wire_name

TASKS = b"\x05tasks"
_PROTOCOLS = (b"_tcp", b"_udp", b"_sctp")


class Target(msgspec.Struct, frozen=True):
    """What an SRV record leads to: a port of a name, and that name's addresses (packed)."""

    port: int
    name: bytes
    addresses: tuple[bytes, ...]


class Found(msgspec.Struct, frozen=True):
    """A name that exists. addresses are packed, both families mixed; all empty = it exists but nothing of it can be reached."""

    addresses: tuple[bytes, ...] = ()
    targets: tuple[Target, ...] = ()
    pointer: bytes = b""
    ttl_s: int = 0

    @property
    def empty(self) -> bool:
        return not (self.addresses or self.targets or self.pointer)


EXISTS = Found()


class Named(msgspec.Struct, frozen=True):
    """Services with all their tasks, and tasks that are named directly (by container, slot or alias)."""

    services: list[tuple[ServiceName | ServiceHead, list[TaskName]]]
    tasks: list[TaskName]


class Zone:
    """All names of one network. settings: its spec without any names. problems: sentences about what DNS can't carry (left out)."""

    __slots__ = ("_entries", "_has_services", "_parents", "_pointers", "problems", "settings", "source", "suffix")

    def __init__(self, source: ZoneSpec | EncodedZone) -> None:
        self._begin(source)
        for _ in self._compile():
            pass

    @classmethod
    def in_steps(cls, source: ZoneSpec | EncodedZone) -> Generator[None, None, Zone]:
        """Compiles one, with a pause after each task, so that a server can answer meanwhile. msgspec.DecodeError: it can't be read."""
        zone = cls.__new__(cls)
        zone._begin(source)
        yield from zone._compile()
        return zone

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def name(self) -> str:
        return self.settings.name

    def pieces(self) -> tuple[Iterator[tuple[ServiceName | ServiceHead, Iterable[TaskName]]], Iterator[TaskName]]:
        """What it was compiled from, one after the other: services with their tasks, and containers."""
        if isinstance(self.source, EncodedZone):
            return self.source.parts()
        return ((service, service.tasks) for service in self.source.services), iter(self.source.containers)

    def emptied(self) -> Generator[None, None, None]:
        """Takes it apart, with pauses: to free a hundred thousand names at once takes longer than an asker should wait."""
        while self._entries:
            self._entries.popitem()
            yield
        while self._pointers:
            self._pointers.popitem()
            yield
        self._parents = Fingerprints()

    # -- building -----------------------------------------------------------------------------------------------------------

    def _begin(self, source: ZoneSpec | EncodedZone) -> None:
        self.source = source
        self.settings = source.settings if isinstance(source, EncodedZone) else msgspec.structs.replace(source, services=(), containers=())
        self._entries: dict[bytes, Entry] = {}
        self._pointers: dict[bytes, bytes] = {}
        # Names that exist only because others are below them (RFC 8020).
        self._parents = Fingerprints()
        self._has_services = False
        self.problems: list[str] = []
        suffix = name_of(self.name)
        if suffix is None:
            self.problems.append(f"network {self.name!r}: its name can't be part of a DNS name; <name>.<network> is not answered")
        # b"" never ends a wire name, which all end in a zero byte, so it is checked for before use.
        self.suffix = suffix or b""

    def _compile(self) -> Generator[None, None, None]:
        services, containers = self.pieces()
        for service, tasks in services:
            self._has_services = True
            yield from self._add_service(service, tasks)
        for container in containers:
            self._add_task(container)
            yield
        if self.suffix:
            self._add_parents(self.suffix)
            self._parents.add(self.suffix)

    def _add_service(self, service: ServiceName | ServiceHead, tasks: Iterable[TaskName]) -> Generator[None, None, None]:
        bases = []
        vips = self._addresses_of(f"service {service.name!r}", service.vips)
        compiled = Service(tuple(vips), service.ports)
        for text in dict.fromkeys((service.name, *service.aliases)):
            name = name_of(text)
            if name is None:
                self.problems.append(f"service {service.name!r}: the name {text!r} can't be carried by DNS and is not answered")
                continue
            bases.append(self._add(name, compiled))
        packed: list[Task] = []
        targets: list[bytes] = []
        for task in tasks:
            target, one = self._add_task(task)
            if task.slot:
                slot = b"%d" % task.slot
                for base in reversed(bases):
                    name = base[:-1] + bytes((len(slot),)) + slot + b"\0"
                    if len(name) <= MAX_NAME_BYTES:
                        target = self._add(name, one)
            packed.append(one)
            targets.append(target)
            yield
        compiled.tasks = tuple(packed)
        if service.ports:
            compiled.targets = tuple(targets)
        if bases:
            for vip in vips:
                self._pointers.setdefault(vip, bases[0])

    def _add_task(self, task: TaskName) -> tuple[bytes, Task]:
        """The name it is called by (b"": none) and what its names stand for."""
        addresses = self._addresses_of(f"container {task.name!r}", task.addresses)
        packed = packed_task(SERVING if task.serving else RUNNING if task.running else GONE, addresses)
        names = []
        for text in dict.fromkeys((task.name, *task.aliases)):
            name = name_of(text)
            if name is None:
                self.problems.append(f"container {task.name!r}: the name {text!r} can't be carried by DNS and is not answered")
                continue
            # Also of one that doesn't run: its name exists without addresses, rather than being asked of the outside.
            names.append(self._add(name, packed))
        if not names:
            return b"", packed
        for address in addresses:
            self._pointers.setdefault(address, names[0])
        return names[0], packed

    def _addresses_of(self, whose: str, texts: tuple[str, ...]) -> list[bytes]:
        addresses = []
        for text in texts:
            packed = packed_address(text)
            if packed is None:
                self.problems.append(f"{whose}: {text!r} is no address")
            else:
                addresses.append(packed)
        return addresses

    def _add(self, name: bytes, one: Service | Task) -> bytes:
        there = self._entries.get(name)
        if there is None:
            self._entries[name] = one
            self._add_parents(name)
        elif isinstance(there, Several):
            there.append(one)
        elif there is not one:
            self._entries[name] = Several((there, one))
        return name

    def _add_parents(self, name: bytes) -> None:
        at = 1 + name[0]
        while name[at] and self._parents.add(name[at:]):
            at += 1 + name[at]

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
        return Found(pointer=full if len(full) <= MAX_NAME_BYTES else name, ttl_s=self.settings.task_ttl_s)

    def named(self, name: bytes) -> Generator[None, None, Named]:
        """What has exactly this name (without the network's). Reads all that was compiled, with a pause after each task: for who wants
        to know why an answer is what it is, not for answering."""
        found = Named([], [])
        if name not in self._entries:
            return found
        wanted = b".".join(labels_of(name))

        def is_called(one: ServiceName | ServiceHead | TaskName, below: str = "") -> bool:
            return any((text.removesuffix(".") + below).encode().lower() == wanted for text in (one.name, *one.aliases))

        services, containers = self.pieces()
        for service, tasks in services:
            own = []
            for task in tasks:
                own.append(task)
                if is_called(task) or (task.slot and is_called(service, f".{task.slot}")):
                    found.tasks.append(task)
                yield
            if is_called(service):
                found.services.append((service, own))
        for container in containers:
            if is_called(container):
                found.tasks.append(container)
            yield
        return found

    def covers(self, name: bytes) -> bool:
        """Whether `name` is the network's own name or below it: ours to deny."""
        return bool(self.suffix) and (name == self.suffix or self.without_suffix(name) is not None)

    def is_parent(self, name: bytes) -> bool:
        """Whether some name exists below `name` (an empty non-terminal, RFC 8020): it exists then, without records."""
        return self._is_parent(name) or self._is_parent(self.without_suffix(name) or b"")

    def _is_parent(self, name: bytes) -> bool:
        if name in self._parents or (name == TASKS + b"\0" and self._has_services):
            return True
        at = 1 + name[0] if name else 0
        if name[1:at] not in _PROTOCOLS:
            return False
        services, _ = split(self._entries.get(name[at:]))
        return any(port.protocol.lower().encode() == name[2:at] for service in services for port in service.ports)

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
            services, _ = split(self._entries.get(prefixed(name[6:], stack_prefix)))
            if services:
                return self._task_addresses(services)
        if name[1:2] == b"_":
            return self._find_port(name, tail, stack_prefix)
        return None

    def _addresses(self, entry: Entry) -> Found:
        """VIPs of services that serve and addresses of what serves; if there is none, of what at least runs."""
        services, tasks = split(entry)
        choice = Choice()
        for service in services:
            if service.vips:
                (choice.serving if any(task[0] == SERVING for task in service.tasks) else choice.running).extend(service.vips)
            else:
                choice.add(service.tasks)
        choice.add(tasks)
        only_vips = not tasks and all(service.vips for service in services)
        return Found(addresses=choice.made(), ttl_s=self.settings.vip_ttl_s if only_vips else self.settings.task_ttl_s)

    def _task_addresses(self, services: Sequence[Service]) -> Found:
        choice = Choice()
        for service in services:
            choice.add(service.tasks)
        return Found(addresses=choice.made(), ttl_s=self.settings.task_ttl_s)

    def _find_port(self, name: bytes, tail: bytes, stack_prefix: bytes) -> Found | None:
        """SRV names. A port that was not declared is no name: its existence is what the record would state."""
        labels = labels_of(name)
        if len(labels) < 3 or labels[1] not in _PROTOCOLS:
            return None
        services, _ = split(self._entries.get(prefixed(wire_name(labels[2:]), stack_prefix)))
        wanted, protocol = labels[0][1:].decode(errors="replace"), labels[1][1:].decode()
        declared = False
        # By state, one record a (port, name): a slot has two tasks for a moment while it is replaced start-first.
        offers: dict[int, dict[tuple[int, bytes], list[Task]]] = {SERVING: {}, RUNNING: {}, GONE: {}}
        for service in services:
            for port in service.ports:
                if port.protocol.lower() == protocol and wanted in (port.name.lower(), str(port.port)):
                    declared = True
                    for target, task in zip(service.targets, service.tasks, strict=True):
                        if target:
                            offers[task[0]].setdefault((port.port, target[:-1] + tail), []).append(task)
        if not declared:
            return None
        offered = offers[SERVING] or offers[RUNNING]
        return Found(
            targets=tuple(Target(port, target, Choice(tasks).made()) for (port, target), tasks in offered.items()),
            ttl_s=self.settings.task_ttl_s,
        )


def prefixed(name: bytes, prefix: bytes) -> bytes:
    """`prefix` put before the first label; b"" (which is no name) if that label gets too long."""
    if not prefix or not name[0]:
        return name
    size = name[0] + len(prefix)
    return bytes((size,)) + prefix + name[1:] if size <= 63 else b""
