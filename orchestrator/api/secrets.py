"""Secrets and configs: create, list, inspect, relabel, remove.

Edge: routes over the store. Source: Docker Engine API 1.44 /secrets, /configs; swarmkit manager/controlapi/{secret,config}.go. The two
differ in that a secret's payload is stored encrypted and never shown again.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence

from aiohttp import web
from msgspec.structs import replace

from orchestrator.api import access, filters, references, validate, views
from orchestrator.api.backend import Backend
from orchestrator.ids import new_id
from orchestrator.model import KIND_OF, Claim, Config, Secret, SecretSpec, Service
from orchestrator.store.base import Change, Delete, Put
from orchestrator.store.snapshot import Snapshot


async def list_secrets(request: web.Request) -> web.Response:
    snapshot = access.store_of(request).snapshot()
    wanted = access.filters_of(request, filters.SECRET_KEYS)
    return access.answer([views.secret(obj) for obj in _sorted(snapshot.all(Secret)) if isinstance(obj, Secret) and _matches(obj, wanted)])


async def list_configs(request: web.Request) -> web.Response:
    snapshot = access.store_of(request).snapshot()
    wanted = access.filters_of(request, filters.SECRET_KEYS)
    return access.answer([views.config(obj) for obj in _sorted(snapshot.all(Config)) if isinstance(obj, Config) and _matches(obj, wanted)])


async def inspect_secret(request: web.Request) -> web.Response:
    return access.answer(views.secret(references.find(access.store_of(request).snapshot(), Secret, request.match_info["id"])))


async def inspect_config(request: web.Request) -> web.Response:
    return access.answer(views.config(references.find(access.store_of(request).snapshot(), Config, request.match_info["id"])))


async def create_secret(request: web.Request) -> web.Response:
    access.store_of(request)
    spec = await access.body_as(request, SecretSpec)
    content = validate.payload(spec, "secret", access.api_version(request))
    moment = access.now()
    ciphertext = access.backend_of(request).encrypt_secret(content)
    secret = Secret(id=new_id(), created_at=moment, updated_at=moment, spec=replace(spec, data=""), mesh_ciphertext=ciphertext)
    return await _create(request, secret)


async def create_config(request: web.Request) -> web.Response:
    access.store_of(request)
    spec = await access.body_as(request, SecretSpec)
    validate.payload(spec, "config", access.api_version(request))
    moment = access.now()
    return await _create(request, Config(id=new_id(), created_at=moment, updated_at=moment, spec=spec))


async def update_secret(request: web.Request) -> web.Response:
    """Only labels change; the same payload again is no change (`docker stack deploy` sends it every time)."""
    store = access.store_of(request)
    seen = access.version_of(request, "secret")
    sent = await access.body_as(request, SecretSpec)
    backend = access.backend_of(request)

    def plan(snapshot: Snapshot) -> Sequence[Change]:
        secret = references.find(snapshot, Secret, request.match_info["id"])
        access.in_sequence(secret, seen)
        if sent.name != secret.spec.name or (sent.data and not _same_payload(backend, secret, sent)):
            raise validate.invalid("only updates to Labels are allowed")
        return [Put(replace(secret, spec=replace(secret.spec, labels=sent.labels), updated_at=access.now()))]

    await access.commit(store, plan)
    return web.Response(status=200)


async def update_config(request: web.Request) -> web.Response:
    store = access.store_of(request)
    seen = access.version_of(request, "config")
    sent = await access.body_as(request, SecretSpec)

    def plan(snapshot: Snapshot) -> Sequence[Change]:
        config = references.find(snapshot, Config, request.match_info["id"])
        access.in_sequence(config, seen)
        if sent.name != config.spec.name or (sent.data and validate.decoded(sent) != validate.decoded(config.spec)):
            raise validate.invalid("only updates to Labels are allowed")
        return [Put(replace(config, spec=replace(config.spec, labels=sent.labels), updated_at=access.now()))]

    await access.commit(store, plan)
    return web.Response(status=200)


async def remove_secret(request: web.Request) -> web.Response:
    return await _remove(request, Secret)


async def remove_config(request: web.Request) -> web.Response:
    return await _remove(request, Config)


ROUTES = [
    web.get("/secrets", list_secrets),
    web.post("/secrets/create", create_secret),
    web.get("/secrets/{id}", inspect_secret),
    web.post("/secrets/{id}/update", update_secret),
    web.delete("/secrets/{id}", remove_secret),
    web.get("/configs", list_configs),
    web.post("/configs/create", create_config),
    web.get("/configs/{id}", inspect_config),
    web.post("/configs/{id}/update", update_config),
    web.delete("/configs/{id}", remove_config),
]


def _sorted(objects: Iterable[Secret | Config]) -> list[Secret | Config]:
    return sorted(objects, key=lambda obj: obj.spec.name)


def _matches(obj: Secret | Config, wanted: filters.Filters) -> bool:
    return (
        wanted.prefix("id", obj.id)
        and wanted.prefix("name", obj.spec.name)
        and wanted.exact("names", obj.spec.name)
        and wanted.labels(obj.spec.labels)
    )


def _same_payload(backend: Backend, secret: Secret, sent: SecretSpec) -> bool:
    return hmac.compare_digest(validate.decoded(sent), backend.decrypt_secret(secret.mesh_ciphertext))


def creation(snapshot: Snapshot, obj: Secret | Config) -> list[Change]:
    """ApiError: the name is taken."""
    kind = KIND_OF[type(obj)]
    claim = f"{kind}/{obj.spec.name}"
    if snapshot.claim(claim) is not None:
        raise validate.already_exists(f"{kind} {obj.spec.name} already exists")
    return [Put(obj), Put(Claim(id=claim, owner=obj.id))]


def removal(snapshot: Snapshot, obj: Secret | Config) -> list[Change]:
    """ApiError: a service names it."""
    kind = KIND_OF[type(obj)]
    users = sorted(service.spec.name for service in snapshot.all(Service) if obj.id in _named_by(service))
    if users:
        plural = "services" if len(users) > 1 else "service"
        raise validate.invalid(f"{kind} '{obj.spec.name}' is in use by the following {plural}: {', '.join(users)}")
    changes: list[Change] = [Delete(kind, obj.id, obj.version.index)]
    claim = snapshot.claim(f"{kind}/{obj.spec.name}")
    if claim is not None and claim.owner == obj.id:
        changes.append(Delete("claim", claim.id, claim.version.index))
    return changes


async def _create(request: web.Request, obj: Secret | Config) -> web.Response:
    await access.commit(access.store_of(request), lambda snapshot: creation(snapshot, obj))
    return access.answer({"ID": obj.id}, status=201)


async def _remove(request: web.Request, cls: type[Secret] | type[Config]) -> web.Response:
    """Refused while a service names it. A service written by another manager within the same milliseconds may slip through; its
    tasks are then rejected with the name of what they miss."""

    def plan(snapshot: Snapshot) -> Sequence[Change]:
        obj: Secret | Config = (
            references.find(snapshot, Secret, request.match_info["id"])
            if cls is Secret
            else references.find(snapshot, Config, request.match_info["id"])
        )
        return removal(snapshot, obj)

    await access.commit(access.store_of(request), plan)
    return web.Response(status=204)


def _named_by(service: Service) -> set[str]:
    container = service.spec.task_template.container_spec
    if container is None:
        return set()
    return {reference.secret_id for reference in container.secrets or ()} | {reference.config_id for reference in container.configs or ()}
