"""Requests and answers of `/mesh/v1/stacks`.

Pure: types.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from orchestrator.stacks.difference import FieldChange


class StackRequest(msgspec.Struct, frozen=True, rename="pascal", forbid_unknown_fields=True):
    """compose: the file's text. variables: values for `${NAME}` in it. files: what it names (env files, files of secrets and configs),
    by path as written there, base64. directory: where relative paths of bind mounts start."""

    compose: str
    variables: dict[str, str] = {}
    files: dict[str, str] = {}
    directory: str = ""


class ObjectChange(msgspec.Struct, frozen=True, rename="pascal"):
    """kind: service, network, secret or config. fields: of an update, what differs."""

    kind: str
    name: str
    action: Literal["create", "update", "remove"]
    fields: list[FieldChange] = []


class StackAnswer(msgspec.Struct, frozen=True, rename="pascal"):
    """changes: what was, or would be, done; empty: nothing differs. revision: the stack's number afterwards."""

    name: str
    revision: int
    changes: list[ObjectChange]
    warnings: list[str]


class ServiceState(msgspec.Struct, frozen=True, rename="pascal"):
    """update: the state of its rolling update, "" = none."""

    name: str
    image: str
    running: int
    desired: int
    update: str = ""


class StackState(msgspec.Struct, frozen=True, rename="pascal"):
    """state: degraded = fewer tasks than wanted. revision 0: `docker stack deploy` made it, so what it is to be is not known here.
    drift: what differs from the stack's revision (in lists it is left out). updated_at: RFC 3339."""

    name: str
    revision: int
    state: Literal["converged", "updating", "paused", "degraded", "empty"]
    services: list[ServiceState]
    updated_at: str = ""
    drift: list[ObjectChange] = []
    can_roll_back: bool = False
