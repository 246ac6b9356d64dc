"""The least a server in Python can do: `floor.py plain|batched PORT ANSWER` (in hex; its id is the query's)."""

from __future__ import annotations

import select
import socket
import sys

from dnsd.datagrams import Batch, row_of


def plain(sock: socket.socket, answer: bytes) -> None:
    rest = answer[2:]
    while True:
        packet, peer = sock.recvfrom(4096)
        sock.sendto(packet[:2] + rest, peer)


def batched(sock: socket.socket, answer: bytes) -> None:
    """recvmmsg and sendmmsg, with all structures filled in beforehand."""
    batch, fd = Batch(socket.AF_INET), sock.fileno()
    rows = [row_of(answer, 0, 0)] * 64
    batch.send(fd, rows, skipped=range(64))
    epoll = select.epoll()
    epoll.register(fd, select.EPOLLIN)
    while True:
        epoll.poll()
        count = batch.receive(fd)
        if count:
            batch._send(fd, 0, count)


if __name__ == "__main__":
    kind, port, answer = sys.argv[1:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", int(port)))
        {"plain": plain, "batched": batched}[kind](sock, bytes.fromhex(answer))
