"""A netlink socket that sends many requests in one write, and attributes as plain bytes.

Edge: `Netlink` is a socket; the packing functions are pure. Source: netlink(7), linux/netlink.h. Used where rows come by the thousand
(addresses, neighbours, forwarding rows, tracked connections, IPVS); links and routes are encoded by pyroute2 and sent through it too.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from mesh.errors import KernelError
from mesh.linux.namespace import unshare_network

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12
NETLINK_GENERIC: Final = 16

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_DUMP: Final = 0x300

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLA_TYPE_MASK: Final = 0x3FFF
NLA_F_NESTED: Final = 0x8000
_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE_BUFFER_BYTES: Final = 1 << 20
_MESSAGE_BYTES: Final = 1 << 16
"""The kernel puts at most 32 KiB into one."""

_DUMP_ATTEMPTS: Final = 5
_TIMEOUT_S: Final = 10.0
_SO_NETNS_COOKIE: Final = 71
_SO_SNDBUFFORCE: Final = 32


def _leave() -> None:
    """A thread begins in the namespace of the one that started it, and would keep that alive: have it live in one of its own."""
    # who may not do that has entered no other namespace
    with suppress(KernelError):
        unshare_network()


_CLOSING: Final = ThreadPoolExecutor(1, thread_name_prefix="netlink-close", initializer=_leave)
_CLOSING_AT_ONCE: Final = threading.Semaphore(64)


def _close(opened: socket.socket) -> None:
    try:
        opened.close()
    finally:
        _CLOSING_AT_ONCE.release()


def attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def attributes(payload: bytes) -> dict[int, bytes]:
    """Attribute values by type, flags stripped; of a repeated type the last one wins."""
    found: dict[int, bytes] = {}
    offset, end = 0, len(payload)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if length < 4:
            break
        found[kind & _NLA_TYPE_MASK] = payload[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def each(payload: bytes) -> Iterator[bytes]:
    """Values of a list of attributes, whatever their types."""
    offset, end = 0, len(payload)
    while offset + 4 <= end:
        length = int.from_bytes(payload[offset : offset + 2], sys.byteorder)
        if length < 4:
            return
        yield payload[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class Netlink:
    """One socket of the namespace in which it is opened. Not for use by two threads at a time."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        self._socket.bind((0, 0))
        self._protocol = protocol
        self._sequence = 0
        self._buffer = bytearray(_MESSAGE_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # after a deletion the kernel lets him who closes a netfilter socket wait for a grace period (10 ms and more): not this thread
        if self._protocol == NETLINK_NETFILTER and _CLOSING_AT_ONCE.acquire(blocking=False):
            _CLOSING.submit(_close, self._socket)
        else:
            self._socket.close()

    @property
    def namespace_cookie(self) -> int | None:
        """Number of the socket's namespace that no other will ever have; None before Linux 5.14."""
        try:
            return int.from_bytes(self._socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
        except OSError:
            return None

    def send(self, requests: Sequence[tuple[int, int, bytes]]) -> list[int]:
        """Send (type, flags, payload)s in one write, return an errno for each, 0 for success.

        Only the last is to be acknowledged: the kernel works them off in order and speaks up by itself about one that failed.
        """
        if not requests:
            return []
        first, last = self._sequence + 1, self._sequence + len(requests)
        self._write(b"".join(self._packed(requests)))
        answers = [0] * len(requests)
        while True:
            for kind, _flags, sequence, payload in self._read():
                if kind != _NLMSG_ERROR or not first <= sequence <= last:
                    continue
                answers[sequence - first] = -struct.unpack_from("=i", payload)[0]
                if sequence == last:
                    return answers

    def _packed(self, requests: Sequence[tuple[int, int, bytes]]) -> list[bytes]:
        """Headers and payloads; the last one asks for an acknowledgement."""
        parts: list[bytes] = []
        for left, (kind, flags, payload) in zip(range(len(requests) - 1, -1, -1), requests, strict=True):
            self._sequence += 1
            flags |= NLM_F_REQUEST if left else NLM_F_REQUEST | NLM_F_ACK
            parts += (_HEADER.pack(16 + len(payload), kind, flags, self._sequence, 0), payload)
            if padding := -len(payload) % 4:
                parts.append(b"\0" * padding)
        return parts

    def request(self, op: str, kind: int, flags: int, payload: bytes, *, ignore: tuple[int, ...] = ()) -> None:
        """One request. Raises KernelError(op) unless it succeeds or fails with an errno of `ignore`."""
        self.requests(op, [(kind, flags, payload)], ignore=ignore)

    def requests(self, op: str, requests: Sequence[tuple[int, int, bytes]], *, ignore: tuple[int, ...] = ()) -> None:
        """Many requests, every one of which is tried. Raises KernelError(op) for the first that failed."""
        failed = [code for code in self.send(requests) if code and code not in ignore]
        if failed:
            detail = f"{os.strerror(failed[0])}, {len(failed)} of {len(requests)}" if len(requests) > 1 else ""
            raise KernelError(op, failed[0], detail)

    def transaction(self, op: str, begin: tuple[int, bytes], requests: Sequence[tuple[int, int, bytes]], end: tuple[int, bytes]) -> None:
        """Many requests between brackets, in one write: all take effect or none. Raises KernelError(op) for the first that failed."""
        if not requests:
            return
        self._sequence += 1
        first = self._sequence
        parts = [_HEADER.pack(16 + len(begin[1]), begin[0], NLM_F_REQUEST, first, 0), begin[1], *self._packed(requests)]
        last = self._sequence
        self._sequence += 1
        message = b"".join([*parts, _HEADER.pack(16 + len(end[1]), end[0], NLM_F_REQUEST, self._sequence, 0), end[1]])
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2 * len(message) + _RECEIVE_BUFFER_BYTES)
        self._write(message)
        while True:
            for kind, _flags, sequence, payload in self._read():
                if kind != _NLMSG_ERROR or not first <= sequence <= self._sequence:
                    continue
                if code := -struct.unpack_from("=i", payload)[0]:
                    raise KernelError(op, code)
                if sequence == last:
                    return

    def ask(self, op: str, kind: int, payload: bytes) -> list[tuple[int, bytes]]:
        """The answers (type, payload) to one request that is no dump."""
        self._sequence += 1
        self._write(_HEADER.pack(16 + len(payload), kind, NLM_F_REQUEST | NLM_F_ACK, self._sequence, 0) + payload)
        answers: list[tuple[int, bytes]] = []
        while True:
            for answer, _flags, sequence, content in self._read():
                if sequence != self._sequence:
                    continue
                if answer == _NLMSG_ERROR:
                    if code := -struct.unpack_from("=i", content)[0]:
                        raise KernelError(op, code)
                    return answers
                answers.append((answer, content))

    def dump(self, op: str, kind: int, payload: bytes) -> list[tuple[int, bytes]]:
        """All answers as (type, payload); repeated when the kernel says that the table changed meanwhile."""
        for _ in range(_DUMP_ATTEMPTS):
            answers, interrupted = self._dump(op, kind, payload)
            if not interrupted:
                return answers
        return answers

    def _dump(self, op: str, kind: int, payload: bytes) -> tuple[list[tuple[int, bytes]], bool]:
        self._sequence += 1
        self._write(_HEADER.pack(16 + len(payload), kind, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, 0) + payload)
        answers: list[tuple[int, bytes]] = []
        interrupted = False
        while True:
            for answer, flags, sequence, content in self._read():
                if sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if answer == _NLMSG_DONE:
                    return answers, interrupted
                if answer == _NLMSG_ERROR:
                    raise KernelError(op, -struct.unpack_from("=i", content)[0])
                answers.append((answer, content))

    def _write(self, message: bytes) -> None:
        try:
            self._socket.send(message)
        except OSError as error:
            raise KernelError("send to the kernel", error.errno or errno.EIO) from error

    def _read(self) -> Iterator[tuple[int, int, int, bytes]]:
        try:
            size = self._socket.recv_into(self._buffer, 0, socket.MSG_TRUNC)
        except TimeoutError as error:
            raise KernelError("wait for the kernel's answer", errno.ETIMEDOUT) from error
        except OSError as error:
            raise KernelError("read the kernel's answer", error.errno or errno.EIO) from error
        if size > len(self._buffer):
            raise KernelError("read the kernel's answer", errno.EMSGSIZE)
        packet = bytes(memoryview(self._buffer)[:size])
        offset = 0
        while offset + 16 <= len(packet):
            length, kind, flags, sequence, _port = _HEADER.unpack_from(packet, offset)
            if length < 16:
                break
            yield kind, flags, sequence, packet[offset + 16 : offset + length]
            offset += (length + 3) & ~3
