"""Services: create, list, inspect, update, rollback, remove.

Edge: routes over the store. Source: Docker Engine API 1.44 /services; swarmkit manager/controlapi/service.go. Names and published
ports are unique by claims written in the same transaction as the service, whichever managers are asked at the same moment.
"""

from __future__ import annotations

import secrets as randomness
from collections.abc import Iterable, Sequence
from datetime import datetime

from aiohttp import web
from msgspec.structs import replace

from orchestrator import registry_auth
from orchestrator.api import access, filters, references, validate, versions, views
from orchestrator.api.versions import before
from orchestrator.control import endpoints
from orchestrator.control.jobs import first_status
from orchestrator.control.update import rollback as rolled_back
from orchestrator.control.update import updated
from orchestrator.errors import ApiError, ConfigError
from orchestrator.ids import new_id
from orchestrator.model import Claim, Config, Network, NetworkAttachmentConfig, PortConfig, Secret, Service, ServiceSpec
from orchestrator.store.base import Change, Delete, Guard, Put
from orchestrator.store.snapshot import Snapshot

_FIRST = (
    "able",
    "brave",
    "bright",
    "calm",
    "clever",
    "eager",
    "gentle",
    "happy",
    "keen",
    "kind",
    "lively",
    "lucid",
    "neat",
    "proud",
    "quick",
    "swift",
)
_SECOND = (
    "babbage",
    "cerf",
    "clarke",
    "curie",
    "davies",
    "dijkstra",
    "hopper",
    "lamport",
    "lovelace",
    "metcalfe",
    "perlman",
    "shannon",
    "turing",
)


async def list_services(request: web.Request) -> web.Response:
    snapshot = access.store_of(request).snapshot()
    wanted = access.filters_of(request, filters.SERVICE_KEYS)
    # `status` came with API 1.41; before that it is ignored
    with_status = access.boolean(request, "status") and not before(access.api_version(request), "1.41")
    found = sorted((obj for obj in snapshot.all(Service) if _matches(obj, wanted)), key=lambda obj: obj.spec.name)
    return access.answer([views.service(obj, status=views.service_status(snapshot, obj) if with_status else None) for obj in found])


async def inspect_service(request: web.Request) -> web.Response:
    snapshot = access.store_of(request).snapshot()
    obj = references.find(snapshot, Service, request.match_info["id"])
    return access.answer(views.service(obj, insert_defaults=access.boolean(request, "insertDefaults")))


async def create_service(request: web.Request) -> web.Response:
    store = access.store_of(request)
    spec = versions.service_spec(await access.body_as(request, ServiceSpec), access.api_version(request))
    if not spec.name and spec.task_template.container_spec is not None:
        spec = replace(spec, name=f"{randomness.choice(_FIRST)}_{randomness.choice(_SECOND)}")
    spec = validate.service_spec(spec)
    id = new_id()
    credentials = registry_credentials(request)

    await access.commit(store, lambda snapshot: creation(snapshot, spec, id, access.now(), credentials))
    return access.answer({"ID": id, "Warnings": None}, status=201)


async def update_service(request: web.Request) -> web.Response:
    store = access.store_of(request)
    seen = access.version_of(request, "service")
    sent = versions.service_spec(await access.body_as(request, ServiceSpec), access.api_version(request))
    rollback = request.query.get("rollback", "")
    if rollback not in ("", "previous"):
        raise ApiError(400, f"unrecognized rollback option {rollback}")
    # both mean here: those that are stored
    if request.query.get("registryAuthFrom", "") not in ("", "spec", "previous-spec"):
        raise ApiError(400, "unsupported registryAuthFrom value")
    reference = request.match_info["id"]
    credentials = registry_credentials(request)

    def plan(snapshot: Snapshot) -> Sequence[Change]:
        service = references.find(snapshot, Service, reference)
        access.in_sequence(service, seen)
        if rollback:
            try:
                changed = rolled_back(service, access.now())
            except ConfigError as error:
                raise validate.precondition(str(error).replace(service.id, reference)) from None
        else:
            changed = respecified(snapshot, service, validate.service_spec(sent), access.now())
        return replacement(snapshot, service, changed, credentials)

    await access.commit(store, plan)
    return access.answer({"Warnings": None})


async def remove_service(request: web.Request) -> web.Response:
    """The service and every claim of its; the control loops then take its tasks away."""
    store = access.store_of(request)
    reference = request.match_info["id"]

    await access.commit(store, lambda snapshot: removal(snapshot, references.find(snapshot, Service, reference)))
    return web.Response(status=200)


ROUTES = [
    web.get("/services", list_services),
    web.post("/services/create", create_service),
    web.get("/services/{id}", inspect_service),
    web.post("/services/{id}/update", update_service),
    web.delete("/services/{id}", remove_service),
]


def creation(snapshot: Snapshot, spec: ServiceSpec, id: str, moment: datetime, credentials: bytes) -> list[Change]:
    """A new service of a checked spec; ApiError: its name or ports are taken, or what it refers to isn't there."""
    if snapshot.claim(f"service/{spec.name}") is not None:
        raise validate.already_exists(f"name conflicts with an existing object: service {spec.name} already exists")
    resolved, guards = _resolved(snapshot, spec)
    _refuse_taken_ports(snapshot, resolved, id)
    service = Service(
        id=id,
        created_at=moment,
        updated_at=moment,
        spec=resolved,
        endpoint=endpoints.of_new_service(resolved),
        job_status=first_status(resolved, moment),
        mesh_registry_auth=credentials,
        # it will be stored at a later revision than this picture's
        mesh_spec_since=snapshot.revision,
    )
    return [Put(service), Put(Claim(id=f"service/{spec.name}", owner=id)), *_port_claims(snapshot, id, None, resolved), *guards]


def respecified(snapshot: Snapshot, service: Service, spec: ServiceSpec, moment: datetime) -> Service:
    """The service with another checked spec; ApiError: a service can't become that."""
    if validate.mode_name(service.spec.mode) != validate.mode_name(spec.mode):
        raise validate.unsupported("service mode change is not allowed")
    if service.spec.name != spec.name:
        raise validate.unsupported("renaming services is not supported")
    spec, _ = _resolved(snapshot, spec)
    try:
        return updated(service, spec, moment)
    except ConfigError as error:
        raise validate.precondition(str(error)) from None


def replacement(snapshot: Snapshot, service: Service, changed: Service, credentials: bytes) -> list[Change]:
    """Without new credentials (`registryAuthFrom`) it keeps those it has, also when it returns to its previous spec."""
    changed = replace(changed, mesh_registry_auth=credentials or changed.mesh_registry_auth)
    if changed.spec != service.spec:
        changed = replace(changed, mesh_spec_since=service.version.index)
    _, guards = _resolved(snapshot, changed.spec)
    _refuse_taken_ports(snapshot, changed.spec, service.id)
    return [Put(changed), *_port_claims(snapshot, service.id, service.spec, changed.spec), *guards]


def removal(snapshot: Snapshot, service: Service) -> list[Change]:
    # The service's own ModRevision guards the list of claims: whoever adds one writes the service too.
    claims = [claim for claim in snapshot.all(Claim) if claim.owner == service.id]
    return [
        Delete("service", service.id, service.version.index),
        *(Delete("claim", claim.id, claim.version.index) for claim in sorted(claims, key=lambda claim: claim.id)),
    ]


def _matches(obj: Service, wanted: filters.Filters) -> bool:
    return (
        wanted.prefix("id", obj.id)
        and wanted.prefix("name", obj.spec.name)
        and wanted.labels(obj.spec.labels)
        and wanted.exact("mode", validate.mode_name(obj.spec.mode))
        and wanted.exact("runtime", obj.spec.task_template.runtime or "container")
    )


def registry_credentials(request: web.Request) -> bytes:
    """The credentials sent along (`--with-registry-auth`), encrypted; b"" = none."""
    header = request.headers.get(registry_auth.HEADER, "")
    return access.backend_of(request).encrypt_secret(header.encode()) if registry_auth.given(header) else b""


def _resolved(snapshot: Snapshot, spec: ServiceSpec) -> tuple[ServiceSpec, list[Guard]]:
    """Network names -> ids; guards: what the service refers to still exists when it is written."""
    guards: dict[tuple[str, str], Guard] = {}
    attachments: list[NetworkAttachmentConfig] = []
    for attachment in spec.task_template.networks or ():
        if attachment.target == "host":
            validate.host_network(spec)
            attachments.append(attachment)
            continue
        network = _swarm_network(snapshot, attachment.target)
        if ("network", network) in guards:
            raise validate.invalid(f"network {attachment.target} is attached more than once")
        guards["network", network] = Guard("network", network)
        attachments.append(replace(attachment, target=network))
    container = spec.task_template.container_spec
    assert container is not None, "validate.service_spec refuses this"
    missing = [reference.secret_name for reference in container.secrets or () if snapshot.get(Secret, reference.secret_id) is None]
    if missing:
        raise validate.invalid(f"secret{'s' if len(missing) > 1 else ''} not found: {', '.join(missing)}")
    missing = [reference.config_name for reference in container.configs or () if snapshot.get(Config, reference.config_id) is None]
    if missing:
        raise validate.invalid(f"config{'s' if len(missing) > 1 else ''} not found: {', '.join(missing)}")
    for secret in container.secrets or ():
        guards["secret", secret.secret_id] = Guard("secret", secret.secret_id)
    for config in container.configs or ():
        guards["config", config.config_id] = Guard("config", config.config_id)
    template = replace(spec.task_template, networks=attachments or None)
    return replace(spec, task_template=template), list(guards.values())


def _swarm_network(snapshot: Snapshot, target: str) -> str:
    try:
        network = references.find(snapshot, Network, target)
    except ApiError as error:
        if error.status == 404 and target in validate.PREDEFINED_NETWORKS:
            raise ApiError(
                400,
                f"network {target} cannot be used with services. Only networks scoped to the swarm can be used, "
                "such as those created with the overlay driver.",
            ) from None
        raise
    if network.ingress:
        raise validate.invalid(f'Service cannot be explicitly attached to the ingress network "{network.name}"')
    return network.id


def _refuse_taken_ports(snapshot: Snapshot, spec: ServiceSpec, service_id: str) -> None:
    """Docker's text when an ingress port is taken, or a host port clashes with an ingress one. Two host ports may be equal: the
    scheduler keeps them apart."""
    wanted = {(port.protocol, port.published_port): port for port in _published(spec)}
    if not wanted:
        return
    for other in sorted(snapshot.all(Service), key=lambda obj: obj.id):
        if other.id == service_id:
            continue
        for taken in [*_published(other.spec), *(port for port in other.endpoint.ports or () if port.published_port)]:
            port = wanted.get((taken.protocol, taken.published_port))
            if port is None or (port.publish_mode == "host" and taken.publish_mode == "host"):
                continue
            how = "an ingress port" if taken.publish_mode == "ingress" else "a host-published port"
            raise validate.invalid(f"port '{port.published_port}' is already in use by service '{other.spec.name}' ({other.id}) as {how}")


def _published(spec: ServiceSpec) -> Iterable[PortConfig]:
    ports = spec.endpoint_spec.ports if spec.endpoint_spec is not None else None
    return [port for port in ports or () if port.published_port]


def _port_claims(snapshot: Snapshot, service_id: str, old: ServiceSpec | None, new: ServiceSpec) -> list[Change]:
    """Claims of the ingress ports the user chose. Ports chosen by the leader's allocator are its own to claim and to free."""

    def chosen(spec: ServiceSpec | None) -> set[str]:
        ports = _published(spec) if spec is not None else ()
        return {f"port/{port.protocol}/{port.published_port}" for port in ports if port.publish_mode == "ingress"}

    changes: list[Change] = []
    for id in sorted(chosen(new)):
        claim = snapshot.claim(id)
        if claim is None:
            changes.append(Put(Claim(id=id, owner=service_id)))
        elif claim.owner != service_id:
            owner = snapshot.service(claim.owner)
            name = owner.spec.name if owner is not None else claim.owner
            raise validate.invalid(
                f"port '{id.rpartition('/')[2]}' is already in use by service '{name}' ({claim.owner}) as an ingress port"
            )
    for id in sorted(chosen(old) - chosen(new)):
        claim = snapshot.claim(id)
        if claim is not None and claim.owner == service_id:
            changes.append(Delete("claim", id, claim.version.index))
    return changes
