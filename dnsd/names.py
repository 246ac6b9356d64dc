"""Names and addresses between text and bytes.

Pure. A name here is its wire form in lower case, uncompressed: "web" is b"\\x03web\\x00". An address is packed, 4 or 16 bytes.
Source: RFC 1035 3.1 (names), 3.5 (in-addr.arpa), RFC 3596 2.5 (ip6.arpa), RFC 4343 (case).
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

MAX_NAME_BYTES = 255
MAX_LABEL_BYTES = 63


def name_of(text: str) -> bytes | None:
    """Text to a wire name; None if DNS can't carry it (empty or over-long labels, over-long names)."""
    parts = []
    for label in text.removesuffix(".").encode().lower().split(b"."):
        if not label or len(label) > MAX_LABEL_BYTES or b"\0" in label:
            return None
        parts.append(bytes((len(label),)) + label)
    name = b"".join(parts) + b"\0"
    return name if len(name) <= MAX_NAME_BYTES else None


def labels_of(name: bytes) -> list[bytes]:
    """The labels of a well-formed wire name, without length bytes."""
    labels, at = [], 0
    while size := name[at]:
        labels.append(name[at + 1 : at + 1 + size])
        at += 1 + size
    return labels


def wire_name(labels: list[bytes]) -> bytes:
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def text_of(name: bytes) -> str:
    return b".".join(labels_of(name)).decode(errors="backslashreplace") or "."


def packed_address(text: str) -> bytes | None:
    """4 or 16 bytes; None if it is no address."""
    try:
        return inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except (OSError, ValueError):
        return None


def address_text(packed: bytes) -> str:
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)


def reverse_address(name: bytes) -> bytes | None:
    """The address a name under in-addr.arpa or ip6.arpa stands for, packed; None for every other name."""
    labels = labels_of(name)
    if len(labels) == 6 and labels[4:] == [b"in-addr", b"arpa"]:
        if all(label.isdigit() and (label == b"0" or not label.startswith(b"0")) and int(label) < 256 for label in labels[:4]):
            return bytes(int(label) for label in reversed(labels[:4]))
        return None
    if len(labels) == 34 and labels[32:] == [b"ip6", b"arpa"]:
        digits = b"".join(reversed(labels[:32]))
        if len(digits) == 32 and all(digit in b"0123456789abcdef" for digit in digits):
            return bytes.fromhex(digits.decode())
    return None


def reverse_name(packed: bytes) -> bytes:
    if len(packed) == 4:
        labels = [b"%d" % byte for byte in reversed(packed)]
        return wire_name([*labels, b"in-addr", b"arpa"])
    return wire_name([b"%c" % digit for digit in reversed(packed.hex().encode())] + [b"ip6", b"arpa"])
