"""Log lines as the Engine sends them and as clients want them: 8-byte frames, timestamps, details.

Pure: no I/O; bytes in, lines out, however they are cut. Source: moby pkg/stdcopy; Docker Engine API 1.44 "Stream format".
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from orchestrator.errors import RemoteProtocolError

STDOUT = 1
STDERR = 2
SYSTEM_ERROR = 3
_HEAD_BYTES = 8
# The Engine splits log lines at 16 KiB; a frame of this size is none of its.
_MAX_FRAME_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """`timestamp`: RFC 3339 with nine digits, so that text order is time order. `message` keeps its line end, if it had one."""

    timestamp: str
    stream: int
    message: bytes


class FrameReader:
    """Feeds on a framed stream."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[Line]:
        self._pending += data
        while len(self._pending) >= _HEAD_BYTES:
            size = int.from_bytes(self._pending[4:_HEAD_BYTES], "big")
            if size > _MAX_FRAME_BYTES or self._pending[0] > SYSTEM_ERROR:
                raise RemoteProtocolError("the Engine's log stream is not in frames")
            if len(self._pending) < _HEAD_BYTES + size:
                return
            payload = bytes(self._pending[_HEAD_BYTES : _HEAD_BYTES + size])
            stream = self._pending[0]
            del self._pending[: _HEAD_BYTES + size]
            yield _line(stream or STDOUT, payload)

    def end(self) -> Iterator[Line]:
        """A frame that was cut off is dropped: its line is incomplete."""
        self._pending.clear()
        return iter(())


class RawReader:
    """Feeds on the unframed stream of a TTY: one line a newline."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[Line]:
        self._pending += data
        while (end := self._pending.find(b"\n")) >= 0:
            payload = bytes(self._pending[: end + 1])
            del self._pending[: end + 1]
            yield _line(STDOUT, payload)

    def end(self) -> Iterator[Line]:
        if self._pending:
            yield _line(STDOUT, bytes(self._pending))
        self._pending.clear()


def frame(stream: int, payload: bytes) -> bytes:
    return bytes((stream, 0, 0, 0)) + len(payload).to_bytes(4, "big") + payload


def shown(line: Line, *, timestamps: bool, details: Collection[str]) -> bytes:
    """`<timestamp> <details> <message>`, what was asked for of it. details: to be added to those that the line begins with."""
    message = line.message
    head = f"{line.timestamp} " if timestamps else ""
    if details:
        own, _, message = message.partition(b" ")
        head += ",".join(sorted([*(part for part in own.decode(errors="replace").split(",") if part), *details])) + " "
    return head.encode() + message


def _line(stream: int, payload: bytes) -> Line:
    timestamp, space, message = payload.partition(b" ")
    if not space:
        return Line("", stream, payload)
    return Line(timestamp.decode("ascii", "replace"), stream, message)
