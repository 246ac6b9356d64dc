"""Stacks as objects of the cluster: `/mesh/v1/stacks`. Deploy a compose file, see what it would change, go back, ask how it is.

Edge: routes over the store. `docker stack` works on the same services; these routes also know what the stack is to be.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from aiohttp import web

from orchestrator.api import access, codec, stack_plan, views
from orchestrator.api.services import registry_credentials
from orchestrator.api.stack_plan import Deployment, StackPlan
from orchestrator.errors import ApiError, ConfigError
from orchestrator.model import Service, Stack
from orchestrator.stacks import compose
from orchestrator.stacks.messages import ObjectChange, ServiceState, StackAnswer, StackRequest, StackState
from orchestrator.stacks.render import render, stack_name
from orchestrator.store.base import Change
from orchestrator.store.snapshot import Snapshot


async def list_stacks(request: web.Request) -> web.Response:
    snapshot = access.store_of(request).snapshot()
    return access.answer([_state(snapshot, *found, with_drift=False) for found in stack_plan.services_by_stack(snapshot).items()])


async def inspect_stack(request: web.Request) -> web.Response:
    snapshot = access.store_of(request).snapshot()
    name = request.match_info["name"]
    theirs = stack_plan.services_by_stack(snapshot).get(name)
    if theirs is None:
        raise ApiError(404, f"stack {name} not found")
    return access.answer(_state(snapshot, name, theirs, with_drift=True))


async def show_compose(request: web.Request) -> web.Response:
    """The file as it was deployed; `?revision=previous` the one before."""
    stack = _stack(access.store_of(request).snapshot(), request.match_info["name"])
    revision = request.query.get("revision", "")
    if revision not in ("", "previous"):
        raise ApiError(400, f'revision: expected "previous", not "{revision}": other revisions are not kept')
    previous = revision == "previous"
    shown = stack.previous if previous else stack.current
    if shown is None:
        raise ApiError(404, f"stack {stack.id} has no previous revision")
    return web.Response(text=shown.compose, content_type="application/yaml")


async def plan_stack(request: web.Request) -> web.Response:
    """What `deploy` would change; changes nothing."""
    deployment, warnings = await _deployment(request)
    snapshot = access.store_of(request).snapshot()
    return access.answer(_answer(deployment.name, stack_plan.deployed(snapshot, deployment, access.now()), warnings))


async def deploy_stack(request: web.Request) -> web.Response:
    deployment, warnings = await _deployment(request)
    return await _done(request, deployment.name, lambda snapshot: stack_plan.deployed(snapshot, deployment, access.now()), warnings)


async def roll_back_stack(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    credentials = registry_credentials(request)
    return await _done(
        request, name, lambda snapshot: stack_plan.rolled_back(snapshot, _stack(snapshot, name), credentials, access.now()), []
    )


async def remove_stack(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    return await _done(request, name, lambda snapshot: stack_plan.removed(snapshot, name), [])


ROUTES = [
    web.get("/mesh/v1/stacks", list_stacks),
    web.get("/mesh/v1/stacks/{name}", inspect_stack),
    web.get("/mesh/v1/stacks/{name}/compose", show_compose),
    web.post("/mesh/v1/stacks/{name}/plan", plan_stack),
    web.post("/mesh/v1/stacks/{name}/rollback", roll_back_stack),
    web.put("/mesh/v1/stacks/{name}", deploy_stack),
    web.delete("/mesh/v1/stacks/{name}", remove_stack),
]


# ---- details ----------------------------------------------------------------------------------------------------------------------


async def _deployment(request: web.Request) -> tuple[Deployment, list[str]]:
    access.store_of(request)
    try:
        sent = msgspec.convert(codec.parse(await access.body(request)), StackRequest)
    except msgspec.ValidationError as error:
        raise ApiError(400, f"invalid request: {error}") from None
    name = stack_name(request.match_info["name"])
    file, warnings = compose.read(sent.compose, sent.variables)
    parts, contents, more = render(name, file, sent.variables, _decoded(sent.files), sent.directory)
    backend = access.backend_of(request)
    return Deployment(name, sent.compose, parts, contents, backend.encrypt_secret, registry_credentials(request)), [*warnings, *more]


def _decoded(files: Mapping[str, str]) -> dict[str, bytes]:
    try:
        return {path: base64.b64decode(content, validate=True) for path, content in files.items()}
    except binascii.Error as error:
        raise ConfigError(f"Files: expected base64: {error}") from None


async def _done(request: web.Request, name: str, make: Any, warnings: list[str]) -> web.Response:
    store = access.store_of(request)
    planned: list[StackPlan] = []
    seen = _revision(request)

    def plan(snapshot: Snapshot) -> Sequence[Change]:
        stack = snapshot.get(Stack, name)
        present = stack.current.number if stack is not None else 0
        if seen is not None and seen != present:
            raise ApiError(409, f"stack {name} is at revision {present}, not {seen}: look again")
        made: StackPlan = make(snapshot)
        if len(made.store_changes) > store.max_changes:
            raise ApiError(
                400, f"the stack takes {len(made.store_changes)} changes, at most {store.max_changes} can be made at once: split it"
            )
        planned[:] = [made]
        return made.store_changes

    await access.commit(store, plan)
    return access.answer(_answer(name, planned[0], warnings))


def _revision(request: web.Request) -> int | None:
    """The one that the client has seen, if it says so."""
    text = request.query.get("revision", "")
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ApiError(400, f'revision: expected a number, not "{text}"')
    return int(text)


def _answer(name: str, plan: StackPlan, warnings: list[str]) -> StackAnswer:
    return StackAnswer(name, plan.revision, plan.described, [*warnings, *plan.warnings])


def _stack(snapshot: Snapshot, name: str) -> Stack:
    stack = snapshot.get(Stack, name)
    if stack is None:
        made_elsewhere = name in stack_plan.services_by_stack(snapshot)
        known = " (`docker stack deploy` made it: deploy it here to have revisions)" if made_elsewhere else ""
        raise ApiError(404, f"stack {name} not found{known}")
    return stack


def _state(snapshot: Snapshot, name: str, theirs: Sequence[Service], *, with_drift: bool) -> StackState:
    stack = snapshot.get(Stack, name)
    states = [_service_state(snapshot, service) for service in theirs]
    drift: list[ObjectChange] = []
    if stack is not None and with_drift:
        # what can't be planned (a secret that was removed by hand) is drift too, but the state must be shown all the same
        deployment = Deployment(name, "", stack.current.parts, {}, lambda plain: plain)
        try:
            drift = stack_plan.deployed(snapshot, deployment, access.now()).described
        except (ApiError, ConfigError) as error:
            drift = [ObjectChange("stack", str(error), "update")]
    return StackState(
        name=name,
        revision=stack.current.number if stack is not None else 0,
        state=_overall(states),
        services=states,
        updated_at=stack.updated_at.isoformat() if stack is not None else "",
        drift=drift,
        can_roll_back=stack is not None and stack.previous is not None,
    )


def _service_state(snapshot: Snapshot, service: Service) -> ServiceState:
    status = views.service_status(snapshot, service)
    container = service.spec.task_template.container_spec
    return ServiceState(
        name=service.spec.name,
        image=container.image if container is not None else "",
        running=status.running_tasks,
        desired=status.desired_tasks,
        update=service.update_status.state if service.update_status is not None else "",
    )


def _overall(states: Sequence[ServiceState]) -> Literal["converged", "updating", "paused", "degraded", "empty"]:
    if not states:
        return "empty"
    if any(state.update.endswith("paused") for state in states):
        return "paused"
    if any(state.update in ("updating", "rollback_started") for state in states):
        return "updating"
    return "degraded" if any(state.running < state.desired for state in states) else "converged"
