"""Requests of newer clients that an older Engine would take for something else: what its version doesn't know it ignores.

Edge: asks the Engine; `unable`, `is_anonymous` are pure. Source: Docker Engine API version history, 1.42 (VolumePrune, signal of stop and
restart), 1.50 (the platforms of an image to remove); moby volume/service. From 1.42 on a prune takes only volumes that nobody named, unless
the filter `all` says otherwise, and clients tell their users so; an Engine before that would take them all.
"""

from __future__ import annotations

import re
from collections.abc import Collection
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

_PRUNE = re.compile(r"/v[0-9.]+/volumes/prune")
_PRUNE_FILTERS = frozenset({"label", "label!", "all"})
_MADE_UP = re.compile(r"[0-9a-f]{64}")
# method, path, what is asked for, since which version, and what to do about it
_UNKNOWN = (
    ("POST", re.compile(r"/v[0-9.]+/containers/.+/(stop|restart)"), "signal", "1.42", "use `docker kill -s`, or run it with --stop-signal"),
    ("DELETE", re.compile(r"/v[0-9.]+/images/.+"), "platforms", "1.50", "leave the platform out: it has one of each image"),
)


async def ask(engine: Engine, method: str, path: str, *, timeout_s: float | None = None) -> Answer:
    """A small request without body."""
    return await instead(engine, method, path) or await engine.ask(method, path, timeout_s=timeout_s)


async def instead(engine: Engine, method: str, path: str) -> Answer | None:
    """The answer that a newer Engine would have given, or a refusal in words. None: it can be asked as it is. path: percent-encoded."""
    asked = version_of(path)
    if not asked:
        return None
    url = urlsplit(path)
    given = {key: values[0] for key, values in parse_qs(url.query).items()}
    prunes = method == "POST" and _PRUNE.fullmatch(url.path) is not None
    if not prunes and not any(known[0] == method and known[2] in given for known in _UNKNOWN):
        return None
    spoken = version_of(await engine.path(path))
    if why := unable(method, url.path, given, asked, spoken):
        return _refusal(400, f"{engine.name} speaks API {spoken} {why}")
    if not prunes or before(asked, ANONYMOUS_SINCE) or not before(spoken, ANONYMOUS_SINCE):
        return None
    return await prune_volumes(engine, path)


def unable(method: str, path: str, given: dict[str, str], asked: str, spoken: str) -> str:
    """What an Engine that speaks `spoken` would ignore of a request of version `asked`, as the end of a sentence; "" if nothing."""
    for of_method, of_path, parameter, since, advice in _UNKNOWN:
        if method == of_method and parameter in given and of_path.fullmatch(path) and before(spoken, since) and not before(asked, since):
            return f"and knows no {parameter} here: {advice}"
    return ""


def _refusal(status: int, message: str) -> Answer:
    return Answer(status, {}, codec.encode({"message": message}))


async def prune_volumes(engine: Engine, path: str, spared: Collection[str] = ()) -> Answer:
    """POST `path`, a /volumes/prune with its query, as Engines of its version do it (without one: as this Engine does); `spared` stay."""
    asked = version_of(path) or version_of(await engine.path(path))
    try:
        wanted = filters.parse(parse_qs(urlsplit(path).query).get("filters", [""])[0], _PRUNE_FILTERS)
        everything = before(asked, ANONYMOUS_SINCE) or wanted.flag("all")
    except ApiError as error:
        return _refusal(error.status, error.message)
    used = await engine.ask("GET", "/system/df")
    if not used.ok:
        return used
    gone, reclaimed_bytes = [], 0
    for volume in used.json().get("Volumes") or ():
        usage, labels = volume.get("UsageData") or {}, volume.get("Labels")
        kept = any(Filters({"label": (label,)}).labels(labels) for label in wanted.get("label!"))
        meant = everything or is_anonymous(volume)
        if usage.get("RefCount") != 0 or not meant or kept or volume["Name"] in spared or not wanted.labels(labels):
            continue
        # somebody may use it by now: then it stays
        if (await engine.ask("DELETE", f"/volumes/{quote(volume['Name'], safe='')}")).ok:
            gone.append(volume["Name"])
            reclaimed_bytes += max(usage.get("Size", 0), 0)
    return Answer(200, {}, codec.encode({"VolumesDeleted": gone, "SpaceReclaimed": reclaimed_bytes}))


def is_anonymous(volume: dict[str, Any]) -> bool:
    """Engines before 23 leave no label, but make up names of this form."""
    labelled = ANONYMOUS_LABEL in (volume.get("Labels") or {})
    return labelled or (volume.get("Driver") == "local" and _MADE_UP.fullmatch(volume["Name"]) is not None)
