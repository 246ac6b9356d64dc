"""What the fuzz tests of the API share."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings

from orchestrator.control.context import Context
from orchestrator.control.loops import LOOPS
from orchestrator.control.steps import applied
from orchestrator.model import Object
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.api.fakes import now

# `make fuzz-api`: how many times as many examples
_TIMES = int(os.environ.get("FUZZ", "1"))


def more(examples: int) -> Callable[[Any], Any]:
    return settings(max_examples=examples * _TIMES, deadline=None, suppress_health_check=list(HealthCheck))


def loops_run(snapshot: Snapshot) -> None:
    """The control loops can run with whatever was accepted."""
    ids = itertools.count()
    context = Context(now=now() + timedelta(minutes=5), new_id=lambda: f"new{next(ids)}")
    for loop in LOOPS:
        snapshot = applied(snapshot, loop(snapshot, context).steps)


def objects(snapshot: Snapshot) -> dict[tuple[str, str], Object]:
    """All of them, to be compared."""
    return {(kind, id): obj for kind, table in snapshot.tables.items() for id, obj in table.items()}
