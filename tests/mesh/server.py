"""Servers in network namespaces, all in one thread of this process: TCP 80 and UDP 53, IPv4 and IPv6; every line or datagram is answered
with the server's name and the client's address. (A process each would take seconds to start in the virtual machine.)"""

from __future__ import annotations

import selectors
import socket
import threading

from mesh.linux.namespace import inside


class Servers:
    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, "")
        self._names: dict[socket.socket, str] = {}
        self._lock = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name="servers", daemon=True)
        self._thread.start()

    def add(self, name: str, path: str) -> None:
        """Afterwards the server listens in the namespace at `path`."""
        with inside(path):
            tcp = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True, backlog=100)
            udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            udp.bind(("::", 53))
        with self._lock:
            for listener in (tcp, udp):
                listener.setblocking(False)
                self._register(listener, name)
        self._wake.send(b"!")

    def remove(self, name: str) -> None:
        """Afterwards no socket of it is open."""
        with self._lock:
            for s in [s for s, owner in self._names.items() if owner == name]:
                self._close(s)

    def close(self) -> None:
        with self._lock:
            self._ended = True
        self._wake.send(b"!")
        self._thread.join()
        for s in [*self._names, self._wake, self._woken]:
            s.close()
        self._selector.close()

    def _register(self, s: socket.socket, name: str) -> None:
        self._names[s] = name
        self._selector.register(s, selectors.EVENT_READ, name)

    def _close(self, s: socket.socket) -> None:
        self._selector.unregister(s)
        del self._names[s]
        s.close()

    def _serve(self) -> None:
        while not self._ended:
            events = self._selector.select()
            with self._lock:
                for key, _ in events:
                    s = key.fileobj
                    assert isinstance(s, socket.socket)
                    if s is self._woken:
                        s.recv(100)
                    elif s in self._names:
                        self._answer(s, self._names[s])

    def _answer(self, s: socket.socket, name: str) -> None:
        try:
            if s.type == socket.SOCK_DGRAM:
                _, client = s.recvfrom(70000)
                s.sendto(f"{name} {client[0]}\n".encode(), client)
            elif s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                accepted = s.accept()[0]
                accepted.setblocking(False)
                self._register(accepted, name)
            elif s.recv(70000):
                s.sendall(f"{name} {s.getpeername()[0]}\n".encode())
            else:
                self._close(s)
        except BlockingIOError:
            pass
        except OSError:
            if s.type == socket.SOCK_STREAM and not s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                self._close(s)
