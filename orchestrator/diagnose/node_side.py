"""A node's part in a trace, for managers: capture in its namespaces, send from one of them.

Edge: WebSocket and HTTP in, child processes `python -m mesh.trace` out. The child ends with the connection, whoever breaks it.

    manager                                     node
    Watching(network, tasks, mark)   ------->   captures in: its host namespace, that of the network, those of the tasks
                                     <-------   {"state": what its data plane was told of the network, ...}, {"ready": true}
                                     <-------   a sighting a message
    "end"                            ------->   what is still in the sockets, then {"end": true}
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import WSMsgType, web

from mesh.model import NodeState
from mesh.trace.model import HOST, NETWORK, task_place

log = logging.getLogger(__name__)

_ORDERS_TIMEOUT_S = 10.0
_SEND_TIMEOUT_S = 60.0
_OWN_NAMESPACE = "/proc/self/ns/net"


class Watching(msgspec.Struct, frozen=True, kw_only=True):
    network: str
    tasks: tuple[str, ...]
    mark: int


class Sending(msgspec.Struct, frozen=True, kw_only=True):
    """place: "host" or "task:<id>"."""

    place: str
    protocol: str
    destination: str
    port: int
    mark: int
    count: int


class NodeTracing:
    """state: what the data plane was last told, None before. pid_of: of a task's container here, 0 if it has none. differences: between
    the kernel and what it was told, as sentences."""

    def __init__(
        self,
        *,
        netns_prefix: str,
        state: Callable[[], NodeState | None],
        pid_of: Callable[[str], int],
        differences: Callable[[], Awaitable[list[str]]],
    ) -> None:
        self._prefix = netns_prefix
        self._state = state
        self._pid_of = pid_of
        self._differences = differences

    async def watch(self, request: web.Request) -> web.WebSocketResponse:
        answer = web.WebSocketResponse(heartbeat=10.0)
        await answer.prepare(request)
        try:
            orders = msgspec.json.decode(await answer.receive_str(timeout=_ORDERS_TIMEOUT_S), type=Watching)
        except (msgspec.DecodeError, TypeError, TimeoutError) as error:
            await answer.close(message=str(error).encode()[:100])
            return answer
        state = self._state()
        wanted = {HOST: _OWN_NAMESPACE, NETWORK: f"/run/netns/{self._prefix}-{orders.network}"}
        wanted |= {task_place(id): self._namespace_of(id) for id in orders.tasks}
        places = {place: path for place, path in wanted.items() if path and Path(path).exists()}
        told = msgspec.to_builtins(_about(state, orders.network)) if state else None
        concerned = (f"{self._prefix}-{orders.network}:", "host:")
        differences = [text for text in await self._differences() if text.startswith(concerned)]
        await answer.send_json({"state": told, "missing": sorted(wanted.keys() - places.keys()), "differences": differences})
        port = state.vxlan_port if state else 4789
        async with _child("watch", {"places": places, "mark": orders.mark, "vxlan_port": port}) as child:
            forward = asyncio.create_task(_forward(child, answer))
            try:
                async for message in answer:
                    if message.type is WSMsgType.TEXT and message.data == "end":
                        break
                if not answer.closed:
                    _end_of_orders(child)
                    await forward
            finally:
                forward.cancel()
                await asyncio.gather(forward, return_exceptions=True)
        await answer.close()
        return answer

    async def send(self, request: web.Request) -> web.Response:
        """{"source": address} or {"error": sentence}."""
        try:
            orders = msgspec.json.decode(await request.read(), type=Sending)
        except msgspec.DecodeError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        namespace = _OWN_NAMESPACE if orders.place == HOST else self._namespace_of(orders.place.removeprefix("task:"))
        if not namespace:
            return web.json_response({"error": "the container that should send the probes is not on this node (any more)"})
        told = msgspec.to_builtins(orders) | {"namespace": namespace}
        return web.json_response(await ask_child("send", told, _SEND_TIMEOUT_S))

    def _namespace_of(self, task_id: str) -> str:
        pid = self._pid_of(task_id)
        return f"/proc/{pid}/ns/net" if pid else ""


def _about(state: NodeState, network_id: str) -> NodeState:
    """The part of the state that concerns the network: the rest may be a thousand times as much."""
    networks = tuple(network for network in state.networks if network.id == network_id)
    ingress = any(network.ingress for network in networks)
    return replace(state, networks=networks, sandboxes=(), published=state.published if ingress else ())


async def ask_child(command: str, orders: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """The first line of its answer; {"error": sentence} whatever goes wrong."""
    try:
        async with asyncio.timeout(timeout_s), _child(command, orders) as child:
            assert child.stdout is not None
            answer: dict[str, Any] = json.loads(await child.stdout.readline() or b"{}")
            return answer or {"error": f"the process that should {command} ended at once: see the log of meshd"}
    except (TimeoutError, ValueError) as error:
        return {"error": f"no answer from the process that should {command}: {str(error) or 'timeout'}"}


@contextlib.asynccontextmanager
async def _child(command: str, orders: dict[str, Any]) -> AsyncIterator[asyncio.subprocess.Process]:
    """Afterwards it is gone."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", "mesh.trace", command, stdin=pipe, stdout=pipe)
    try:
        assert child.stdin is not None
        # one that has ended already says nothing, and that is told; RuntimeError is uvloop's word for its closed pipe
        with contextlib.suppress(OSError, RuntimeError):
            child.stdin.write(json.dumps(orders).encode() + b"\n")
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def _end_of_orders(child: asyncio.subprocess.Process) -> None:
    assert child.stdin is not None
    with contextlib.suppress(OSError):
        child.stdin.close()


async def _forward(child: asyncio.subprocess.Process, answer: web.WebSocketResponse) -> None:
    assert child.stdout is not None
    async for line in child.stdout:
        await answer.send_str(line.decode())
