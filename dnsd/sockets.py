"""UDP and TCP sockets, opened inside other network namespaces.

Edge. A socket belongs to the namespace it was created in for good, so the event loop can serve it from outside: its thread enters a
namespace, opens the sockets and is back before anything else runs. An open socket pins its namespace: close it in time.
Source: setns(2), ip(7) IP_FREEBIND, namespaces(7).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from dnsd.errors import ConfigError
from dnsd.resolvers import Endpoint, endpoint_text

if TYPE_CHECKING:
    # asyncio takes its time to load, and sockets may have to be opened first.
    from dnsd.loop import Pace

_CLONE_NEWNET = 0x40000000
_IP_FREEBIND = 15
_IPV6_FREEBIND = 78
_SO_RCVBUFFORCE = 33
# Room for a burst of about a thousand queries.
_RECEIVE_BUFFER_BYTES = 1 << 20
_BACKLOG = 128
OWN_NETNS = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


class Request(msgspec.Struct, frozen=True):
    """netns "": our own. expected: the identity the namespace must have, "" = any."""

    netns: str
    listen: Endpoint
    expected: str = ""


class Opened(msgspec.Struct, frozen=True):
    """Both non-blocking, on the same address and port; tcp listens. netns_id tells whether a path still means that namespace."""

    udp: socket.socket
    tcp: socket.socket
    netns_id: str


def netns_id(path: str) -> str:
    """The identity of the namespace a path leads to; "" if it leads to none (any more)."""
    try:
        status = os.stat(path or OWN_NETNS)  # noqa: PTH116 - called a thousand times in a row; a Path takes twice as long
    except OSError:
        return ""
    return f"{status.st_dev}:{status.st_ino}"


async def open_all(requests: Sequence[Request], pace: Pace) -> list[Opened | ConfigError]:
    """One result a request, in order. A ConfigError says why this one can't be had; it leaves nothing open."""
    results: list[Opened | ConfigError] = []
    try:
        for request in requests:
            await pace.rest()
            try:
                results.append(open_sockets(request))
            except ConfigError as error:
                results.append(error)
    except BaseException:
        close_all(results)
        raise
    return results


def close_all(results: Iterable[Opened | ConfigError]) -> None:
    for result in results:
        if isinstance(result, Opened):
            result.udp.close()
            result.tcp.close()


def open_sockets(request: Request) -> Opened:
    """ConfigError: why they can't be had; nothing is left open."""
    with _entered(request) as identity:
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


@contextmanager
def _entered(request: Request) -> Iterator[str]:
    """Inside, this thread is in the namespace; its identity."""
    path = request.netns
    if not path:
        yield netns_id("")
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH, errno.ENOTDIR):
            raise ConfigError(f"the network namespace {path} does not exist: its sandbox is gone") from error
        raise ConfigError(f"the network namespace {path} can't be opened: {os.strerror(error.errno or 0)}") from error
    own = os.open(OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        identity = f"{status.st_dev}:{status.st_ino}"
        if request.expected and identity != request.expected:
            raise ConfigError(f"{path} is another network namespace than before: its sandbox is gone")
        _setns(fd, path)
        try:
            yield identity
        finally:
            _setns(own, OWN_NETNS)
    finally:
        os.close(own)
        os.close(fd)


def _setns(fd: int, path: str) -> None:
    if not _libc.setns(fd, _CLONE_NEWNET):
        return
    number = ctypes.get_errno()
    if number == errno.EPERM:
        raise ConfigError(f"entering the network namespace {path} is not permitted: dnsd must run as root")
    if number == errno.EINVAL:
        raise ConfigError(f"{path} is no network namespace")
    raise ConfigError(f"the network namespace {path} can't be entered: {os.strerror(number)}")


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
        case errno.EMFILE:
            return f"{where} can't be listened on: dnsd may not open more files; raise its limit (LimitNOFILE, ulimit -n)"
    return f"{where} can't be listened on: {error.strerror or error}"
