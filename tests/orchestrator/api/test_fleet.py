"""Images, volumes, local networks, events and totals of several Engines: what each is asked, and what it comes to."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from orchestrator.api import newer_requests
from orchestrator.api.broadcast import sentence
from orchestrator.api.images import merged as merged_images
from orchestrator.api.local_networks import merged as merged_networks
from orchestrator.api.progress import Fan, Told
from orchestrator.api.volumes import merged as merged_volumes
from orchestrator.store.base import Put
from tests.orchestrator.agent.wait import until
from tests.orchestrator.api.fake_stores import FakeStores, three_nodes
from tests.orchestrator.api.fakes import Setup


class Fleet:
    """Three nodes: node-a is asked, node-b and node-c are the others."""

    def __init__(self, setup: Setup, stores: dict[str, FakeStores]) -> None:
        self.setup = setup
        self.stores = stores

    def having(self, image: str) -> list[str]:
        return [name for name, store in self.stores.items() if image in store.images]

    async def lines(self, method: str, path: str, data: Any = None, headers: dict[str, str] | None = None) -> tuple[int, list[Any]]:
        async with self.setup.session.request(method, f"http://d{path}", data=data, headers=headers) as response:
            text = await response.text()
            return response.status, [json.loads(line) for line in text.splitlines()]

    async def lose(self, node_id: str) -> None:
        node = self.setup.store.snapshot().node(node_id)
        assert node is not None
        await self.setup.store.commit([Put(replace(node, status=replace(node.status, state="down", message="heartbeat failure")))])


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    stores = {name: FakeStores(name) for name in ("node-a", "node-b", "node-c")}
    async with three_nodes(tmp_path, stores) as setup:
        yield Fleet(setup, stores)


# ---- pure ------------------------------------------------------------------------------------------------------------------------


def test_failures_are_told_by_reason() -> None:
    assert sentence([("a", "x"), ("b", "y"), ("c", "x")], ["d", "e"], "done on") == "a, c: x; b: y; done on d, e"
    assert sentence([("a", "x"), ("b", "x")], ["d"], "done on") == "a, b: x; done on d"
    assert sentence([("a", "x"), ("b", "x")], [], "done on") == "x"
    assert sentence([("a", "x"), ("b", "y")], [], "done on") == "a: x; b: y"


def test_progress_of_every_outcome_of_two_nodes() -> None:
    """Each node ends well, fails or is away: what is said, and that a failure is the stream's last word."""
    for outcomes in itertools.product(("well", "fails", "away"), repeat=2):
        names = [name for name, outcome in zip("ab", outcomes, strict=True) if outcome != "away"]
        away = [(name, "down") for name, outcome in zip("ab", outcomes, strict=True) if outcome == "away"]
        told = Told("pulled on", names, away)
        shown = []
        for name, outcome in zip("ab", outcomes, strict=True):
            if outcome != "away":
                shown.append(told.line(name, {"id": "layer", "status": "x"}))
                last = {"status": "Done"} if outcome == "well" else {"errorDetail": {"message": "no"}, "error": "no"}
                assert told.line(name, last) is None
        assert shown == [{"id": f"{name}: layer", "status": "x"} for name in names]
        end = told.end()
        assert ("error" in end[-1] if "fails" in outcomes else all("error" not in line for line in end)) or not end
        assert end.count({"status": "Done"}) == (1 if "well" in outcomes else 0)
        assert sum("is away (down)" in line.get("status", "") for line in end) == outcomes.count("away")
        if "fails" in outcomes:
            failed = ", ".join(name for name, outcome in zip("ab", outcomes, strict=True) if outcome == "fails")
            well = ", ".join(name for name, outcome in zip("ab", outcomes, strict=True) if outcome == "well")
            assert end[-1]["error"] == (f"{failed}: no; pulled on {well}" if well else "no")


def test_what_nodes_say_differently_is_said_with_their_names() -> None:
    told = Told("pulled on", ["a", "b", "c"])
    for name, said in (("a", "new"), ("b", "old"), ("c", "new")):
        told.line(name, {"status": said})
        told.line(name, {"status": "Digest"})
    assert told.end() == [{"status": "a, c: new"}, {"status": "Digest"}, {"status": "b: old"}]


def test_one_engine_alone_is_passed_on_as_it_is() -> None:
    told = Told("pulled on", ["a"])
    assert told.line("a", {"id": "x"}) == {"id": "x"}
    assert told.line("a", {"status": "x"}) == {"status": "x"}
    assert told.end() == []


def test_images_are_shown_once_and_say_where_they_are() -> None:
    def image(id: str, *tags: str) -> dict[str, Any]:
        return {"Id": id, "RepoTags": list(tags), "RepoDigests": None, "Created": 1, "Containers": -1, "Labels": None}

    on_a, on_b = [image("1", "x:1"), image("2", "<none>:<none>")], [image("1", "y:1"), image("2", "z:1")]
    shown = merged_images([("a", on_a), ("b", on_b)])
    assert [(one["Id"], one["RepoTags"], one["Labels"]) for one in shown] == [
        ("1", ["x:1", "y:1"], {"com.meshd.node": "a,b"}), ("2", ["z:1"], {"com.meshd.node": "a,b"}),
    ]  # fmt: skip


def test_volumes_and_networks_of_one_name() -> None:
    volume = {"Name": "v", "Driver": "local", "Labels": {"x": "1"}}
    other = {"Name": "v", "Driver": "nfs", "Labels": None}
    shown = merged_volumes([("a", [volume]), ("b", [volume, other])])
    assert [(one["Driver"], one["Labels"]["com.meshd.node"]) for one in shown] == [("local", "a,b"), ("nfs", "b")]
    bridge, br, lone = ({"Name": name, "Labels": None} for name in ("bridge", "br", "lone"))
    assert [one["Name"] for one in merged_networks([("a", [bridge, br]), ("b", [bridge, br, lone])])] == ["bridge", "a/br", "b/br", "lone"]


async def test_a_body_for_several_reaches_all_of_them_whole_or_broken() -> None:
    async def source(ends: bool) -> AsyncIterator[bytes]:
        for number in range(10):
            yield b"%d" % number
        if not ends:
            raise ConnectionResetError("the client is gone")

    fan = Fan(source(True))
    feeds = [fan.feed(), fan.feed(), fan.feed()]
    # the third Engine has answered before it read anything
    feeds[2].close()
    _, *bodies = await asyncio.gather(fan.run(), *(_whole(feed.chunks()) for feed in feeds[:2]))
    assert bodies == [b"0123456789"] * 2
    fan = Fan(source(False))
    feed = fan.feed()
    run, body = await asyncio.gather(fan.run(), _whole(feed.chunks()), return_exceptions=True)
    assert isinstance(run, ConnectionResetError) and isinstance(body, ConnectionResetError)


async def test_an_engine_that_does_not_read_is_waited_for_within_bounds() -> None:
    async def source() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x"

    fan = Fan(source(), stall_s=0.05)
    stuck, other = fan.feed(), fan.feed()
    _, body = await asyncio.gather(fan.run(), _whole(other.chunks()))
    assert body == b"x" * 10
    stuck.close()


async def _whole(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


# ---- images ----------------------------------------------------------------------------------------------------------------------


async def test_a_pull_goes_to_all_and_each_layer_says_whose_it_is(fleet: Fleet) -> None:
    fleet.stores["node-b"].images["app:1"] = "sha256:app:1"
    status, lines = await fleet.lines("POST", "/v1.41/images/create?fromImage=app&tag=1")
    assert status == 200
    assert {line["id"] for line in lines if "id" in line} == {f"node-{n}: {id}" for n in "abc" for id in ("1", "layer")}
    assert {line["status"] for line in lines if "id" not in line} == {
        "Digest: sha256:1", "node-a, node-c: Status: Downloaded newer image for app:1", "node-b: Status: Up to date image for app:1",
    }  # fmt: skip
    assert fleet.having("app:1") == ["node-a", "node-b", "node-c"]


@pytest.mark.parametrize("where", ["query", "header"])
async def test_chosen_nodes(fleet: Fleet, where: str) -> None:
    query = "&node=node-b&node=nc" if where == "query" else ""
    headers = {"X-Meshd-Nodes": "node-b, nc"} if where == "header" else None
    status, _ = await fleet.lines("POST", f"/images/create?fromImage=app&tag=1{query}", headers=headers)
    assert (status, fleet.having("app:1")) == (200, ["node-b", "node-c"])
    status, lines = await fleet.lines("POST", "/images/create?fromImage=app&tag=1&node=nosuch&node=node-b")
    assert (status, lines) == (404, [{"message": "node nosuch not found"}])


async def test_a_pull_that_some_refuse(fleet: Fleet) -> None:
    fleet.stores["node-b"].refuses["pull"] = (404, "manifest unknown")
    fleet.stores["node-c"].fails_midway = "no space left on device"
    status, lines = await fleet.lines("POST", "/images/create?fromImage=app&tag=1")
    assert status == 200
    error = lines[-1]["error"]
    assert set(error.split("; ")) == {"node-b: manifest unknown", "node-c: no space left on device", "pulled on node-a"}
    for store in fleet.stores.values():
        store.refuses["pull"] = (404, "manifest unknown")
    assert await fleet.lines("POST", "/images/create?fromImage=app&tag=1") == (
        404, [{"message": "manifest unknown"}],
    )  # fmt: skip


async def test_who_is_away_is_named(fleet: Fleet) -> None:
    await fleet.lose("nc")
    status, lines = await fleet.lines("POST", "/images/create?fromImage=app&tag=1")
    assert (status, lines[-1]) == (200, {"status": "node-c is away (heartbeat failure) and is left out"})
    async with fleet.setup.session.delete("http://d/images/app:1") as response:
        assert (response.status, await response.json()) == (200, [{"Untagged": "app:1"}])
        warning = '199 meshd "could not be asked: node-c (heartbeat failure); what they have of it stays"'
        assert response.headers["Warning"] == warning


async def test_an_archive_is_read_once_and_loaded_everywhere(fleet: Fleet) -> None:
    archive = bytes(range(256)) * 8192
    for store in fleet.stores.values():
        store.reads.clear()

    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(archive), 65536):
            yield archive[start : start + 65536]

    loading = asyncio.create_task(fleet.lines("POST", "/images/load?quiet=1", data=body()))
    for store in fleet.stores.values():
        store.reads.set()
    assert await loading == (200, [{"stream": "Loaded image: loaded:1\n"}])
    assert all(store.loaded == [archive] for store in fleet.stores.values())


async def test_a_client_that_breaks_an_upload_off_leaves_no_half_archive(fleet: Fleet) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"x" * 65536
        await asyncio.Event().wait()

    loading = asyncio.create_task(fleet.lines("POST", "/images/load", data=body()))
    await until(lambda: all("POST /v1.41/images/load" in store.asked for store in fleet.stores.values()), "all are asked", 20)
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    await until(lambda: all(store.broken_uploads for store in fleet.stores.values()), "all notice", 20)
    assert all(not store.loaded for store in fleet.stores.values())


async def test_an_image_is_found_where_it_is(fleet: Fleet) -> None:
    fleet.stores["node-c"].images["only:1"] = "sha256:c"
    assert (await fleet.setup.ok("GET", "/images/only:1/json"))["Here"] == "node-c"
    async with fleet.setup.session.get("http://d/images/only:1/get") as response:
        assert await response.read() == b"archive of only:1 from node-c"
    fleet.stores["node-a"].images["only:1"] = "sha256:a"
    assert (await fleet.setup.ok("GET", "/images/only:1/json"))["Here"] == "node-a"
    assert await fleet.setup.refused("GET", "/images/no/such:1/json") == (404, "No such image: no/such:1")
    assert await fleet.setup.refused("GET", "/images/only:1/nosuch") == (404, "page not found")


async def test_an_image_in_use_on_one_node_goes_from_the_others(fleet: Fleet) -> None:
    for store in fleet.stores.values():
        store.images["app:1"] = "sha256:1"
    fleet.stores["node-b"].refuses["rmi"] = (409, "conflict: in use")
    assert await fleet.setup.refused("DELETE", "/images/app:1") == (409, "node-b: conflict: in use; removed from node-a, node-c")
    assert fleet.having("app:1") == ["node-b"]
    fleet.stores["node-b"].refuses.clear()
    # those that have nothing to remove are no failure; nobody having it is
    assert await fleet.setup.ok("DELETE", "/images/app:1") == [{"Untagged": "app:1"}]
    assert await fleet.setup.refused("DELETE", "/images/app:1") == (404, "No such image: app:1")


# ---- volumes, networks, events, totals -------------------------------------------------------------------------------------------


async def test_a_volume_is_made_everywhere_or_on_one_node(fleet: Fleet) -> None:
    made = await fleet.setup.ok("POST", "/volumes/create", {"Name": "data"})
    assert made["Name"] == "data"
    assert all("data" in store.volumes for store in fleet.stores.values())
    await fleet.setup.ok("POST", "/volumes/create", {"Name": "node-b/only"})
    assert [name for name, store in fleet.stores.items() if "only" in store.volumes] == ["node-b"]
    await fleet.setup.ok("POST", "/volumes/create", {})
    assert len({frozenset(store.volumes) - {"only"} for store in fleet.stores.values()}) == 1, "a made-up name is the same everywhere"
    assert (await fleet.setup.ok("GET", "/volumes/data"))["Labels"] == {"com.meshd.node": "node-a,node-b,node-c"}
    await fleet.setup.ok("DELETE", "/volumes/node-b/data")
    assert (await fleet.setup.ok("GET", "/volumes/data"))["Labels"] == {"com.meshd.node": "node-a,node-c"}
    fleet.stores["node-c"].refuses["volume-rm"] = (409, "volume is in use")
    assert await fleet.setup.refused("DELETE", "/volumes/data") == (409, "node-c: volume is in use; removed from node-a")
    assert await fleet.setup.refused("GET", "/volumes/nosuch") == (404, "no such volume")
    assert (await fleet.setup.refused("POST", "/volumes/create", {"Name": "x", "ClusterVolumeSpec": {"Group": "g"}}))[0] == 501


async def test_networks_of_all_nodes(fleet: Fleet) -> None:
    for name in ("node-b", "node-c"):
        fleet.stores[name].networks.append({"Name": "br", "Id": f"br-{name}", "Driver": "bridge", "Labels": None})
    await fleet.setup.ok("POST", "/networks/create", {"Name": "ov", "Driver": "overlay"})
    shown = await fleet.setup.ok("GET", "/networks")
    assert [network["Name"] for network in shown] == ["ov", "bridge", "node-b/br", "node-c/br"]
    assert shown[1]["Id"] == "bridge-node-a"
    assert (await fleet.setup.ok("GET", "/networks/node-c/br"))["Id"] == "br-node-c"
    assert (await fleet.setup.ok("GET", "/networks/br-node-b"))["Id"] == "br-node-b"
    status, text = await fleet.setup.refused("GET", "/networks/br")
    assert (status, text) == (400, "network br is ambiguous (2 matches found: node-b/br, node-c/br)")
    assert await fleet.setup.refused("GET", "/networks/nosuch") == (404, "network nosuch not found")


async def test_the_past_of_all_nodes_in_order_of_time(fleet: Fleet) -> None:
    for number, store in enumerate(fleet.stores.values()):
        for moment in (number + 1, number + 11):
            store.events.publish("volume", "create", f"v{moment}", time_ns=moment)
    await fleet.lose("nc")
    status, lines = await fleet.lines("GET", "/events?since=0&until=1")
    assert status == 200
    told = [(line["timeNano"], line["Actor"]["Attributes"]["node.name"]) for line in lines if line["Type"] == "volume"]
    assert told == [(1, "node-a"), (2, "node-b"), (11, "node-a"), (12, "node-b")]
    _, lines = await fleet.lines("GET", '/events?since=0&until=1&filters={"node":["node-b"]}')
    assert [line["timeNano"] for line in lines if line["Type"] == "volume"] == [2, 12]


async def test_totals_of_all_nodes(fleet: Fleet) -> None:
    info = await fleet.setup.ok("GET", "/info")
    assert (info["Containers"], info["ContainersRunning"], info["NCPU"], info["MemTotal"]) == (6, 3, 12, 3 << 30)
    await fleet.lose("nc")
    info = await fleet.setup.ok("GET", "/info")
    assert info["NCPU"] == 8
    assert ["  Status", "Disconnected (heartbeat failure)"] in info["DriverStatus"]
    assert any("node-c (heartbeat failure)" in warning for warning in info["Warnings"])
    used = await fleet.setup.ok("GET", "/system/df")
    assert used["LayersSize"] == 20
    assert [image["Labels"] for image in used["Images"]] == [{"com.meshd.node": "node-a"}, {"com.meshd.node": "node-b"}]


async def test_info_has_the_shape_of_the_clients_version(fleet: Fleet) -> None:
    await fleet.setup.ok("GET", "/v1.24/info")
    assert all("GET /v1.24/info" in store.asked for store in fleet.stores.values())


async def test_a_network_without_a_name_is_refused_as_such(fleet: Fleet) -> None:
    assert await fleet.setup.refused("POST", "/networks/create", {}) == (500, "invalid name: ")
    await fleet.setup.ok("POST", "/networks/create", {"Name": "made"})
    assert (await fleet.setup.refused("POST", "/networks/create", {"Name": "made"}))[0] == 409


async def test_a_build_and_its_session_meet_on_one_node(fleet: Fleet) -> None:
    for path in ("/build?t=x", "/session"):
        for headers, name in (({}, "node-a"), ({"X-Meshd-Nodes": "node-b"}, "node-b")):
            assert await fleet.lines("POST", path, data=b"context", headers=headers) == (200, [{"stream": f"context on {name}"}])
    status, lines = await fleet.lines("POST", "/build", headers={"X-Meshd-Nodes": "node-b,node-c"})
    assert (status, lines) == (400, [{"message": "a build runs on one node, not on 2: choose one"}])


async def test_what_an_older_engine_would_ignore_is_refused_in_words(fleet: Fleet) -> None:
    for store in fleet.stores.values():
        store.images["app:1"] = "sha256:1"
    status, text = await fleet.setup.refused("DELETE", "/v1.50/images/app:1?platforms=x")
    assert (status, "knows no platforms here: leave the platform out" in text) == (400, True)
    assert fleet.having("app:1") == ["node-a", "node-b", "node-c"]
    await fleet.setup.ok("DELETE", "/v1.49/images/app:1?platforms=x")


@pytest.mark.parametrize(
    ("method", "path", "given", "asked", "spoken", "refused"),
    [
        ("POST", "/v1.42/containers/x/stop", {"signal": "INT", "t": "5"}, "1.42", "1.41", True),
        ("POST", "/v1.50/containers/node-2/x/restart", {"signal": "INT"}, "1.50", "1.41", True),
        ("POST", "/v1.42/containers/x/stop", {"t": "5"}, "1.42", "1.41", False),
        ("POST", "/v1.41/containers/x/stop", {"signal": "INT"}, "1.41", "1.41", False),
        ("POST", "/v1.42/containers/x/stop", {"signal": "INT"}, "1.42", "1.42", False),
        ("POST", "/v1.42/containers/x/kill", {"signal": "INT"}, "1.42", "1.41", False),
        ("DELETE", "/v1.50/images/a/b:1", {"platforms": "x"}, "1.50", "1.49", True),
        ("DELETE", "/v1.50/containers/x", {"platforms": "x"}, "1.50", "1.41", False),
    ],
)
def test_what_an_older_engine_is_unable_to_do(
    method: str, path: str, given: dict[str, str], asked: str, spoken: str, refused: bool
) -> None:
    assert bool(newer_requests.unable(method, path, given, asked, spoken)) == refused


async def test_a_volume_that_is_in_use_anywhere_stays_everywhere(fleet: Fleet) -> None:
    await fleet.setup.ok("POST", "/volumes/create", {"Name": "data"})
    await fleet.setup.ok("POST", "/volumes/create", {"Name": "data2"})
    fleet.stores["node-b"].used = {"data"}
    assert await fleet.setup.refused("DELETE", "/volumes/data") == (409, "volume is in use")
    assert all("data" in store.volumes for store in fleet.stores.values())
    fleet.stores["node-b"].used = {"data2"}
    assert (await fleet.setup.call("DELETE", "/volumes/data"))[0] == 204
    assert [sorted(store.volumes) for store in fleet.stores.values()] == [["data2"]] * 3


async def test_prune_sums_up(fleet: Fleet) -> None:
    await fleet.setup.ok("POST", "/volumes/create", {"Name": "data"})
    await fleet.setup.ok("POST", "/volumes/create", {"Name": "node-b/only"})
    pruned = await fleet.setup.ok("POST", '/v1.41/volumes/prune?filters={"node":["node-a","node-b"]}')
    assert pruned == {"VolumesDeleted": ["data", "only"], "SpaceReclaimed": 3}
    assert [name for name, store in fleet.stores.items() if store.volumes] == ["node-c"]
    pruned = await fleet.setup.ok("POST", '/v1.41/volumes/prune?filters={"node":["node-a","node-b"]}')
    assert pruned == {"VolumesDeleted": [], "SpaceReclaimed": 0}


@pytest.mark.parametrize("version", ["", "/v1.41"])
async def test_a_volume_that_is_in_use_anywhere_is_pruned_nowhere(fleet: Fleet, version: str) -> None:
    await fleet.setup.ok("POST", "/volumes/create", {"Name": "data"})
    await fleet.setup.ok("POST", "/volumes/create", {"Name": "unused"})
    fleet.stores["node-b"].used = {"data"}
    pruned = await fleet.setup.ok("POST", f"{version}/volumes/prune")
    assert pruned == {"VolumesDeleted": ["unused"], "SpaceReclaimed": 3}
    assert [sorted(store.volumes) for store in fleet.stores.values()] == [["data"]] * 3


async def test_a_prune_of_volumes_leaves_named_ones_alone_though_the_engines_are_older(fleet: Fleet) -> None:
    """Clients of 1.42 and later say so to their users; an Engine of 1.41 would take all."""
    await fleet.setup.ok("POST", "/v1.42/volumes/create", {"Name": "data"})
    made = (await fleet.setup.ok("POST", "/v1.42/volumes/create", {"Labels": {"a": "b"}}))["Name"]
    older = (await fleet.setup.ok("POST", "/v1.41/volumes/create", {}))["Name"]
    used = (await fleet.setup.ok("POST", "/v1.42/volumes/create", {}))["Name"]
    fleet.stores["node-b"].used.add(used)
    assert [list(fleet.stores["node-c"].volumes[name]["Labels"] or ()) for name in (made, older)] == [
        ["a", "com.docker.volume.anonymous"],
        [],
    ]
    assert (await fleet.setup.refused("POST", '/v1.42/volumes/prune?filters={"bogus":["x"]}'))[1] == "Invalid filter 'bogus'"
    pruned = await fleet.setup.ok("POST", "/mesh/v1/nodes/node-c/engine/v1.42/volumes/prune")
    assert sorted(pruned["VolumesDeleted"]) == sorted([made, older, used])
    pruned = await fleet.setup.ok("POST", '/v1.42/volumes/prune?filters={"label!":["a=b"],"node":["node-a"]}')
    assert (sorted(pruned["VolumesDeleted"]), pruned["SpaceReclaimed"]) == ([older], 1)
    pruned = await fleet.setup.ok("POST", "/v1.42/volumes/prune")
    assert sorted(pruned["VolumesDeleted"]) == sorted([made, older])
    assert [sorted(store.volumes) for store in fleet.stores.values()] == [sorted(["data", used]), sorted(["data", used]), ["data"]]
    pruned = await fleet.setup.ok("POST", '/v1.42/volumes/prune?filters={"all":["1"]}')
    assert pruned["VolumesDeleted"] == ["data"]


async def test_what_no_node_has_is_refused_in_an_engines_words(fleet: Fleet) -> None:
    """Each request has its own; only an Engine knows them all."""
    assert await fleet.setup.refused("GET", "/images/nosuch/json") == (404, "No such image: nosuch")
    assert await fleet.setup.refused("GET", "/images/get?names=nosuch") == (404, "save: nosuch")
    await fleet.lose("nc")
    assert await fleet.setup.refused("GET", "/images/nosuch/json") == (
        404, "No such image: nosuch (node-c (heartbeat failure) could not be asked)",
    )  # fmt: skip


async def test_a_repository_is_saved_where_any_of_its_tags_is(fleet: Fleet) -> None:
    fleet.stores["node-b"].images["app:2"] = "sha256:2"
    fleet.stores["node-c"].images["other:1"] = "sha256:3"
    async with fleet.setup.session.get("http://d/images/get?names=app") as response:
        assert await response.read() == b"archive of app from node-b"
    assert await fleet.setup.refused("GET", "/images/get?names=app&names=other:1") == (404, "No node has all of these images: app, other:1")


async def test_networks_are_not_pruned_by_a_filter_that_the_engines_refuse(fleet: Fleet) -> None:
    for store in fleet.stores.values():
        store.refuses["network-prune"] = (500, "failed to parse value")
    await fleet.setup.ok("POST", "/networks/create", {"Name": "unused", "Driver": "overlay"})
    assert await fleet.setup.refused("POST", '/networks/prune?filters={"until":["x"]}') == (500, "failed to parse value")
    assert (await fleet.setup.ok("GET", "/networks/unused"))["Name"] == "unused"
