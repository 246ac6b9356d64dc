"""DNS over TCP on one listening socket: queries are pipelined, each is answered as soon as its answer is there.

Edge. A connection ends when it was silent for a while, when its other side does, or when it breaks the framing. The connections of
a scope, the questions under way on each and the connections of the whole process are bounded; under pressure the connection that
was idle longest makes room.
Source: RFC 1035 4.2.2 (framing), RFC 7766 6.2 (pipelining, limits, idle timeout, half-closed connections), 7 (any order).
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

from dnsd.resolve import Forward

IDLE_S = 10.0
# File descriptors are few and shared by all scopes: one asker must not take them all.
MAX_CONNECTIONS = 64
MAX_CONNECTIONS_TOTAL = 4096
# Questions of one connection that wait for other servers; while there are more, no further one is read.
MAX_UNDER_WAY = 64
# What is done for one socket before the others get their turn.
_AT_ONCE = 64
# Out of file descriptors: the kernel would report the same connection again and again.
_ACCEPT_PAUSE_S = 1.0

Answer = Callable[[bytes], bytes | Forward | None]
Resolve = Callable[[Forward], Awaitable[bytes]]


class TcpListener:
    """answer: at once, or Forward; None ends the connection. resolve: for the latter. counters: the server's; "tcp_open" is how
    many connections there are in all. `close` may be called at any time and ends every connection."""

    def __init__(self, sock: socket.socket, answer: Answer, resolve: Resolve, counters: Counter[str]) -> None:
        self.answer = answer
        self.resolve = resolve
        self.counters = counters
        self.loop = asyncio.get_running_loop()
        # In order of last use: the first is the one that was idle longest.
        self.connections: dict[_Connection, None] = {}
        self.closed = False
        self._sock = sock
        self._pause: asyncio.TimerHandle | None = None
        self._starting: set[asyncio.Task[object]] = set()
        self.loop.add_reader(sock.fileno(), self._connected)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._pause is not None:
            self._pause.cancel()
        self.loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for connection in list(self.connections):
            connection.abort()

    def _connected(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _peer = self._sock.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    self.counters["tcp_refused"] += 1
                    self.loop.remove_reader(self._sock.fileno())
                    self._pause = self.loop.call_later(_ACCEPT_PAUSE_S, self._accept_again)
                return
            full = len(self.connections) >= MAX_CONNECTIONS or self.counters["tcp_open"] >= MAX_CONNECTIONS_TOTAL
            if full and not self._end_idlest():
                self.counters["tcp_refused"] += 1
                sock.close()
                continue
            self._start(sock)

    def _accept_again(self) -> None:
        self.loop.add_reader(self._sock.fileno(), self._connected)

    def _end_idlest(self) -> bool:
        for connection in self.connections:
            if connection.idle:
                connection.end()
                return True
        return False

    def _start(self, sock: socket.socket) -> None:
        connection = _Connection(self)
        self.connections[connection] = None
        self.counters["tcp_open"] += 1
        self.counters["tcp_connections"] += 1

        async def start() -> None:
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self.loop.connect_accepted_socket(lambda: connection, sock)
            except OSError:
                sock.close()
                connection.abort()

        task = self.loop.create_task(start())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)


class _Connection(asyncio.Protocol):
    def __init__(self, listener: TcpListener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._under_way: set[asyncio.Task[None]] = set()
        self._used_at = listener.loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._ended = self._writable = self._rests = self._over = False
        self._reading = True

    @property
    def idle(self) -> bool:
        return not self._under_way

    def abort(self) -> None:
        """What is under way is dropped. Also before the transport is there."""
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._under_way:
            task.cancel()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.abort()
        del self._listener.connections[self]
        self._listener.counters["tcp_open"] -= 1

    def end(self) -> None:
        """Cleanly, but without waiting for a reader that doesn't take its answers."""
        if self._transport is not None and not self._transport.get_write_buffer_size():
            self._transport.close()
        self.abort()

    # -- what asyncio tells ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._over:
            transport.abort()
            return
        self._writable = True
        self._timer = self._listener.loop.call_later(IDLE_S, self._look)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._read()

    def eof_received(self) -> bool:
        """Who sends no more may still wait for answers."""
        self._ended = True
        self._end_if_done()
        return True

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._read()

    def connection_lost(self, exc: Exception | None) -> None:
        self.abort()

    # -- queries --------------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Takes the queries that are whole, as long as their answers find room."""
        received = self._received
        taken = 0
        while self._has_room() and len(received) >= 2:
            end = 2 + (received[0] << 8 | received[1])
            if len(received) < end:
                break
            if taken == _AT_ONCE:
                self._rests = True
                self._listener.loop.call_soon(self._rested)
                break
            taken += 1
            packet = bytes(received[2:end])
            del received[:end]
            self._use()
            answer = self._listener.answer(packet)
            if answer is None:
                self._close()
                return
            if isinstance(answer, Forward):
                task = self._listener.loop.create_task(self._forward(answer))
                self._under_way.add(task)
            else:
                self._write(answer)
        self._throttle()
        self._end_if_done()

    def _rested(self) -> None:
        self._rests = False
        self._read()

    async def _forward(self, forward: Forward) -> None:
        try:
            self._write(await self._listener.resolve(forward))
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._under_way.discard(task)
            self._read()

    def _write(self, answer: bytes) -> None:
        if self._transport is not None and not self._over:
            self._use()
            self._transport.write(len(answer).to_bytes(2) + answer)

    def _has_room(self) -> bool:
        return self._writable and not self._rests and not self._over and len(self._under_way) < MAX_UNDER_WAY

    def _throttle(self) -> None:
        transport = self._transport
        if transport is None or self._over or transport.is_closing() or self._ended:
            return
        if self._reading and not self._has_room():
            self._reading = False
            transport.pause_reading()
        elif not self._reading and self._has_room():
            self._reading = True
            transport.resume_reading()

    # -- the end --------------------------------------------------------------------------------------------------------------

    def _use(self) -> None:
        self._used_at = self._listener.loop.time()
        if not self._over:
            self._listener.connections[self] = self._listener.connections.pop(self)

    def _end_if_done(self) -> None:
        if self._ended and not self._under_way and self._has_room():
            self._close()

    def _close(self) -> None:
        """After what is written. A reader that never takes it is ended by the timer."""
        self._received.clear()
        if self._transport is not None:
            self._transport.close()

    def _look(self) -> None:
        """Silent (also in the middle of a query), or not taking its answers, for too long."""
        remaining_s = self._used_at + IDLE_S - self._listener.loop.time()
        if self._under_way:
            remaining_s = IDLE_S
        if remaining_s > 0:
            self._timer = self._listener.loop.call_later(remaining_s, self._look)
            return
        self.end()
