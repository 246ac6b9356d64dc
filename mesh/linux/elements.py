"""Elements of nft maps over nfnetlink, packed by hand: one transaction of any number of them, and a dump; the generation of a rule set.

Edge: the socket; encoding and decoding are pure. Source: linux/netfilter/nf_tables.h, nfnetlink.h. The text of an element is what nft
prints for it with -n. The nft tool takes 3 ms to start, reads back every element before it changes one, and waits out a grace period
after a deletion; none of that is needed for elements alone.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

from mesh.address import packed, text
from mesh.errors import KernelError
from mesh.linux.netlink import NETLINK_NETFILTER, NLM_F_CREATE, Netlink, attribute, attributes, each, nested
from mesh.nft import MapChange

_NFTABLES: Final = 10
_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11
_GET_TABLE: Final = _NFTABLES << 8 | 1
_GET_CHAIN: Final = _NFTABLES << 8 | 4
_NEW_ELEMENTS: Final = _NFTABLES << 8 | 12
_GET_ELEMENTS: Final = _NFTABLES << 8 | 13
_DELETE_ELEMENTS: Final = _NFTABLES << 8 | 14
_NEW_GENERATION: Final = _NFTABLES << 8 | 15
_GET_GENERATION: Final = _NFTABLES << 8 | 16
_FAMILIES: Final = {"inet": 1, "ip": 2, "bridge": 7}
_TABLE_NAME: Final = 1
_TABLE_FLAGS: Final = 2
_DORMANT: Final = 1
_CHAIN_TABLE: Final = 1
_CHAIN_NAME: Final = 3
_LIST_TABLE: Final = 1
_LIST_MAP: Final = 2
_LIST_ELEMENTS: Final = 3
_ELEMENT: Final = 1
_ELEMENT_KEY: Final = 1
_ELEMENT_DATA: Final = 2
_DATA_VALUE: Final = 1
_DATA_VERDICT: Final = 2
_VERDICT_CODE: Final = 1
_VERDICT_CHAIN: Final = 2
_GENERATION_ID: Final = 1
_VERDICTS: Final = {"goto": -4, "jump": -3, "return": -5, "accept": 1, "drop": 0}
_VERDICT_NAMES: Final = {code: name for name, code in _VERDICTS.items()}
_CHUNK: Final = 400
"""Elements of one message: their list is one attribute, and that ends at 64 KiB."""

T = TypeVar("T")

Encode = Callable[[str], bytes]
Decode = Callable[[bytes], str]


def _ethernet(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


# nf_tables registers are 4 bytes wide: in a concatenation every part begins at one
_TYPES: Final[dict[str, tuple[int, Encode, Decode]]] = {
    "ipv4_addr": (4, packed, text),
    "ipv6_addr": (16, packed, text),
    "ether_addr": (6, _ethernet, lambda b: b.hex(":")),
    "inet_proto": (1, lambda t: int(t).to_bytes(1, "big"), lambda b: str(b[0])),
    "inet_service": (2, lambda t: int(t).to_bytes(2, "big"), lambda b: str(int.from_bytes(b, "big"))),
    "mark": (4, lambda t: struct.pack("=I", int(t)), lambda b: str(struct.unpack("=I", b)[0])),
}


def supported(*types: str) -> bool:
    return all(part in _TYPES or part == "verdict" for kind in types for part in kind.split(" . "))


def encoder(kind: str) -> Encode:
    """From the text of one type ("ipv4_addr . mark") to the kernel's bytes."""
    if kind == "verdict":
        return _encode_verdict
    parts = [_TYPES[name] for name in kind.split(" . ")]
    if len(parts) == 1:
        encode = parts[0][1]
        return lambda text: attribute(_DATA_VALUE, encode(text))
    pads = [b"\0" * (-size % 4) for size, _, _ in parts]
    steps = [(encode, pad) for (_, encode, _), pad in zip(parts, pads, strict=True)]

    def concatenate(text: str) -> bytes:
        return attribute(_DATA_VALUE, b"".join(encode(t) + pad for t, (encode, pad) in zip(text.split(" . "), steps, strict=True)))

    return concatenate


def decoder(kind: str) -> Decode:
    if kind == "verdict":
        return _decode_verdict
    parts = [_TYPES[name] for name in kind.split(" . ")]
    slices: list[tuple[int, int, Decode]] = []
    offset = 0
    for size, _, decode in parts:
        slices.append((offset, offset + size, decode))
        offset += (size + 3) & ~3

    def split(payload: bytes) -> str:
        value = attributes(payload)[_DATA_VALUE]
        return " . ".join(decode(value[start:end]) for start, end, decode in slices)

    return split


def _encode_verdict(text: str) -> bytes:
    verdict, _, chain = text.partition(" ")
    code = attribute(_VERDICT_CODE, struct.pack(">i", _VERDICTS[verdict]))
    return nested(_DATA_VERDICT, code, *([attribute(_VERDICT_CHAIN, chain.encode() + b"\0")] if chain else []))


def _decode_verdict(payload: bytes) -> str:
    values = attributes(attributes(payload)[_DATA_VERDICT])
    code = struct.unpack(">i", values[_VERDICT_CODE])[0]
    name = _VERDICT_NAMES.get(code, str(code))
    chain = values.get(_VERDICT_CHAIN, b"").rstrip(b"\0").decode()
    return f"{name} {chain}" if chain else name


def messages(family: str, table: str, changes: Iterable[MapChange]) -> list[tuple[int, int, bytes]]:
    """Requests of the transaction, without its brackets: what goes first, so that a key can get another value."""
    found: list[tuple[int, int, bytes]] = []
    for change in changes:
        key, value = encoder(change.key_type), encoder(change.value_type)
        head = struct.pack("=BBH", _FAMILIES[family], 0, 0)
        head += attribute(_LIST_TABLE, table.encode() + b"\0") + attribute(_LIST_MAP, change.name.encode() + b"\0")
        for part in _chunks(change.gone):
            rows = b"".join(nested(_ELEMENT, nested(_ELEMENT_KEY, key(k))) for k in part)
            found.append((_DELETE_ELEMENTS, 0, head + nested(_LIST_ELEMENTS, rows)))
        for pairs in _chunks(change.fresh):
            rows = b"".join(nested(_ELEMENT, nested(_ELEMENT_KEY, key(k)), nested(_ELEMENT_DATA, value(v))) for k, v in pairs)
            found.append((_NEW_ELEMENTS, NLM_F_CREATE, head + nested(_LIST_ELEMENTS, rows)))
    return found


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def change(family: str, table: str, changes: Iterable[MapChange]) -> None:
    """All of it or nothing. Raises KernelError; ENOENT and EEXIST mean that the table is not what it was thought to be."""
    subsystem = struct.pack(">BBH", 0, 0, _NFTABLES)
    requests = messages(family, table, changes)
    with Netlink(NETLINK_NETFILTER) as netlink:
        netlink.transaction("change nft elements", (_BATCH_BEGIN, subsystem), requests, (_BATCH_END, subsystem))


def read(netlink: Netlink, family: str, table: str, name: str, key_type: str, value_type: str) -> dict[str, str]:
    request = struct.pack("=BBH", _FAMILIES[family], 0, 0)
    request += attribute(_LIST_TABLE, table.encode() + b"\0") + attribute(_LIST_MAP, name.encode() + b"\0")
    key, value = decoder(key_type), decoder(value_type)
    found: dict[str, str] = {}
    try:
        for kind, payload in netlink.dump(f"read nft map {name}", _GET_ELEMENTS, request):
            if kind != _NEW_ELEMENTS:
                continue
            for element in each(attributes(payload[4:]).get(_LIST_ELEMENTS, b"")):
                values = attributes(element)
                found[key(values[_ELEMENT_KEY])] = value(values[_ELEMENT_DATA])
    except (KeyError, IndexError, ValueError, struct.error) as error:
        raise KernelError(f"read nft map {name}", errno.EPROTO, f"an element of an unknown form: {error!r}") from error
    return found


def generation(netlink: Netlink) -> int:
    """Number of the namespace's rule set: every transaction, whoever made it, increases it by one."""
    for kind, payload in netlink.ask("read the nft generation", _GET_GENERATION, struct.pack("=BBH", 0, 0, 0)):
        if kind == _NEW_GENERATION:
            return int(struct.unpack(">I", attributes(payload[4:])[_GENERATION_ID])[0])
    raise KernelError("read the nft generation", errno.EPROTO)


def has_chain(netlink: Netlink, family: str, table: str, chain: str) -> bool:
    request = struct.pack("=BBH", _FAMILIES[family], 0, 0)
    request += attribute(_CHAIN_TABLE, table.encode() + b"\0") + attribute(_CHAIN_NAME, chain.encode() + b"\0")
    try:
        return bool(netlink.ask(f"look for nft chain {chain}", _GET_CHAIN, request))
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return False
        raise


def is_dormant(netlink: Netlink, family: str, table: str) -> bool:
    """Whether the table is switched off; nft 1.0.6 doesn't say so in JSON."""
    request = struct.pack("=BBH", _FAMILIES[family], 0, 0) + attribute(_TABLE_NAME, table.encode() + b"\0")
    answers = netlink.ask(f"look at nft table {table}", _GET_TABLE, request)
    flags = [attributes(payload[4:]).get(_TABLE_FLAGS, b"\0" * 4) for _kind, payload in answers]
    return any(struct.unpack(">I", value)[0] & _DORMANT for value in flags)
