"""The part of an Engine that has images, volumes and local networks, small and strict; faults are set by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.orchestrator.api.fake_events import FakeEvents
from tests.orchestrator.api.fakes import Setup, a_node, other_node, serving


class FakeStores:
    """refuses: operation ("pull", "load", "rmi", "volume-rm", ...) -> (status, message). images: name -> id."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.images: dict[str, str] = {}
        self.volumes: dict[str, dict[str, Any]] = {}
        self.used: set[str] = set()
        self.networks: list[dict[str, Any]] = [{"Name": "bridge", "Id": f"bridge-{name}", "Driver": "bridge", "Labels": None}]
        self.refuses: dict[str, tuple[int, str]] = {}
        self.fails_midway = ""
        self.loaded: list[bytes] = []
        self.broken_uploads = 0
        self.asked: list[str] = []
        self.events = FakeEvents()
        # an upload is not read any further while this is unset
        self.reads = asyncio.Event()
        self.reads.set()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._refused])
        p = "/v{version}"
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1.41/version", self._version)
        app.router.add_get(p + "/info", self._info)
        app.router.add_get(p + "/events", self.events.serve)
        app.router.add_get(p + "/images/json", self._list)
        app.router.add_post(p + "/images/create", self._pull, name="pull")
        app.router.add_post(p + "/images/load", self._load, name="load")
        app.router.add_get(p + "/images/get", self._save_all)
        app.router.add_get(p + "/images/{name:.+}/json", self._inspect)
        app.router.add_get(p + "/images/{name}/get", self._save)
        app.router.add_delete(p + "/images/{name}", self._remove, name="rmi")
        app.router.add_get(p + "/volumes", self._volumes)
        app.router.add_post(p + "/volumes/create", self._volume_create, name="volume-create")
        app.router.add_get(p + "/volumes/{name}", self._volume)
        app.router.add_delete(p + "/volumes/{name}", self._volume_remove, name="volume-rm")
        app.router.add_get(p + "/networks", self._networks)
        app.router.add_post(p + "/networks/create", self._network_create)
        app.router.add_get(p + "/networks/{id}", self._network)
        app.router.add_get(p + "/system/df", self._df)
        app.router.add_post(p + "/build", self._build)
        app.router.add_post(p + "/session", self._build)
        app.router.add_post(p + "/volumes/prune", self._volumes_prune)
        app.router.add_post(p + "/networks/prune", self._networks_prune, name="network-prune")
        return app

    @web.middleware
    async def _refused(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.rel_url.raw_path}")
        name = request.match_info.route.name or ""
        if name in self.refuses:
            status, message = self.refuses[name]
            return web.json_response({"message": message}, status=status)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": "1.41", "MinAPIVersion": "1.12"})

    async def _info(self, request: web.Request) -> web.Response:
        counted = {"Containers": 2, "ContainersRunning": 1, "Images": len(self.images), "NCPU": 4, "MemTotal": 1 << 30}
        return web.json_response({**counted, **self.events.info()})

    async def _list(self, request: web.Request) -> web.Response:
        found: dict[str, list[str]] = {}
        wanted = json.loads(request.query.get("filters", "{}")).get("reference")
        for name, id in self.images.items():
            if wanted and not {name, name.partition(":")[0]} & set(wanted):
                continue
            found.setdefault(id, []).append(name)
        return web.json_response(
            [
                {"Id": id, "RepoTags": names, "RepoDigests": None, "Created": 1, "Containers": -1, "Labels": None}
                for id, names in found.items()
            ]
        )

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        name = f"{request.query['fromImage']}:{request.query['tag']}"
        if request.query.get("fromSrc"):
            raise AssertionError("not here")
        answer = web.StreamResponse()
        await answer.prepare(request)
        lines: list[dict[str, Any]] = [{"status": "Pulling", "id": request.query["tag"]}, {"status": "Download complete", "id": "layer"}]
        if self.fails_midway:
            lines += [{"errorDetail": {"message": self.fails_midway}, "error": self.fails_midway}]
        else:
            new = name not in self.images
            self.images[name] = f"sha256:{name}"
            lines += [{"status": "Digest: sha256:1"}, {"status": f"Status: {'Downloaded newer' if new else 'Up to date'} image for {name}"}]
        for line in lines:
            await answer.write(json.dumps(line).encode() + b"\r\n")
        return answer

    async def _load(self, request: web.Request) -> web.StreamResponse:
        body = b""
        try:
            async for chunk in request.content.iter_any():
                body += chunk
                await self.reads.wait()
        except (asyncio.CancelledError, OSError):
            self.broken_uploads += 1
            raise
        self.loaded.append(body)
        return web.json_response({"stream": "Loaded image: loaded:1\n"})

    async def _inspect(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.images:
            return web.json_response({"message": f"No such image: {name}"}, status=404)
        return web.json_response({"Id": self.images[name], "Here": self.name})

    async def _save(self, request: web.Request) -> web.Response:
        return web.Response(body=f"archive of {request.match_info['name']} from {self.name}".encode())

    async def _save_all(self, request: web.Request) -> web.Response:
        names = request.query.getall("names")
        if not all(any(wanted in (name, name.partition(":")[0]) for name in self.images) for wanted in names):
            return web.json_response({"message": f"save: {' '.join(names)}"}, status=404)
        return web.Response(body=f"archive of {' '.join(names)} from {self.name}".encode())

    async def _remove(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if self.images.pop(name, None) is None:
            return web.json_response({"message": f"No such image: {name}"}, status=404)
        return web.json_response([{"Untagged": name}])

    async def _volumes(self, request: web.Request) -> web.Response:
        wanted = json.loads(request.query.get("filters", "{}"))
        shown = [
            volume
            for name, volume in self.volumes.items()
            if any(part in name for part in wanted.get("name", [""])) and (wanted.get("dangling") != ["false"] or name in self.used)
        ]
        return web.json_response({"Volumes": shown or None, "Warnings": None})

    async def _volume_create(self, request: web.Request) -> web.Response:
        sent = await request.json()
        self.volumes[sent["Name"]] = {
            "Name": sent["Name"],
            "Driver": sent.get("Driver") or "local",
            "Labels": sent.get("Labels"),
            "At": self.name,
        }
        return web.json_response(self.volumes[sent["Name"]], status=201)

    async def _volume(self, request: web.Request) -> web.Response:
        volume = self.volumes.get(request.match_info["name"])
        return web.json_response(volume or {"message": "no such volume"}, status=200 if volume else 404)

    async def _volume_remove(self, request: web.Request) -> web.Response:
        if request.match_info["name"] in self.used:
            return web.json_response({"message": "volume is in use"}, status=409)
        if self.volumes.pop(request.match_info["name"], None) is None:
            return web.json_response({"message": "no such volume"}, status=404)
        return web.Response(status=204)

    async def _networks(self, request: web.Request) -> web.Response:
        return web.json_response(self.networks)

    async def _network_create(self, request: web.Request) -> web.Response:
        """As dockerd: it looks for duplicates first, and everything begins with no name at all."""
        sent = await request.json()
        name = sent.get("Name") or ""
        if sent.get("CheckDuplicate") and any(network["Name"].startswith(name) for network in self.networks):
            return web.json_response({"message": f"network with name {name} already exists"}, status=409)
        if not name:
            return web.json_response({"message": "invalid name: "}, status=500)
        self.networks.append({"Name": name, "Id": f"{name}-{self.name}", "Driver": "bridge", "Labels": None})
        return web.json_response({"Id": f"{name}-{self.name}"}, status=201)

    async def _network(self, request: web.Request) -> web.Response:
        asked = request.match_info["id"]
        found = next((network for network in self.networks if asked in (network["Name"], network["Id"])), None)
        return web.json_response(found or {"message": f"network {asked} not found"}, status=200 if found else 404)

    async def _build(self, request: web.Request) -> web.Response:
        return web.json_response({"stream": f"{await request.text()} on {self.name}"})

    async def _volumes_prune(self, request: web.Request) -> web.Response:
        for key in json.loads(request.query.get("filters", "{}")):
            if key not in ("label", "label!"):
                return web.json_response({"message": f"Invalid filter '{key}'"}, status=400)
        deleted = sorted(self.volumes)
        self.volumes.clear()
        return web.json_response({"VolumesDeleted": deleted, "SpaceReclaimed": len(deleted)})

    async def _networks_prune(self, request: web.Request) -> web.Response:
        return web.json_response({"NetworksDeleted": None})

    async def _df(self, request: web.Request) -> web.Response:
        volumes = [
            {**volume, "UsageData": {"RefCount": int(name in self.used), "Size": 1}} for name, volume in self.volumes.items()
        ]  # fmt: skip
        images = [{"Id": "i", "Labels": None, "Size": 10}]
        return web.json_response({"LayersSize": 10, "Images": images, "Containers": [], "Volumes": volumes or None})


@asynccontextmanager
async def three_nodes(directory: Path, stores: Mapping[str, FakeStores]) -> AsyncIterator[Setup]:
    """A cluster of node-a, which is asked, node-b and node-c, with these Engines."""
    async with AsyncExitStack() as stack:
        setup = await stack.enter_async_context(serving(directory, stores["node-a"]))
        await setup.init()
        for id, name in (("nb", "node-b"), ("nc", "node-c")):
            await stack.enter_async_context(other_node(setup, directory, a_node(id, name), stores[name].app()))
        yield setup
