"""What differs between tables that should be equal, object by object.

Pure. What `plan` sees as a script to run is here "element 10.0.1.100 of map vips4 is missing": for logs, counters and `verify`. Every
field of a table is looked at, except tracked connections: they come and go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from mesh.table import EMPTY, NamespaceTable, NftTable, Tables, is_container
from mesh.versioned import difference, set_difference

State = Literal["missing", "altered", "foreign"]

_KINDS: Final = {
    "tunnel": "tunnel device",
    "attachments": "link",
    "addresses": "address",
    "host_routes": "route",
    "tunnels": "forwarding row",
    "neighbours": "neighbour",
    "sysctls": "sysctl",
    "nft": "nft table",
    "frames": "nft table",
    "ipvs": "IPVS service",
    "ipvs_timeout_s": "IPVS timeout",
    "policies": "routing rule",
    "wireguards": "WireGuard device",
    "peers": "WireGuard peer",
    "engine_accepts": "rule of DOCKER-USER",
}
"""What a field's rows are called, where the field's own name doesn't say it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """`state`: what is wrong with the kernel's object. `namespace` "" is the host's."""

    namespace: str
    kind: str
    name: str
    state: State

    def __str__(self) -> str:
        what = f"{self.kind} {self.name}".rstrip()
        return f"{self.namespace or 'host'}: {what} {'is not ours' if self.state == 'foreign' else f'is {self.state}'}"


def differences(expected: Tables, actual: Tables) -> list[Difference]:
    found: list[Difference] = []
    for namespace in sorted({*expected, *actual}):
        wanted, present = expected.get(namespace), actual.get(namespace)
        if wanted is present or wanted == present:
            continue
        if is_container(namespace) and (wanted is None or present is None or wanted.netns_id != present.netns_id):
            continue  # it ended, or it is new
        if namespace and (wanted is None or present is None):
            found.append(Difference(namespace, "namespace", "", "missing" if wanted else "foreign"))
        else:
            found += _in_namespace(namespace, wanted or EMPTY, present or EMPTY)
    return found


def _in_namespace(namespace: str, expected: NamespaceTable, actual: NamespaceTable) -> Iterator[Difference]:
    for field in fields(NamespaceTable):
        wanted, present = getattr(expected, field.name), getattr(actual, field.name)
        if field.name in ("flows", "netns_id") or wanted is present or wanted == present:
            continue
        kind = _KINDS.get(field.name, field.name.replace("_", " "))
        if isinstance(wanted, NftTable) and isinstance(present, NftTable):
            yield from _in_nft(namespace, wanted, present)
        else:
            # sysctls are only ever set: others than ours are nobody's business
            settings = field.name == "sysctls"
            yield from (Difference(namespace, kind, n, s) for n, s in _rows(wanted, present) if not (settings and s == "foreign"))


def _rows(wanted: Any, present: Any) -> Iterator[tuple[str, State]]:
    if isinstance(wanted, Mapping):
        changed, gone = difference(wanted, present)
        yield from ((str(key), "altered" if key in present else "missing") for key in sorted(changed))
        yield from ((str(key), "foreign") for key in sorted(gone))
    elif isinstance(wanted, Set):
        missing, foreign = set_difference(wanted, present)
        yield from ((str(member), "missing") for member in sorted(missing))
        yield from ((str(member), "foreign") for member in sorted(foreign))
    else:
        name = str(getattr(wanted or present, "name", ""))
        yield name, "missing" if present is None else "foreign" if wanted is None else "altered"


def _in_nft(namespace: str, expected: NftTable, actual: NftTable) -> Iterator[Difference]:
    if expected.dormant != actual.dormant:
        yield Difference(namespace, "nft table", actual.name, "altered")
    for name, state in _rows(expected.chains, actual.chains):
        yield Difference(namespace, "nft chain", name, state)
    maps: Mapping[str, object] = actual.maps
    for name, wanted in sorted(expected.maps.items()):
        if name not in maps:
            yield Difference(namespace, "nft map", name, "missing")
        elif (wanted.key_type, wanted.value_type) != (actual.maps[name].key_type, actual.maps[name].value_type):
            yield Difference(namespace, "nft map", name, "altered")
        else:
            for key, state in _rows(wanted.elements, actual.maps[name].elements):
                yield Difference(namespace, f"element of {name}:", key, state)
    for name in sorted(actual.maps.keys() - expected.maps.keys()):
        yield Difference(namespace, "nft map", name, "foreign")
