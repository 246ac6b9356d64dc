"""Lists and references of several Engines, against their definitions over all small cases."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from msgspec.structs import replace

from orchestrator.api.container_names import giving_back, taking
from orchestrator.api.container_views import Found, Listing, choose, created_s, inspected, listed, split_path
from orchestrator.api.engines import Member
from orchestrator.api.filters import Filters
from orchestrator.errors import ApiError
from orchestrator.model import Claim, NodeSpec, ResourceObject
from orchestrator.store.base import Delete, Put
from orchestrator.store.memory import MemoryStore
from tests.orchestrator.api.fakes import a_node

A = Member("na", "node-a", "10.0.0.1", True)
B = Member("nb", "node-b", "10.0.0.2", False)


def found(member: Member, id: str, name: str) -> Found:
    return Found(member, {"Id": id, "Name": f"/{name}"})


# ---- references ------------------------------------------------------------------------------------------------------------------------


def test_paths_name_a_container_with_or_without_its_node() -> None:
    for path, split in (
        ("web/json", ("web", "/json")), ("node-b/web/json", ("node-b/web", "/json")), ("web", ("web", "")),
        ("node-b/web", ("node-b/web", "")), ("web/attach/ws", ("web", "/attach/ws")),
        ("node-b/web/attach/ws", ("node-b/web", "/attach/ws")),
        ("start/start", ("start", "/start")), ("a/b/c", ("a/b/c", "")),
    ):  # fmt: skip
        assert split_path(path) == split


def test_a_whole_id_comes_before_a_name_and_a_name_before_a_prefix() -> None:
    """All sets of up to three containers on two nodes whose ids and names may be each other's prefixes."""
    everything = [found(member, id, name) for member in (A, B) for id, name in itertools.product(("ab", "abc", "x"), ("ab", "y"))]
    for size in range(4):
        for some in itertools.combinations(everything, size):
            candidates = [one for one in some if one.id.startswith("ab") or one.name == "ab"]
            ids = [one for one in candidates if one.id == "ab"]
            names = [one for one in candidates if one.name == "ab"]
            best = ids or names or candidates
            if len(best) > 1:
                with pytest.raises(ApiError, match="on several nodes" if ids or names else "Multiple IDs found with provided prefix: ab"):
                    choose("ab", candidates)
            else:
                assert choose("ab", candidates) == (best[0] if best else None)


def test_an_ambiguous_name_is_told_how_to_be_named() -> None:
    with pytest.raises(ApiError) as refused:
        choose("web", [found(A, "1", "web"), found(B, "2", "web")])
    assert refused.value.message == "container web is on several nodes: name one of node-a/web, node-b/web"


# ---- lists -----------------------------------------------------------------------------------------------------------------------------


def entry(name: str, created: int) -> dict[str, Any]:
    return {"Id": name, "Names": [f"/{name}"], "Created": created, "Labels": None, "Ports": []}


def names(entries: list[dict[str, Any]]) -> list[str]:
    return [one["Id"] for one in entries]


def test_lists_are_merged_newest_first_and_cut() -> None:
    """Every way to spread four containers with times out of three over two nodes; equal times keep an Engine's own order."""
    for times in itertools.product((1, 2, 3), repeat=4):
        for places in itertools.product((A, B), repeat=4):
            made = [(member, entry(f"c{number}", created)) for number, (created, member) in enumerate(zip(times, places, strict=True))]
            lists = [
                (member, sorted((one for place, one in made if place == member), key=lambda one: -one["Created"])) for member in (A, B)
            ]
            expected = names(sorted((one for _, entries in lists for one in entries), key=lambda one: -one["Created"]))
            for limit in (0, 1, 3, 9):
                assert names(Listing(limit=limit).merged(lists)) == expected[: limit or None]


def test_containers_of_one_second_are_in_the_order_in_which_they_were_made() -> None:
    made = {"b": 1, "a": 2, "c": 3}
    lists = [(A, [entry("a", 5), entry("unknown", 5), entry("old", 4)]), (B, [entry("c", 5), entry("b", 5)])]
    assert names(Listing().merged(lists, lambda id: made.get(id, 0))) == ["c", "a", "b", "unknown", "old"]


def test_before_and_since_cut_by_place_at_home_and_by_time_elsewhere() -> None:
    pivot = Found(A, {"Id": "p", "Created": "2026-01-01T00:00:10.999999999Z"})
    assert created_s(pivot.shown) == int(datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC).timestamp())
    base = created_s(pivot.shown)
    lists = [(A, [entry("home", base)]), (B, [entry("later", base + 1), entry("same", base), entry("earlier", base - 1)])]
    assert names(Listing(before=pivot).merged(lists)) == ["home", "earlier"]
    assert names(Listing(since=pivot).merged(lists)) == ["later", "home"]
    query = parse_qs(urlsplit(Listing(before=pivot, limit=2, filters=Filters({"before": ("web",)})).query(A)).query)
    assert (query["all"], json.loads(query["filters"][0]), "limit" in query) == (["1"], {"before": ["p"]}, False)
    assert "before" not in Listing(before=pivot, filters=Filters({"before": ("web",)})).query(B)
    assert created_s({}) == created_s({"Created": "yesterday"}) == 0


def test_before_and_since_of_one_second_go_by_the_order_in_which_containers_were_made() -> None:
    pivot = Found(A, {"Id": "p", "Created": "2026-01-01T00:00:10.5Z"})
    made = {"first": 1, "p": 2, "last": 3}
    lists = [(B, [entry(name, created_s(pivot.shown)) for name in ("last", "first", "older")])]
    assert names(Listing(since=pivot).merged(lists, lambda id: made.get(id, 0))) == ["last"]
    assert names(Listing(before=pivot).merged(lists, lambda id: made.get(id, 0))) == ["first", "older"]


def test_what_engines_are_asked() -> None:
    assert Listing().query(A) == "/containers/json"
    asked = Listing(all=True, limit=3, size=True, filters=Filters({"node": ("node-a",), "name": ("a&b",)})).query(A)
    assert parse_qs(urlsplit(asked).query) == {"all": ["1"], "limit": ["3"], "size": ["1"], "filters": ['{"name":["a&b"]}']}
    for named, wants in (((), True), (("node-a",), True), (("na",), True), (("n",), True), (("node-b",), False), (("",), False)):
        assert Listing(filters=Filters({"node": named} if named else {})).wants(A) is wants


# ---- one container ---------------------------------------------------------------------------------------------------------------------


def test_the_node_is_shown_and_names_stay_names() -> None:
    sent = {
        "Id": "1", "Names": ["/web", "/other/alias"], "Labels": {"a": "b"},
        "Ports": [{"IP": "0.0.0.0", "PublicPort": 80}, {"IP": "::", "PublicPort": 80}, {"IP": "127.0.0.1", "PublicPort": 81},
                  {"PrivatePort": 9}],
    }  # fmt: skip
    shown = listed(sent, B)
    assert shown["Names"] == ["/web", "/other/alias", "/node-b/web"]
    assert shown["Labels"] == {"a": "b", "com.meshd.node": "node-b"}
    assert shown["Ports"] == [{"IP": "10.0.0.2", "PublicPort": 80}, {"IP": "127.0.0.1", "PublicPort": 81}, {"PrivatePort": 9}]
    assert listed(sent, A)["Ports"] == sent["Ports"]
    assert listed({"Id": "1"}, A) == {"Id": "1", "Names": [], "Labels": {"com.meshd.node": "node-a"}}


def test_an_inspection_has_classic_swarms_node() -> None:
    node = a_node("nb", "node-b")
    node = replace(
        node,
        spec=NodeSpec(labels={"disk": "ssd"}),
        description=replace(node.description, resources=ResourceObject(nano_cpus=2 * 10**9, memory_bytes=5)),
    )
    sent = {"Id": "1", "NetworkSettings": {"Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "1"}], "81/tcp": None}, "x": 1}}
    shown = inspected(sent, B, node)
    assert shown["NetworkSettings"] == {"Ports": {"80/tcp": [{"HostIp": "10.0.0.2", "HostPort": "1"}], "81/tcp": None}, "x": 1}
    assert shown["Node"] == {
        "ID": "nb", "Name": "node-b", "IP": "10.0.0.2", "Addr": "10.0.0.1:2377", "Cpus": 2, "Memory": 5, "Labels": {"disk": "ssd"},
    }  # fmt: skip
    assert inspected(sent, A, None) == sent


# ---- names -----------------------------------------------------------------------------------------------------------------------------


async def test_a_held_name_is_taken_until_it_is_given_back_or_forgotten() -> None:
    store = MemoryStore()
    at = datetime(2026, 1, 1, tzinfo=UTC)
    mine, other = f"me/{at.timestamp():.0f}", f"other/{at.timestamp():.0f}"
    assert taking(store.snapshot(), "web", mine, at) == [Put(Claim(id="container/web", owner=mine))]
    await store.commit(taking(store.snapshot(), "web", mine, at))
    with pytest.raises(ApiError, match='The container name "/web" is already in use by container "me"'):
        taking(store.snapshot(), "web", other, at)
    assert giving_back(store.snapshot(), "web", other) == []
    [given] = giving_back(store.snapshot(), "web", mine)
    assert isinstance(given, Delete) and given.index > 0
    later = at.replace(minute=3)
    await store.commit(taking(store.snapshot(), "web", other, later))
    assert giving_back(store.snapshot(), "web", mine) == []
