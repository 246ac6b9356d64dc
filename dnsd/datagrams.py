"""Many datagrams with one system call: recvmmsg and sendmmsg on structures that are laid out once and used by all sockets.

Edge. A response is not put together: the kernel gathers it from where its pieces lie already,

    id          header       question          the rest
    as asked    prebuilt     as asked (case)   prebuilt, one of the rotations

so that what Python does for one query of a batch is a dict lookup and a few list elements. A `Row` says where the prebuilt pieces are.
Source: recvmmsg(2), sendmmsg(2), struct mmsghdr and iovec of 64-bit Linux.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

# Datagrams of one call. More save nothing that can be measured, and others wait longer for their turn.
SLOTS = 64
SLOT_BYTES = 4096
# What is copied out of each slot to be looked up. Queries that are longer have no prebuilt answers.
HEAD_BYTES = 128

# (pieces, the response's label for `counters`, bytes of the question that are echoed, the response itself). pieces: address of the
# header behind the id, the size of the question, address and size of the rest, packed; they point into the response, so that what
# they point to lives as long as the row.
Row = tuple[bytes, int, int, bytes]

_HEADER_BYTES = 12
_ADDRESS_BYTES = 28
_PIECES = 4
_WORD = 8


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class _Header(ctypes.Structure):
    """struct msghdr."""

    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("pieces", ctypes.c_void_p),
        ("piece_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class _Message(ctypes.Structure):
    """struct mmsghdr. size: bytes that went through."""

    _fields_ = [("header", _Header), ("size", ctypes.c_uint32)]


_PACKED = struct.Struct("=4Q").pack
_PIECES_OF = itemgetter(0)

_libc = ctypes.CDLL(None, use_errno=True)
_FLAGS = ctypes.c_int(socket.MSG_DONTWAIT)
_COUNTS = [ctypes.c_uint(count) for count in range(SLOTS + 1)]
_HEADS = [struct.Struct(f"{HEAD_BYTES}s{SLOT_BYTES - HEAD_BYTES}x" * count) for count in range(SLOTS + 1)]


def row_of(response: bytes, question_bytes: int, label: int) -> Row:
    """question_bytes: so much of it is echoed from the query; 0: the question is sent as it is in `response`."""
    at = ctypes.cast(ctypes.c_char_p(response), ctypes.c_void_p).value or 0
    start = _HEADER_BYTES + question_bytes
    return _PACKED(at + 2, question_bytes, at + start, len(response) - start), label, question_bytes, response


def write_row(row: Row, packet: bytes) -> bytes:
    """The response to `packet` as one piece, for who sends it alone."""
    _pieces, _label, question_bytes, response = row
    start = _HEADER_BYTES + question_bytes
    return packet[:2] + response[2:_HEADER_BYTES] + packet[_HEADER_BYTES:start] + response[start:]


class Batch:
    """Room for SLOTS datagrams of sockets of one address family. Everything lasts only until the next `receive`."""

    def __init__(self, family: int) -> None:
        self._received = bytearray(SLOTS * SLOT_BYTES)
        self._addresses = bytearray(SLOTS * _ADDRESS_BYTES)
        self._room = (_Iovec * SLOTS)()
        self._pieces = (_Iovec * (SLOTS * _PIECES))()
        self._incoming = (_Message * SLOTS)()
        self._outgoing = (_Message * SLOTS)()
        received = ctypes.addressof(ctypes.c_char.from_buffer(self._received))
        addresses = ctypes.addressof(ctypes.c_char.from_buffer(self._addresses))
        for slot in range(SLOTS):
            packet, address, piece = received + slot * SLOT_BYTES, addresses + slot * _ADDRESS_BYTES, slot * _PIECES
            self._room[slot] = _Iovec(packet, SLOT_BYTES)
            self._pieces[piece] = _Iovec(packet, 2)
            self._pieces[piece + 1] = _Iovec(None, _HEADER_BYTES - 2)
            self._pieces[piece + 2] = _Iovec(packet + _HEADER_BYTES, 0)
            for message, pieces, count in (
                (self._incoming[slot], self._room[slot], 1),
                (self._outgoing[slot], self._pieces[piece], _PIECES),
            ):
                # The kernel writes here how long the address was: always the same within a family.
                message.header.name, message.header.name_length = address, _ADDRESS_BYTES if family == socket.AF_INET6 else 16
                message.header.pieces, message.header.piece_count = ctypes.addressof(pieces), count
        # Columns of these structures, to be read and written for a whole batch at once.
        self._sizes = memoryview(self._incoming).cast("B").cast("I")[_Message.size.offset // 4 :: ctypes.sizeof(_Message) // 4]
        words = memoryview(self._pieces).cast("B").cast("Q")
        stride = _PIECES * ctypes.sizeof(_Iovec) // _WORD
        # As in Row.
        self._columns = [words[word::stride] for word in (2, 5, 6, 7)]
        self._incoming_at = ctypes.byref(self._incoming)
        self._outgoing_at = ctypes.byref(self._outgoing)

    def receive(self, fd: int) -> int:
        """How many datagrams there were; 0: none (or an error of an earlier answer, cleared by having been read)."""
        count: int = _libc.recvmmsg(fd, self._incoming_at, _COUNTS[SLOTS], _FLAGS, None)
        return max(0, count)

    def heads(self, count: int) -> tuple[list[int], tuple[bytes, ...]]:
        """Sizes and first HEAD_BYTES of the datagrams; what lies behind a shorter one's end means nothing."""
        return self._sizes[:count].tolist(), _HEADS[count].unpack_from(self._received)

    def packet(self, slot: int) -> bytes:
        at = slot * SLOT_BYTES
        return bytes(self._received[at : at + self._sizes[slot]])

    def peer(self, slot: int) -> tuple[Any, ...]:
        """Who sent it, as sockets of Python have addresses."""
        at = slot * _ADDRESS_BYTES
        address = self._addresses[at : at + _ADDRESS_BYTES]
        port = int.from_bytes(address[2:4])
        if int.from_bytes(address[:2], "little") == socket.AF_INET:
            return socket.inet_ntop(socket.AF_INET, address[4:8]), port
        flow, scope = int.from_bytes(address[4:8]), int.from_bytes(address[24:28], "little")
        return socket.inet_ntop(socket.AF_INET6, address[8:24]), port, flow, scope

    def send(self, fd: int, rows: Sequence[Row], skipped: Sequence[int] = ()) -> int:
        """Sends the responses `rows` to the first datagrams, in their order, but for those in the slots `skipped` (ascending).
        How many could not be sent."""
        count = len(rows)
        pieces = memoryview(b"".join(map(_PIECES_OF, rows))).cast("Q")
        for number, column in enumerate(self._columns):
            column[:count] = pieces[number :: len(self._columns)]
        if not skipped:
            return self._send(fd, 0, count)
        unsent, start = 0, 0
        for slot in (*skipped, count):
            unsent += self._send(fd, start, slot)
            start = slot + 1
        return unsent

    def _send(self, fd: int, start: int, end: int) -> int:
        unsent = 0
        while start < end:
            at = ctypes.byref(self._outgoing, start * ctypes.sizeof(_Message)) if start else self._outgoing_at
            sent = _libc.sendmmsg(fd, at, _COUNTS[end - start], _FLAGS)
            if sent <= 0:
                # The first one has failed: its asker can't be reached, or the socket's buffer is full. The others are tried.
                unsent, sent = unsent + 1, 1
            start += sent
        return unsent
