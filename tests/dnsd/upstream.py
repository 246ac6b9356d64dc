"""A little DNS server that plays an upstream: UDP and TCP on loopback, answers by script."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from dnslib import DNSRecord

Script = Callable[[Any, bool], Any]


class Upstream:
    """script(record, tcp) -> a DNSRecord or bytes to answer with, or None: stay silent. asked: (name, tcp) in order."""

    def __init__(self, script: Script, host: str = "127.0.0.1") -> None:
        self.script = script
        self.asked: list[tuple[str, bool]] = []
        self.held: list[Callable[[], None]] = []
        self.holding = False
        self._host = host

    async def __aenter__(self) -> Upstream:
        while True:
            self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self.udp.bind((self._host, 0))
            self.port = self.udp.getsockname()[1]
            try:
                self.tcp = await asyncio.start_server(self._converse, self._host, self.port)
                break
            except OSError:  # somebody has that port for TCP
                self.udp.close()
        self.address = f"{self._host}:{self.port}"
        asyncio.get_running_loop().add_reader(self.udp, self._readable)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self.udp)
        self.udp.close()
        self.tcp.close()

    def release(self) -> None:
        self.holding = False
        for answer in self.held:
            answer()
        self.held.clear()

    def _readable(self) -> None:
        packet, peer = self.udp.recvfrom(65535)
        answer = self._answer(packet, tcp=False)

        def send() -> None:
            if answer is not None:
                self.udp.sendto(answer, peer)

        if self.holding:
            self.held.append(send)
        else:
            send()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            packet = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
            answer = self._answer(packet, tcp=True)
            if answer is not None:
                writer.write(len(answer).to_bytes(2) + answer)
                await writer.drain()
        finally:
            writer.close()

    def _answer(self, packet: bytes, *, tcp: bool) -> bytes | None:
        record = DNSRecord.parse(packet)
        self.asked.append((str(record.q.qname), tcp))
        answer = self.script(record, tcp)
        return answer if answer is None or isinstance(answer, bytes) else bytes(answer.pack())


def closed_port() -> int:
    """A port of loopback where nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
