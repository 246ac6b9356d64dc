"""What dnsd is told: services and tasks of networks, and the sandboxes that may ask for them.

Pure: no I/O. These are also the messages of the control socket (msgspec encodes them). dnsd owns the naming rules: callers
describe services, never records. All addresses are canonical text, both families.
"""

from __future__ import annotations

import msgspec


class TaskName(msgspec.Struct, frozen=True, kw_only=True):
    """One task (or plain container) on a network.

    name: container name ("web.1.abcdef"). serving: running, healthy and not draining. running: may be tried if none serves.
    left_out: why it isn't serving, in a word or two ("draining"), for who wants to know.
    """

    id: str
    name: str
    slot: int = 0
    addresses: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    serving: bool = True
    running: bool = True
    left_out: str = ""


class PortName(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    protocol: str
    port: int


class ServiceName(msgspec.Struct, frozen=True, kw_only=True):
    """A service on a network. vips empty = DNS round robin: the name resolves to the serving tasks, rotated."""

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    vips: tuple[str, ...] = ()
    tasks: tuple[TaskName, ...] = ()
    ports: tuple[PortName, ...] = ()


class RouteSpec(msgspec.Struct, frozen=True, kw_only=True):
    """`domain` and all names below it are asked of these servers. upstreams empty = the node's own resolvers."""

    domain: str
    upstreams: tuple[str, ...] = ()


class ZoneSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All names of one network. containers: those that belong to no service.

    vip_ttl_s: how long a resolver may keep a VIP. task_ttl_s: the same for addresses of tasks, which come and go.
    forward, upstreams, routes: whom askers of this network ask about other names; see `policy`.
    """

    network: str
    name: str
    services: tuple[ServiceName, ...] = ()
    containers: tuple[TaskName, ...] = ()
    vip_ttl_s: int = 5
    task_ttl_s: int = 0
    forward: bool = True
    upstreams: tuple[str, ...] = ()
    routes: tuple[RouteSpec, ...] = ()


class ScopeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox that may ask: sockets are opened on `listen` inside `netns`; it sees the zones of `networks`, in that order.

    netns "": dnsd's own. upstreams ("10.0.0.1", "10.0.0.1:5353", "[fd00::1]:53"): forward here instead of to those of its
    networks or the node's own resolvers; forward False: answer NXDOMAIN for what is not ours.
    stack: the asker's own stack; `db` is also tried as `<stack>_db`.
    """

    id: str
    netns: str
    networks: tuple[str, ...] = ()
    listen: str = "127.0.0.11:53"
    stack: str = ""
    upstreams: tuple[str, ...] = ()
    forward: bool = True


class DnsState(msgspec.Struct, frozen=True, kw_only=True):
    """The whole desired state of one dnsd process."""

    zones: tuple[ZoneSpec, ...] = ()
    scopes: tuple[ScopeSpec, ...] = ()


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a DnsState. Whatever is not named here is in force.

    failed: scope id -> why its sockets could not be opened; tried again at the next apply. problems: sentences about names or
    addresses that DNS can't carry; those are left out.
    """

    failed: dict[str, str] = {}
    problems: tuple[str, ...] = ()


class ScopeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """listen: the address really bound. reason: why it isn't open, "" if it is."""

    id: str
    netns: str
    listen: str
    queries: int
    reason: str = ""


class ZoneStatus(msgspec.Struct, frozen=True, kw_only=True):
    network: str
    name: str
    names: int


class UpstreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """state: "up", "silent" (did not answer lately: asked last) or "looping" (leads back to us: not asked). rtt_s: smoothed."""

    address: str
    state: str
    asked: int
    answered: int
    failed: int
    silent: int
    rtt_s: float


class TaskShown(msgspec.Struct, frozen=True, kw_only=True):
    """A task that a name stands for. state: "serving", or why it is left out. offered: all the same, because nothing serves."""

    name: str
    addresses: tuple[str, ...]
    state: str
    offered: bool = False


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, and why it is what it is.

    scope: who asked; asker: by name. networks: those it sees, in order. rcode and records are of the very answer it gets.
    origin: "zone", "cache", "upstream", or "" for a name nobody is asked about. network: whose table answered. upstreams: who is asked,
    in order. rule: the naming rule that decided, a sentence. tasks: all that the name stands for. notes: what else mattered.
    """

    scope: str
    asker: str
    networks: tuple[str, ...]
    stack: str
    name: str
    type: str
    rcode: str
    records: tuple[str, ...]
    origin: str
    rule: str
    network: str = ""
    tasks: tuple[TaskShown, ...] = ()
    upstreams: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class QueryLogged(msgspec.Struct, frozen=True, kw_only=True):
    """One query of a scope whose queries are logged. at: Unix time. rcode "": it was not answered."""

    number: int
    at: float
    client: str
    name: str
    type: str
    rcode: str
    records: tuple[str, ...]


class AnswerCount(msgspec.Struct, frozen=True, kw_only=True):
    """type "" : the question could not be read."""

    type: str
    rcode: str
    count: int


class Durations(msgspec.Struct, frozen=True, kw_only=True):
    """buckets[i]: how many took at most bounds_s[i] and more than the bound before; the last one has no bound."""

    bounds_s: tuple[float, ...]
    buckets: tuple[int, ...]
    sum_s: float


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """upstreams: the node's own resolvers as of now. health: of every upstream that was ever asked. answers: since the start.
    own, forwarded: how long answers took that were known here, and those for which others had to be asked."""

    version: str
    pid: int
    uptime_s: float
    zones: tuple[ZoneStatus, ...]
    scopes: tuple[ScopeStatus, ...]
    upstreams: tuple[str, ...]
    health: tuple[UpstreamStatus, ...]
    answers: tuple[AnswerCount, ...]
    own: Durations
    forwarded: Durations
    counters: dict[str, int]
