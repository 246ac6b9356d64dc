"""A container's name, held in the store while the container is being made or renamed.

Edge: the store. Who has which name is known to the Engines alone; asking all of them and then creating is a race that two clients, at two
managers even, can both win. The claim closes it: it is there before the Engines are asked and goes once one of them has the name. One left
behind by a manager that was killed counts for as long as a creation may take.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

from msgspec.structs import replace

from orchestrator.api import access
from orchestrator.api.container_views import name_taken
from orchestrator.errors import ApiError, Conflict, StoreError
from orchestrator.ids import new_id
from orchestrator.model import Claim
from orchestrator.store.base import Change, Delete, Put, Store
from orchestrator.store.snapshot import Snapshot

log = logging.getLogger(__name__)

# longer than any Engine is waited for (`engines.CHANGE`)
_HELD = timedelta(seconds=120)
_WAIT_S = 10.0
_POLL_S = 0.02


@contextlib.asynccontextmanager
async def held(store: Store, name: str) -> AsyncIterator[None]:
    """Waits while somebody else is just giving this name to a container: then the Engines know whose it is. ApiError(409): it takes
    too long. "" is nobody's."""
    if not name:
        yield
        return
    owner = f"{new_id()}/{access.now().timestamp():.0f}"
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _WAIT_S
    while True:
        try:
            await store.commit(taking(store.snapshot(), name, owner, access.now()))
            break
        except (Conflict, ApiError):
            if loop.time() > deadline:
                raise
            await asyncio.sleep(_POLL_S)
    try:
        yield
    finally:
        try:
            await access.commit(store, lambda snapshot: giving_back(snapshot, name, owner))
        except StoreError as error:
            log.warning("name kept name=%s seconds=%d error=%s", name, _HELD.total_seconds(), error)


def taking(snapshot: Snapshot, name: str, owner: str, now: datetime) -> Sequence[Change]:
    """Pure."""
    claim = snapshot.claim(_claim_id(name))
    if claim is None:
        return [Put(Claim(id=_claim_id(name), owner=owner))]
    holder, _, since = claim.owner.partition("/")
    if since.isdigit() and now.timestamp() - int(since) < _HELD.total_seconds():
        raise name_taken(name, holder)
    return [Put(replace(claim, owner=owner))]


def giving_back(snapshot: Snapshot, name: str, owner: str) -> Sequence[Change]:
    """Pure."""
    claim = snapshot.claim(_claim_id(name))
    return [Delete("claim", claim.id, claim.version.index)] if claim is not None and claim.owner == owner else []


def _claim_id(name: str) -> str:
    return f"container/{name}"
