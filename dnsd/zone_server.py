"""Serves one zone file, and reads it again when it changed.

Edge. A file that can't be read or makes no sense changes nothing: what is served stays, the reason is logged. A file is taken only
when it has stopped changing, so that one that is being written is not taken for whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from dnsd.errors import ConfigError
from dnsd.model import DnsState, ScopeSpec, ZoneSpec
from dnsd.resolvers import Endpoint, file_stamp, parse_endpoint
from dnsd.server import Server
from dnsd.zone_file import read_zone

_log = logging.getLogger("dnsd")

_LOOK_S = 0.25


class ZoneServer:
    """`open`, then `watch` for as long as it is to follow the file. listens: "address:port", any number."""

    def __init__(self, server: Server, path: Path, listens: Sequence[str]) -> None:
        self._server = server
        self._path = path
        self._listens = tuple(dict.fromkeys(listens))
        self._stamp: object = None
        self._reload = asyncio.Event()

    async def open(self) -> list[Endpoint]:
        """The addresses listened on. ConfigError: bad file, or one of them can't be had; nothing is served then."""
        for listen in self._listens:
            parse_endpoint(listen)
        self._stamp = file_stamp(self._path)
        applied = await self._apply(read_zone(self._path))
        if applied:
            raise ConfigError("\n".join(applied.values()))
        return [self._server.address(listen) for listen in self._listens]

    def reload(self) -> None:
        """Read it again, whether it looks changed or not."""
        self._reload.set()

    async def watch(self) -> None:
        changing: object = None
        while True:
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._reload.wait()
            except TimeoutError:
                stamp = file_stamp(self._path)
                if stamp == self._stamp or stamp != changing:
                    changing = stamp
                    continue
            self._reload.clear()
            self._stamp = file_stamp(self._path)
            await self._read_again()

    async def _read_again(self) -> None:
        try:
            zone = read_zone(self._path)
        except ConfigError as error:
            for line in str(error).splitlines():
                _log.error("event=zone-kept path=%s reason=%r", self._path, line)
            return
        await self._apply(zone)
        _log.info("event=zone-reloaded path=%s services=%d hosts=%d", self._path, len(zone.services), len(zone.containers))

    async def _apply(self, zone: ZoneSpec) -> dict[str, str]:
        scopes = tuple(ScopeSpec(id=listen, netns="", networks=(zone.network,), listen=listen) for listen in self._listens)
        return (await self._server.apply(DnsState(zones=(zone,), scopes=scopes))).failed
