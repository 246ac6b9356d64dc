"""What has to change for a stack to become what its compose file says, and back: all of it or nothing.

Pure: snapshot in, changes and their description out; ApiError refuses. What belongs to a stack is known by Docker's label, so services
deployed by `docker stack` are taken over, and what somebody changed by hand shows as a difference.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from orchestrator.api import networks, secrets, services, validate
from orchestrator.errors import ApiError
from orchestrator.ids import new_id
from orchestrator.model import (
    IPAM,
    Config,
    ConfigReference,
    Driver,
    IPAMConfig,
    Network,
    NetworkAttachmentConfig,
    Secret,
    SecretReference,
    SecretSpec,
    Service,
    ServiceSpec,
    Stack,
    StackFile,
    StackNetwork,
    StackParts,
    StackRevision,
)
from orchestrator.stacks.difference import differences
from orchestrator.stacks.messages import ObjectChange
from orchestrator.stacks.render import NAMESPACE
from orchestrator.store.base import Change, Delete, Put
from orchestrator.store.draft import Draft
from orchestrator.store.snapshot import Snapshot

_File = TypeVar("_File", Secret, Config)


class StackPlan(msgspec.Struct, frozen=True):
    """store_changes: to be committed as one; described: without what stays as it is."""

    store_changes: Sequence[Change]
    described: list[ObjectChange]
    warnings: list[str]
    revision: int


class Deployment(msgspec.Struct, frozen=True):
    """contents: of secrets and configs, by their names; what is in the store already need not be given. encrypt: for secrets at rest.
    credentials: the registry's, encrypted, b"" = those each service has."""

    name: str
    compose: str
    parts: StackParts
    contents: Mapping[str, bytes]
    encrypt: Callable[[bytes], bytes]
    credentials: bytes = b""


def members(snapshot: Snapshot, stack: str) -> tuple[list[Service], list[Network], list[Secret], list[Config]]:
    """What carries the stack's label, each sorted by name."""
    return (
        sorted((obj for obj in snapshot.all(Service) if _of(obj.spec.labels, stack)), key=lambda obj: obj.spec.name),
        sorted((obj for obj in snapshot.all(Network) if _of(obj.labels, stack)), key=lambda obj: obj.name),
        sorted((obj for obj in snapshot.all(Secret) if _of(obj.spec.labels, stack)), key=lambda obj: obj.spec.name),
        sorted((obj for obj in snapshot.all(Config) if _of(obj.spec.labels, stack)), key=lambda obj: obj.spec.name),
    )


def services_by_stack(snapshot: Snapshot) -> dict[str, list[Service]]:
    """Of all stacks, also of those that only `docker stack` knows; both sorted by name."""
    found: dict[str, list[Service]] = {stack.id: [] for stack in snapshot.all(Stack)}
    for service in sorted(snapshot.all(Service), key=lambda service: service.spec.name):
        if name := (service.spec.labels or {}).get(NAMESPACE):
            found.setdefault(name, []).append(service)
    return dict(sorted(found.items()))


def deployed(snapshot: Snapshot, wanted: Deployment, moment: datetime) -> StackPlan:
    """The stack with these parts; what it had is its previous revision. Nothing that differs: no changes at all."""
    stack = snapshot.get(Stack, wanted.name)
    described, warnings, draft = _parts(snapshot, wanted, stack, moment)
    unchanged = stack is not None and stack.current.parts == wanted.parts
    if stack is not None and unchanged and not described:
        return StackPlan([], [], warnings, stack.current.number)
    number = stack.current.number + 1 if stack is not None else 1
    current = StackRevision(number=number, created_at=moment, compose=wanted.compose, parts=wanted.parts)
    if stack is None:
        written = Stack(id=wanted.name, created_at=moment, updated_at=moment, current=current)
    else:
        # deployed again as it was (somebody had changed a service by hand): the way back stays what it was
        previous = stack.previous if unchanged else stack.current
        written = replace(stack, updated_at=moment, current=current, previous=previous)
    draft.add([Put(written)])
    described = described + _unused_files(draft, wanted.name, written)
    return StackPlan(draft.changes(), described, warnings, number)


def rolled_back(snapshot: Snapshot, stack: Stack, credentials: bytes, moment: datetime) -> StackPlan:
    """The previous revision again, as a new one."""
    if stack.previous is None:
        raise validate.precondition(f"stack {stack.id} has no previous revision")
    old = stack.previous
    wanted = Deployment(stack.id, old.compose, old.parts, {}, lambda plain: plain, credentials)
    return deployed(snapshot, wanted, moment)


def removed(snapshot: Snapshot, name: str) -> StackPlan:
    """The stack and all that carries its label."""
    draft = Draft(snapshot)
    described: list[ObjectChange] = []
    theirs = members(snapshot, name)
    stack = snapshot.get(Stack, name)
    if stack is None and not any(theirs):
        raise ApiError(404, f"stack {name} not found")
    for service in theirs[0]:
        draft.add(services.removal(draft.snapshot, service))
        described.append(ObjectChange("service", service.spec.name, "remove"))
    for network in theirs[1]:
        draft.add(networks.removal(draft.snapshot, network))
        described.append(ObjectChange("network", network.name, "remove"))
    for kind, files in (("secret", theirs[2]), ("config", theirs[3])):
        for file in files:
            draft.add(secrets.removal(draft.snapshot, file))
            described.append(ObjectChange(kind, file.spec.name, "remove"))
    if stack is not None:
        draft.add([Delete("stack", stack.id, stack.version.index)])
    return StackPlan(draft.changes(), described, [], 0)


# ---- the parts --------------------------------------------------------------------------------------------------------------------


def _parts(snapshot: Snapshot, wanted: Deployment, stack: Stack | None, moment: datetime) -> tuple[list[ObjectChange], list[str], Draft]:
    draft = Draft(snapshot)
    described: list[ObjectChange] = []
    warnings: list[str] = []
    present_services, present_networks, *_ = members(snapshot, wanted.name)
    for network in wanted.parts.networks:
        described += _network(draft, network, wanted.name, warnings)
    for secret in wanted.parts.secrets:
        described += _file(draft, secret, Secret, wanted, moment)
    for config in wanted.parts.configs:
        described += _file(draft, config, Config, wanted, moment)
    # first of all what goes: it may hold a port that a service wants
    names = {spec.name for spec in wanted.parts.services}
    for service in present_services:
        if service.spec.name not in names:
            draft.add(services.removal(draft.snapshot, service))
            described.append(ObjectChange("service", service.spec.name, "remove"))
    for spec in wanted.parts.services:
        described += _service(draft, spec, wanted, moment)
    kept = {network.name for network in wanted.parts.networks}
    for present in present_networks:
        if present.name not in kept:
            draft.add(networks.removal(draft.snapshot, present))
            described.append(ObjectChange("network", present.name, "remove"))
    return described, warnings, draft


def _network(draft: Draft, wanted: StackNetwork, stack: str, warnings: list[str]) -> list[ObjectChange]:
    found = next((network for network in draft.snapshot.all(Network) if network.name == wanted.name), None)
    if wanted.external:
        if found is None and wanted.name != "host":
            raise validate.invalid(
                f'network "{wanted.name}" is declared as external, but could not be found. '
                f"You need to create a swarm-scoped network before the stack is deployed"
            )
        return []
    assert wanted.sent is not None
    made = networks.checked(wanted.sent)
    if found is None:
        draft.add(networks.creation(draft.snapshot, made))
        return [ObjectChange("network", made.name, "create")]
    if not _of(found.labels, stack):
        raise validate.already_exists(f"network {wanted.name} exists and is not of this stack: name another one, or say external: true")
    with_subnets = bool(made.ipam.config)
    if changed := differences(_comparable(found, with_subnets=with_subnets), _comparable(made, with_subnets=with_subnets)):
        fields = ", ".join(change.field for change in changed)
        warnings.append(
            f"network {wanted.name} stays as it is: a network can't be changed ({fields}); give it another name to get a new one"
        )
    return []


def _comparable(network: Network, *, with_subnets: bool) -> Network:
    """Only what the user asked for: addresses that he left to the cluster are no difference."""
    subnets = [IPAMConfig(subnet=config.subnet) for config in network.ipam.config or ()] if with_subnets else None
    return Network(
        id="",
        name=network.name,
        labels=network.labels,
        options=network.options,
        internal=network.internal,
        attachable=network.attachable,
        enable_ipv6=network.enable_ipv6,
        ipam=IPAM(config=subnets),
    )


def _file(draft: Draft, wanted: StackFile, cls: type[_File], deployment: Deployment, moment: datetime) -> list[ObjectChange]:
    kind = "secret" if cls is Secret else "config"
    if _named(draft.snapshot, cls, wanted.name) is not None:
        # its name holds a digest of its content
        return []
    if wanted.external:
        raise validate.invalid(f"{kind} not found: {wanted.name}: create it first, it is declared as external")
    content = deployment.contents.get(wanted.name)
    if content is None:
        raise validate.precondition(f"{kind} {wanted.name} is gone, and its content was not sent along: deploy the compose file again")
    spec = SecretSpec(
        name=wanted.name,
        labels=wanted.labels,
        data=base64.b64encode(content).decode(),
        templating=Driver(name=wanted.template_driver) if wanted.template_driver else None,
    )
    validate.payload(spec, kind)
    if cls is Secret:
        ciphertext = deployment.encrypt(content)
        made: Secret | Config = Secret(
            id=new_id(), created_at=moment, updated_at=moment, spec=replace(spec, data=""), mesh_ciphertext=ciphertext
        )
    else:
        made = Config(id=new_id(), created_at=moment, updated_at=moment, spec=spec)
    draft.add(secrets.creation(draft.snapshot, made))
    return [ObjectChange(kind, wanted.name, "create")]


def _service(draft: Draft, rendered: ServiceSpec, wanted: Deployment, moment: datetime) -> list[ObjectChange]:
    snapshot = draft.snapshot
    found = next((service for service in snapshot.all(Service) if service.spec.name == rendered.name), None)
    if found is not None and not _of(found.spec.labels, wanted.name):
        raise validate.already_exists(
            f"service {rendered.name} exists and is not of stack {wanted.name}: remove it, or name the stack otherwise"
        )
    spec = validate.service_spec(_with_ids(snapshot, _with_present_replicas(rendered, found)))
    if found is None:
        draft.add(services.creation(snapshot, spec, new_id(), moment, wanted.credentials))
        return [ObjectChange("service", spec.name, "create")]
    # a forced update is nothing that a file says
    spec = replace(spec, task_template=replace(spec.task_template, force_update=found.spec.task_template.force_update))
    changed = services.respecified(snapshot, found, spec, moment)
    fields = differences(found.spec, changed.spec)
    if not fields:
        return []
    draft.add(services.replacement(snapshot, found, changed, wanted.credentials))
    return [ObjectChange("service", spec.name, "update", fields)]


def _with_present_replicas(rendered: ServiceSpec, found: Service | None) -> ServiceSpec:
    """A file that doesn't say how many leaves it to `docker service scale`."""
    replicated, present = rendered.mode.replicated, found.spec.mode.replicated if found is not None else None
    if replicated is None or replicated.replicas is not None or present is None:
        return rendered
    return replace(rendered, mode=replace(rendered.mode, replicated=present))


def _with_ids(snapshot: Snapshot, spec: ServiceSpec) -> ServiceSpec:
    """References by name get the ids of what is, or will be, there."""
    template = spec.task_template
    container = template.container_spec
    assert container is not None, "a rendered service has one"
    with_secrets = [_secret_with_id(snapshot, reference) for reference in container.secrets or ()]
    with_configs = [_config_with_id(snapshot, reference) for reference in container.configs or ()]
    attachments = [_network_with_id(snapshot, attachment) for attachment in template.networks or ()]
    container = replace(container, secrets=with_secrets or None, configs=with_configs or None)
    return replace(spec, task_template=replace(template, container_spec=container, networks=attachments or None))


def _secret_with_id(snapshot: Snapshot, reference: SecretReference) -> SecretReference:
    found = _named(snapshot, Secret, reference.secret_name)
    return replace(reference, secret_id=found.id) if found is not None else reference


def _config_with_id(snapshot: Snapshot, reference: ConfigReference) -> ConfigReference:
    found = _named(snapshot, Config, reference.config_name)
    return replace(reference, config_id=found.id) if found is not None else reference


def _network_with_id(snapshot: Snapshot, attachment: NetworkAttachmentConfig) -> NetworkAttachmentConfig:
    found = next((network for network in snapshot.all(Network) if network.name == attachment.target), None)
    return replace(attachment, target=found.id) if found is not None else attachment


def _unused_files(draft: Draft, name: str, stack: Stack) -> list[ObjectChange]:
    """Secrets and configs that neither revision names go, unless a service still has them."""
    revisions = [stack.current, *([stack.previous] if stack.previous is not None else [])]
    gone: list[ObjectChange] = []
    _, _, present_secrets, present_configs = members(draft.snapshot, name)
    for kind, present, kept in (
        ("secret", present_secrets, {file.name for revision in revisions for file in revision.parts.secrets}),
        ("config", present_configs, {file.name for revision in revisions for file in revision.parts.configs}),
    ):
        for file in present:
            if file.spec.name in kept:
                continue
            try:
                draft.add(secrets.removal(draft.snapshot, file))
            except ApiError:
                continue
            gone.append(ObjectChange(kind, file.spec.name, "remove"))
    return gone


def _named(snapshot: Snapshot, cls: type[_File], name: str) -> _File | None:
    files: Iterable[_File] = snapshot.all(cls)
    return next((file for file in files if file.spec.name == name), None)


def _of(labels: Mapping[str, str] | None, stack: str) -> bool:
    return labels is not None and labels.get(NAMESPACE) == stack
