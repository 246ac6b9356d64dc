"""The control socket of a dnsd process: whole states in, what became of them out.

Edge: a unix socket for its owner only. Every applied state is written to the state file before it is acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

import msgspec

from dnsd import state_file
from dnsd.encoded import EncodedZone, digest_of
from dnsd.errors import ConfigError, DnsError, RemoteProtocolError
from dnsd.messages import (
    AppliedReply,
    Apply,
    Ask,
    Explain,
    Explained,
    Hello,
    Log,
    Logged,
    Missing,
    Refused,
    Reply,
    Request,
    StatusReply,
    Welcome,
    frame,
    read_request,
)
from dnsd.model import Applied
from dnsd.reopen import Reopened
from dnsd.server import Server
from dnsd.sockets import close_all
from dnsd.version import VERSION

_log = logging.getLogger("dnsd")


class Control:
    """Runs `server` for whoever connects to `path`. `open` first restores what was served before."""

    def __init__(self, server: Server, path: Path, state_path: Path | None = None) -> None:
        self._server = server
        self._path = path
        self._state_path = state_path
        self._known: dict[str, EncodedZone] = {}
        self._listener: asyncio.Server | None = None
        self._inode = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._applying = asyncio.Lock()

    async def open(self, reopened: Reopened) -> None:
        """ConfigError: the path can't be used, or a living dnsd has it."""
        try:
            sock = _bind(self._path)
        except ConfigError:
            close_all(reopened.opened.values())
            raise
        try:
            await self._restore(reopened)
        except BaseException:
            self._path.unlink(missing_ok=True)
            sock.close()
            raise
        self._inode = self._path.stat().st_ino
        self._listener = await asyncio.start_unix_server(self._serve, sock=sock)

    async def close(self) -> None:
        """The socket file goes, unless another process has put its own there."""
        if self._listener is None:
            return
        self._listener.close()
        for writer in list(self._writers):
            writer.close()
        try:
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        except OSError:
            pass
        self._listener = None

    async def _restore(self, reopened: Reopened) -> None:
        loaded = reopened.loaded
        if loaded is None:
            return
        try:
            zones = tuple(loaded.zones.values())
            applied = await self._server.serve(zones, loaded.scopes, expected=loaded.identities, opened=reopened.opened)
        except (DnsError, msgspec.DecodeError) as error:
            close_all(reopened.opened.values())
            _log.warning("event=state-ignored path=%s reason=%r", self._state_path, str(error))
            return
        self._known = loaded.zones
        _log.info("event=restored zones=%d scopes=%d", len(loaded.zones), len(loaded.scopes) - len(applied.failed))
        for scope_id, reason in applied.failed.items():
            _log.info("event=scope-not-restored scope=%s reason=%r", scope_id, reason)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                try:
                    reply = await self._reply(await read_request(reader))
                except RemoteProtocolError as error:
                    writer.write(frame(Refused(str(error))))
                    await writer.drain()
                    return
                writer.write(frame(reply))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _reply(self, request: Request) -> Reply:
        match request:
            case Hello():
                return Welcome(VERSION, tuple(self._known))
            case Ask():
                return StatusReply(self._server.status())
            case Explain():
                try:
                    return Explained(await self._server.explain(request.asker, request.name, request.kind))
                except ConfigError as error:
                    return Refused(str(error))
            case Log():
                try:
                    return Logged(*await self._server.log(request.asker, on=request.on, after=request.after))
                except ConfigError as error:
                    return Refused(str(error))
            case Apply():
                # One at a time, and in the order they came: the last word must win in the file as well.
                async with self._applying:
                    return await self._apply(request)

    async def _apply(self, request: Apply) -> Reply:
        missing = tuple(digest for digest in request.zones if digest not in self._known and digest not in request.bodies)
        if missing:
            return Missing(missing)
        known: dict[str, EncodedZone] = {}
        try:
            for digest in request.zones:
                if digest in self._known:
                    known[digest] = self._known[digest]
                else:
                    # In a thread: it computes for longer than an asker should wait, mostly without Python's lock.
                    known[digest] = await asyncio.to_thread(_zone_of, digest, request.bodies[digest])
            applied = await self._server.serve(tuple(known.values()), request.scopes)
        except msgspec.DecodeError as error:
            raise RemoteProtocolError(f"a zone can't be read: {error}") from error
        except ConfigError as error:
            return Refused(str(error))
        self._known = known
        for scope_id, reason in applied.failed.items():
            _log.warning("event=scope-failed scope=%s reason=%r", scope_id, reason)
        return AppliedReply(await self._save(request, applied))

    async def _save(self, request: Apply, applied: Applied) -> Applied:
        if self._state_path is None:
            return applied
        try:
            packed = {digest: zone.packed for digest, zone in self._known.items()}
            await asyncio.to_thread(state_file.save, self._state_path, packed, request.scopes, self._server.identities())
        except ConfigError as error:
            # The names are served all the same; only a dnsd killed now would come back empty.
            _log.warning("event=state-not-saved reason=%r", str(error))
            return msgspec.structs.replace(applied, problems=(*applied.problems, str(error)))
        return applied


def _zone_of(digest: str, body: bytes) -> EncodedZone:
    if digest_of(body) != digest:
        raise RemoteProtocolError(f"zone {digest} does not have that digest")
    return EncodedZone(body)


def _bind(path: Path) -> socket.socket:
    """A bound unix socket at `path`; one that nobody listens on any more is replaced."""
    if len(os.fsencode(path)) > 107:
        raise ConfigError(f"the path of the control socket is too long (107 bytes at most): {path}")
    if path.exists() and not path.is_socket():
        raise ConfigError(f"{path} exists and is no socket: it is not replaced; choose another path for the control socket")
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(path))
            except TimeoutError:
                raise ConfigError(f"another process listens on {path}, although it doesn't answer: end it first") from None
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise ConfigError(f"the control socket {path} can't be used: {error.strerror}") from error
            else:
                raise ConfigError(f"another dnsd already serves {path}: only one can; end it first or choose another path")
    sock = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise ConfigError(f"the control socket {path} can't be created: {error.strerror}") from error
    finally:
        os.umask(before)
    return sock
