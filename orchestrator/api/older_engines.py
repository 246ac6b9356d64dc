"""Containers that clients of a newer API version ask for, made on Engines that are older than the version we announce.

Edge: `create` asks an Engine; the rest is pure. An Engine ignores what its version doesn't know, and a client takes the announced version
for granted: what would be lost so is done by other requests, or refused in words. Source: Docker Engine API version history: 1.44 (several
networks at creation, a MAC address for each), 1.45 (Subpath of volumes); moby daemon/create.go of 20.10.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import msgspec

from orchestrator.api import codec
from orchestrator.api.versions import API_VERSION, before
from orchestrator.engine_http import Answer, Engine, version_of
from orchestrator.errors import ApiError

log = logging.getLogger(__name__)

Json = dict[str, Any]
_SEVERAL_NETWORKS = "1.44"
_SUBPATH = "1.45"
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Steps:
    """The body that the Engine understands, and what has to follow: endpoint settings by network."""

    body: Json
    connections: Mapping[str, Json] = field(default_factory=dict)


async def create(engine: Engine, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
    """POST `path`, a /containers/create with version and query. Postcondition: the container is on all of its networks, or there is none.
    ApiError(400): this Engine can't make it so; EngineAway."""
    spoken = version_of(await engine.path(path))
    steps = steps_for(body, version_of(path) or API_VERSION, spoken, engine.name)
    if steps is None:
        return await engine.ask("POST", path, headers=headers, body=body, timeout_s=_TIMEOUT_S)
    # a client that goes away must not leave a container behind that has some of its networks
    return await asyncio.shield(asyncio.ensure_future(_in_steps(engine, path, steps, headers)))


async def _in_steps(engine: Engine, path: str, steps: Steps, headers: Mapping[str, str] | None) -> Answer:
    answer = await engine.ask("POST", path, headers=headers, body=codec.encode(steps.body), timeout_s=_TIMEOUT_S)
    made = answer.json()
    if not answer.ok or not isinstance(made, dict):
        return answer
    for network, endpoint in steps.connections.items():
        sent = codec.encode({"Container": made["Id"], "EndpointConfig": endpoint})
        try:
            connected = await engine.ask("POST", f"/networks/{quote(network, safe='')}/connect", body=sent, timeout_s=_TIMEOUT_S)
        except ApiError:
            await _remove(engine, made["Id"])
            raise
        if not connected.ok:
            await _remove(engine, made["Id"])
            return connected
    return answer


async def _remove(engine: Engine, id: str) -> None:
    try:
        answer = await engine.ask("DELETE", f"/containers/{id}?force=1&v=1", timeout_s=_TIMEOUT_S)
        said = "" if answer.ok or answer.status == HTTPStatus.NOT_FOUND else answer.message()
    except ApiError as error:
        said = error.message
    if said:
        log.warning("container left behind id=%s error=%r", id, said)


def steps_for(body: bytes, asked: str, spoken: str, engine: str) -> Steps | None:
    """asked, spoken: API versions of client and Engine; engine: what it is called. None: it is to judge the body as it is.
    ApiError(400): it would make something else."""
    if not before(spoken, asked):
        return None
    try:
        # nulls kept: a network without settings is one of the networks
        sent = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(sent, dict):
        return None
    if before(spoken, _SUBPATH) and not before(asked, _SUBPATH):
        _refuse_subpaths(sent, f"{engine} speaks API {spoken}")
    return (
        _networks_in_steps(sent, f"{engine} speaks API {spoken}")
        if before(spoken, _SEVERAL_NETWORKS) and not before(asked, _SEVERAL_NETWORKS)
        else None
    )


def _networks_in_steps(sent: Json, why: str) -> Steps | None:
    networking = _member(sent, "NetworkingConfig")
    endpoints = _member(networking, "EndpointsConfig")
    if not endpoints:
        return None
    mode = _value(_member(sent, "HostConfig"), "NetworkMode") or ""
    first = mode if mode in endpoints else min(endpoints)
    macs = {network: _value(endpoint or {}, "MacAddress") for network, endpoint in endpoints.items() if isinstance(endpoint, dict | None)}
    if unable := sorted(network for network, mac in macs.items() if mac and network != first):
        raise ApiError(
            400, f"{why} and can choose a MAC address on a container's first network only: leave the one on network {unable[0]} out"
        )
    if len(endpoints) == 1 and not macs.get(first):
        return None
    body = {**_without(sent, "NetworkingConfig"), "NetworkingConfig": {"EndpointsConfig": {first: endpoints[first]}}}
    if macs.get(first):
        # until then it was the container's
        body = {**_without(body, "MacAddress"), "MacAddress": macs[first]}
    return Steps(body, {network: endpoints[network] or {} for network in sorted(endpoints) if network != first})


def _refuse_subpaths(sent: Json, why: str) -> None:
    mounts = _value(_member(sent, "HostConfig"), "Mounts")
    for mount in mounts if isinstance(mounts, list) else ():
        if isinstance(mount, dict) and _value(_member(mount, "VolumeOptions"), "Subpath"):
            raise ApiError(
                400,
                f"{why} and mounts whole volumes only: leave the subpath of volume {_value(mount, 'Source') or ''} out",
            )


def _value(sent: Json, name: str) -> Any:
    """Go's decoder takes names in any case."""
    return next((value for key, value in sent.items() if key.lower() == name.lower()), None)


def _member(sent: Json, name: str) -> Json:
    value = _value(sent, name)
    return value if isinstance(value, dict) else {}


def _without(sent: Json, name: str) -> Json:
    return {key: value for key, value in sent.items() if key.lower() != name.lower()}
