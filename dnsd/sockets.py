"""UDP and TCP sockets, opened inside other network namespaces.

Edge. A thread that lives only for one batch enters the namespaces one after the other; a socket belongs to the namespace it
was created in for good, so the event loop can serve it from outside. An open socket pins its namespace: close it in time.
Source: setns(2), ip(7) IP_FREEBIND, namespaces(7).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dnsd.errors import ConfigError
from dnsd.resolvers import Endpoint, endpoint_text

_CLONE_NEWNET = 0x40000000
_IP_FREEBIND = 15
_IPV6_FREEBIND = 78
_SO_RCVBUFFORCE = 33
# Room for the queries that arrive while a large zone is compiled (some 50 ms): about a thousand.
_RECEIVE_BUFFER_BYTES = 1 << 20
_BACKLOG = 128
OWN_NETNS = "/proc/self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Request:
    """netns "": our own. expected: the identity the namespace must have, "" = any."""

    netns: str
    listen: Endpoint
    expected: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """Both non-blocking, on the same address and port; tcp listens. netns_id tells whether a path still means that namespace."""

    udp: socket.socket
    tcp: socket.socket
    netns_id: str


def netns_id(path: str) -> str:
    """The identity of the namespace a path leads to; "" if it leads to none (any more)."""
    try:
        status = Path(path or OWN_NETNS).stat()
    except OSError:
        return ""
    return f"{status.st_dev}:{status.st_ino}"


async def open_all(requests: Sequence[Request]) -> list[Opened | ConfigError]:
    """One result a request, in order. A ConfigError says why this one can't be had; it leaves nothing open."""
    if not requests:
        return []
    loop = asyncio.get_running_loop()
    done: asyncio.Future[list[Opened | ConfigError]] = loop.create_future()

    def deliver(results: list[Opened | ConfigError]) -> None:
        if done.done():  # the caller was cancelled: nobody will close them
            close_all(results)
        else:
            done.set_result(results)

    def work() -> None:
        # Our own namespace first: there is no way back once the thread has left it.
        results: dict[int, Opened | ConfigError] = {}
        for index in sorted(range(len(requests)), key=lambda index: bool(requests[index].netns)):
            try:
                results[index] = _open(requests[index])
            except ConfigError as error:
                results[index] = error
        ordered = [results[index] for index in range(len(requests))]
        try:
            loop.call_soon_threadsafe(deliver, ordered)
        except RuntimeError:  # the loop was closed meanwhile
            close_all(ordered)

    threading.Thread(target=work, name="dnsd-netns", daemon=True).start()
    return await done


def close_all(results: Sequence[Opened | ConfigError]) -> None:
    for result in results:
        if isinstance(result, Opened):
            result.udp.close()
            result.tcp.close()


def _open(request: Request) -> Opened:
    identity = _enter(request) if request.netns else netns_id("")
    host, port = request.listen
    try:
        # With port 0 the kernel chooses one for UDP; TCP may find that one taken.
        for _ in range(20 if port == 0 else 1):
            udp = tcp = None
            try:
                udp = _socket(request, socket.SOCK_DGRAM, port)
                tcp = _socket(request, socket.SOCK_STREAM, udp.getsockname()[1])
                tcp.listen(_BACKLOG)
                return Opened(udp, tcp, identity)
            except OSError as error:
                for opened in (udp, tcp):
                    if opened is not None:
                        opened.close()
                if port or error.errno != errno.EADDRINUSE:
                    raise
        raise ConfigError(f"no port of {host} is free for both UDP and TCP")
    except OSError as error:
        raise ConfigError(_bind_sentence(request, error)) from error


def _enter(request: Request) -> str:
    path = request.netns
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH, errno.ENOTDIR):
            raise ConfigError(f"the network namespace {path} does not exist: its sandbox is gone") from error
        raise ConfigError(f"the network namespace {path} can't be opened: {os.strerror(error.errno or 0)}") from error
    try:
        status = os.fstat(fd)
        identity = f"{status.st_dev}:{status.st_ino}"
        if request.expected and identity != request.expected:
            raise ConfigError(f"{path} is another network namespace than before: its sandbox is gone")
        if _libc.setns(fd, _CLONE_NEWNET):
            number = ctypes.get_errno()
            if number == errno.EPERM:
                raise ConfigError(f"entering the network namespace {path} is not permitted: dnsd must run as root")
            if number == errno.EINVAL:
                raise ConfigError(f"{path} is no network namespace")
            raise ConfigError(f"the network namespace {path} can't be entered: {os.strerror(number)}")
        return identity
    finally:
        os.close(fd)


def _socket(request: Request, kind: int, port: int) -> socket.socket:
    host = request.listen[0]
    family, _, _, _, address = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_NUMERICHOST)[0]
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            try:
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        if request.netns:
            # The loopback of a fresh namespace may still be down, and then it has no 127.0.0.11 yet.
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_sentence(request: Request, error: OSError) -> str:
    where = f"{endpoint_text(request.listen)} in {request.netns}" if request.netns else endpoint_text(request.listen)
    match error.errno:
        case errno.EADDRINUSE:
            return f"{where} is already in use by another program"
        case errno.EADDRNOTAVAIL:
            return f"{where} can't be listened on: this machine has no such address"
        case errno.EACCES:
            return f"{where} can't be listened on: ports below 1024 need root"
    return f"{where} can't be listened on: {error.strerror or error}"
