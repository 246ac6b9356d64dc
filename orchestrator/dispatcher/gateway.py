"""Every manager's gateway for agents: whoever leads, an agent is served by the manager it is attached to.

Edge: connections of agents and between managers. The leader serves its agents itself (`server`); the others bring theirs to it, each
over one connection for all of them (`multiplex`). When another manager leads, agents stay where they are and are asked to begin again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from orchestrator.dispatcher.connection import Connect, Connection, WebSocket
from orchestrator.dispatcher.messages import Hello, Redirect, Restart
from orchestrator.dispatcher.multiplex import Stream, Trunk
from orchestrator.dispatcher.server import (
    CLOSE_LOST,
    CLOSE_NOT_LEADING,
    CLOSE_PROTOCOL,
    CLOSE_REMOVED,
    Dispatcher,
    decoded,
    encoded,
)
from orchestrator.errors import Compacted, RemoteProtocolError, StoreUnavailable
from orchestrator.security.peer import Peer
from orchestrator.store.base import Store

log = logging.getLogger(__name__)

# The first release whose agents stay when the leader changes.
STAYS_VERSION = 2
# An election takes between one and two seconds; an agent that waits for longer had better try another manager.
PATIENCE_S = 4.0
# A new leader's dispatcher begins with the write that made it one, or a moment later.
BEGINS_WITHIN_S = 1.0
REDIAL_S = 0.1
HELLO_TIMEOUT_S = 10.0
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# What a connection buffers before its writer waits.
WRITER_LIMIT_BYTES = 64 * 1024
CLOSE_TIMEOUT_S = 2.0


class Gateway:
    """`run()` until cancelled: agents are sent away then. connect: to another manager's `relay`."""

    def __init__(self, store: Store, dispatcher: Dispatcher, *, node_id: str, connect: Connect, patience_s: float = PATIENCE_S) -> None:
        self._store, self._dispatcher, self._node_id, self._connect = store, dispatcher, node_id, connect
        self._patience_s = patience_s
        self._agents: set[Connection] = set()
        self._relayed: set[asyncio.Task[None]] = set()
        self._trunk: Trunk | None = None
        self._moved = asyncio.Event()
        dispatcher.on_leading = self._moved.set

    async def run(self) -> None:
        """Keep a connection to whoever leads, if that is not this manager."""
        try:
            while True:
                watch = self._store.watch()
                leader = self._leader_elsewhere()
                dialling = asyncio.create_task(self._keep_trunk(leader), name=f"trunk to {leader}") if leader else None
                try:
                    async for _ in watch:
                        if self._leader_elsewhere() != leader:
                            break
                    else:
                        raise StoreUnavailable("the store was closed")
                except Compacted:
                    pass
                finally:
                    if dialling is not None:
                        dialling.cancel()
                        await asyncio.gather(dialling, return_exceptions=True)
        finally:
            await self._send_away()

    def _leader_elsewhere(self) -> str:
        """ "ip:port" """
        leader = self._store.snapshot().leader
        return leader.addr if leader is not None and leader.node_id != self._node_id else ""

    async def _keep_trunk(self, leader: str) -> None:
        told = ""
        while True:
            try:
                async with self._connect(leader) as wire:
                    self._trunk = Trunk(wire, on_ready=self._moved.set)
                    await self._trunk.run()
                    reason = f"closed with code {wire.close_code}"
            except (RemoteProtocolError, OSError) as error:
                reason = str(error) or type(error).__name__
            finally:
                self._trunk = None
            if reason != told:
                log.info("trunk ended leader=%s reason=%s", leader, reason)
                told = reason
            await asyncio.sleep(REDIAL_S)

    async def _send_away(self) -> None:
        for task in self._relayed:
            task.cancel()
        closing = [asyncio.create_task(wire.close(CLOSE_NOT_LEADING, "this manager ends")) for wire in self._agents]
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_TIMEOUT_S)
        for task in closing:
            task.cancel()

    # ---- agents --------------------------------------------------------------------------------------------------------------

    async def serve(self, request: web.Request, peer: Peer) -> web.WebSocketResponse:
        """The agent's WebSocket, from upgrade to end. The caller has checked certificate and membership."""
        return await _accepted(request, MAX_MESSAGE_BYTES, lambda wire: self.converse(wire, peer))

    async def converse(self, wire: Connection, peer: Peer) -> None:
        """An agent, from its first message to the end of its connection, whoever leads meanwhile."""
        self._agents.add(wire)
        try:
            await _closing_on_errors(wire, peer, self._attend(wire, peer))
        finally:
            self._agents.discard(wire)

    async def _attend(self, wire: Connection, peer: Peer) -> None:
        again = False
        while (hello := await _hello(wire, again=again)) is not None:
            if not await self._attend_once(wire, peer, *hello):
                return
            if hello[0].version < STAYS_VERSION:
                await wire.close(CLOSE_NOT_LEADING, "another manager leads now")
                return
            # Whoever leads now knows nothing of this agent.
            await wire.send(encoded(Restart()))
            again = True

    async def _attend_once(self, wire: Connection, peer: Peer, hello: Hello, frame: bytes) -> bool:
        """True: nobody leads any more who knows this agent, which is still connected."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                await self._until(lambda: self._dispatcher.leads or (self._trunk is not None and self._trunk.ready))
        if self._dispatcher.leads:
            return await self._dispatcher.attend(wire, peer, hello)
        if self._trunk is not None and self._trunk.ready:
            return await self._bring(self._trunk, wire, peer, frame)
        # Perhaps the agent finds the leader where this manager doesn't.
        with contextlib.suppress(ConnectionError):
            await wire.send(encoded(Redirect(addr=self._leader_elsewhere())))
        await wire.close(CLOSE_NOT_LEADING, "this manager finds no leader")
        return False

    async def _until(self, true: Callable[[], object]) -> None:
        while not true():
            self._moved.clear()
            await self._moved.wait()

    async def _bring(self, trunk: Trunk, wire: Connection, peer: Peer, hello: bytes) -> bool:
        """The agent's messages to the leader and back, as they are."""
        try:
            stream = await trunk.open(peer)
            await stream.send(hello)
        except ConnectionError:
            return True
        up = asyncio.create_task(_pass_on(wire, stream))
        down = asyncio.create_task(_pass_on(stream, wire))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if not stream.closed:
                # the agent is gone; or what it said was no message
                (up if up.done() else down).result()
                return False
            # What the leader said last is for the agent.
            await asyncio.wait({down}, timeout=CLOSE_TIMEOUT_S)
            return await self._after(trunk, stream, wire)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            await stream.close()

    async def _after(self, trunk: Trunk, stream: Stream, wire: Connection) -> bool:
        """The leader's side has ended the stream."""
        if stream.close_code == CLOSE_NOT_LEADING:
            # Nobody else's stream does better; and who leads is asked again after a moment.
            await trunk.close()
            return True
        if stream.close_code is None:
            return True
        await wire.close(stream.close_code, stream.close_reason)
        return False

    # ---- other managers ------------------------------------------------------------------------------------------------------

    async def serve_relay(self, request: web.Request, peer: Peer) -> web.WebSocketResponse:
        """The WebSocket of another manager. The caller has checked that it is one."""
        return await _accepted(request, 0, lambda wire: self.relay(wire, peer))

    async def relay(self, wire: Connection, manager: Peer) -> None:
        """Another manager's agents, as long as this manager leads."""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEGINS_WITHIN_S):
                    await self._until(lambda: self._dispatcher.leads)
            if not self._dispatcher.leads:
                await wire.close(CLOSE_NOT_LEADING, "this manager doesn't lead")
                return
            self._agents.add(wire)
            await _closing_on_errors(wire, manager, Trunk(wire, on_open=lambda stream: self._brought(stream, manager)).run())
        finally:
            self._agents.discard(wire)

    def _brought(self, stream: Stream, manager: Peer) -> None:
        task = asyncio.create_task(self._attend_brought(stream, manager), name=f"{manager.node_id} brings {stream.peer.node_id}")
        self._relayed.add(task)
        task.add_done_callback(self._relayed.discard)

    async def _attend_brought(self, stream: Stream, manager: Peer) -> None:
        node = self._store.snapshot().node(manager.node_id)
        if node is None or node.spec.role != "manager":
            log.warning("agent brought by a node that is no manager node=%s by=%s", stream.peer.node_id, manager.node_id)
            await stream.close(CLOSE_REMOVED, f"node {manager.node_id} is no manager")
            return

        async def attend() -> None:
            hello = await _hello(stream, again=False)
            if hello is not None and (not self._dispatcher.leads or await self._dispatcher.attend(stream, stream.peer, hello[0])):
                await stream.close(CLOSE_NOT_LEADING, "this manager doesn't lead any more")

        await _closing_on_errors(stream, stream.peer, attend())
        await stream.close()


async def _hello(wire: Connection, *, again: bool) -> tuple[Hello, bytes] | None:
    """The first message, also as it came; None: the agent is gone. again: what it says before it was meant for another leader."""
    async with asyncio.timeout(HELLO_TIMEOUT_S):
        while (frame := await wire.receive(None)) is not None:
            message = decoded(frame)
            if isinstance(message, Hello):
                return message, frame
            if not again:
                raise RemoteProtocolError("the first message was not a hello")
    return None


async def _pass_on(source: Connection, target: Connection) -> None:
    with contextlib.suppress(ConnectionError):
        while (message := await source.receive(None)) is not None:
            await target.send(message)


async def _closing_on_errors(wire: Connection, peer: Peer, work: Awaitable[None]) -> None:
    try:
        await work
    except RemoteProtocolError as error:
        log.warning("session refused node=%s address=%s reason=%s", peer.node_id, peer.address, error)
        await wire.close(CLOSE_PROTOCOL, str(error))
    except (TimeoutError, ConnectionError):
        await wire.close(CLOSE_LOST, "nothing was heard for too long")


async def _accepted(request: web.Request, max_message_bytes: int, work: Callable[[Connection], Awaitable[None]]) -> web.WebSocketResponse:
    ws = web.WebSocketResponse(compress=False, max_msg_size=max_message_bytes, writer_limit=WRITER_LIMIT_BYTES, timeout=2.0)
    await ws.prepare(request)
    await work(WebSocket(ws))
    return ws
