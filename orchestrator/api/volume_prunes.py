"""`docker volume prune` at an Engine that is older than the client takes it to be.

Edge: asks the Engine; `is_anonymous` is pure. Source: Docker Engine API version history, 1.42 (VolumePrune); moby volume/service.
From 1.42 on a prune takes only volumes that nobody named, unless the filter `all` says otherwise, and clients tell their users so; an
Engine before that would take them all.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from orchestrator.api import codec, filters
from orchestrator.api.filters import Filters
from orchestrator.api.versions import before
from orchestrator.engine_http import Answer, Engine, version_of
from orchestrator.errors import ApiError

# moby volume/service: AnonymousLabel
ANONYMOUS_LABEL = "com.docker.volume.anonymous"
ANONYMOUS_SINCE = "1.42"

_PRUNE = re.compile(r"/v(?P<version>[0-9]+\.[0-9]+)/volumes/prune")
_PRUNE_FILTERS = frozenset({"label", "label!", "all"})
_MADE_UP = re.compile(r"[0-9a-f]{64}")


async def instead(engine: Engine, method: str, path: str) -> Answer | None:
    """The Engine's answer, as a newer one would have given it. None: it can be asked as it is. path: percent-encoded."""
    url = urlsplit(path)
    prune = _PRUNE.fullmatch(url.path) if method == "POST" else None
    if prune is None or before(prune["version"], ANONYMOUS_SINCE) or not before(version_of(await engine.path(path)), ANONYMOUS_SINCE):
        return None
    try:
        wanted = filters.parse(parse_qs(url.query).get("filters", [""])[0], _PRUNE_FILTERS)
        everything = wanted.flag("all")
    except ApiError as error:
        return Answer(error.status, {}, codec.encode({"message": error.message}))
    if not everything:
        return await _prune_anonymous(engine, wanted)
    kept = codec.encode({key: list(values) for key, values in wanted.values.items() if key != "all"}).decode().strip()
    return await engine.ask("POST", f"/volumes/prune?filters={quote(kept, safe='')}")


async def _prune_anonymous(engine: Engine, wanted: Filters) -> Answer:
    used = await engine.ask("GET", "/system/df")
    if not used.ok:
        return used
    gone, reclaimed_bytes = [], 0
    for volume in used.json().get("Volumes") or ():
        usage, labels = volume.get("UsageData") or {}, volume.get("Labels")
        kept = any(Filters({"label": (label,)}).labels(labels) for label in wanted.get("label!"))
        if usage.get("RefCount") != 0 or not is_anonymous(volume) or kept or not wanted.labels(labels):
            continue
        # somebody may use it by now: then it stays
        if (await engine.ask("DELETE", f"/volumes/{volume['Name']}")).ok:
            gone.append(volume["Name"])
            reclaimed_bytes += max(usage.get("Size", 0), 0)
    return Answer(200, {}, codec.encode({"VolumesDeleted": gone, "SpaceReclaimed": reclaimed_bytes}))


def is_anonymous(volume: dict[str, Any]) -> bool:
    """Engines before 23 leave no label, but make up names of this form."""
    labelled = ANONYMOUS_LABEL in (volume.get("Labels") or {})
    return labelled or (volume.get("Driver") == "local" and _MADE_UP.fullmatch(volume["Name"]) is not None)
