"""An Engine that has containers: strict about what it is asked, with dockerd's answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from typing import Any

from aiohttp import web

from tests.orchestrator.api.fakes import FakeEngine

_FILTERS = {"name", "id", "label", "status", "since", "before"}
_created = count(1_700_000_000)


class ContainerEngine(FakeEngine):
    """`images`: what it has. Ids of containers and exec instances are made from `mark`, unlike on any other Engine."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark
        self.images = {"img"}
        self.volumes: set[str] = set()
        self.local_networks = {"bridge"}
        self.containers: dict[str, dict[str, Any]] = {}
        self.execs: dict[str, str] = {}
        self.made = count(1)
        self.made_name: Callable[[], str] = lambda: f"made_up_{next(self.made)}"

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._remember])
        v = "/v{version}"
        for method, path, handler in (
            ("GET", "/containers/json", self._containers),
            ("POST", "/containers/create", self._container_create),
            ("POST", "/containers/prune", self._prune_containers),
            ("GET", "/containers/{id}/json", self._container),
            ("POST", "/containers/{id}/start", self._start),
            ("POST", "/containers/{id}/rename", self._rename),
            ("POST", "/containers/{id}/exec", self._exec),
            ("POST", "/containers/{id}/attach", self._attach),
            ("POST", "/containers/{id}/wait", self._wait),
            ("DELETE", "/containers/{id}", self._delete),
            ("POST", "/commit", self._commit),
            ("GET", "/exec/{id}/json", self._exec_json),
            ("GET", "/images/{name:.+}/json", self._image),
            ("GET", "/volumes", self._volumes),
            ("GET", "/networks", self._networks),
            ("GET", "/networks/{id}", self._inspect_network),
            ("POST", "/networks/{id}/connect", self._connect),
            ("POST", "/networks/{id}/disconnect", self._disconnect),
        ):
            app.router.add_route(method, v + path, handler)
        app.router.add_get("/version", self._version)
        app.router.add_route("*", "/{path:.*}", self._unknown)
        return app

    def _find(self, reference: str) -> dict[str, Any]:
        for step in (
            [one for one in self.containers.values() if one["Id"] == reference],
            [one for one in self.containers.values() if one["Name"] == reference],
            [one for one in self.containers.values() if one["Id"].startswith(reference)],
        ):
            if len(step) == 1:
                return step[0]
            if step:
                raise _Refused(400, f"Multiple IDs found with provided prefix: {reference}")
        raise _Refused(404, f"No such container: {reference}")

    @web.middleware
    async def _remember(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append((request.method, request.raw_path))
        try:
            return await handler(request)
        except _Refused as refused:
            return web.json_response({"message": refused.text}, status=refused.status)

    async def _containers(self, request: web.Request) -> web.Response:
        wanted = json.loads(request.query.get("filters", "{}"))
        for key in wanted:
            if key not in _FILTERS:
                raise _Refused(400, f"invalid filter '{key}'")
        limit = int(request.query.get("limit", "0"))
        shown = sorted(self.containers.values(), key=lambda one: -one["Created"])
        for name in wanted.get("since", ()):
            shown = shown[: shown.index(self._find(name))]
        if "all" not in request.query and not limit:
            shown = [one for one in shown if one["State"] == "running"]
        if "name" in wanted:
            shown = [one for one in shown if any(name in one["Name"] for name in wanted["name"])]
        return web.json_response(
            [
                {key: one[key] for key in ("Id", "Created", "State", "Image", "Labels")}
                | {"Names": [f"/{one['Name']}"], "Ports": [], "Mounts": [{"Name": name} for name in one["Volumes"]]}
                for one in shown[: limit or None]
            ]
        )

    async def _container_create(self, request: web.Request) -> web.Response:
        raw = await request.read()
        self.bodies.append(raw)
        body = json.loads(raw)
        name = request.query.get("name") or self.made_name()
        if not isinstance(body.get("HostConfig", {}), dict):
            raise _Refused(400, "json: cannot unmarshal")
        if body["Image"] not in self.images:
            raise _Refused(404, f"No such image: {body['Image']}:latest")
        endpoints = (body.get("NetworkingConfig") or {}).get("EndpointsConfig") or {}
        if len(endpoints) > 1:
            raise _Refused(400, f"Container cannot be connected to network endpoints: {', '.join(endpoints)}")
        if any(one["Name"] == name for one in self.containers.values()):
            raise _Refused(409, f'Conflict. The container name "/{name}" is already in use')
        id = f"{next(self.made):08x}".ljust(60, "0") + self.mark.rjust(4, "0")
        id = id[::-1]
        binds = (body.get("HostConfig") or {}).get("Binds") or ()
        self.containers[id] = {
            "Id": id, "Name": name, "Created": next(_created), "State": "created", "Image": body["Image"],
            "Labels": body.get("Labels") or {}, "Volumes": [bind.partition(":")[0] for bind in binds if not bind.startswith("/")],
            "Networks": endpoints, "MacAddress": body.get("MacAddress", ""),
        }  # fmt: skip
        return web.json_response({"Id": id, "Warnings": []}, status=201)

    async def _container(self, request: web.Request) -> web.Response:
        one = self._find(request.match_info["id"])
        return web.json_response(
            {"Id": one["Id"], "Name": f"/{one['Name']}", "Created": _moment(one["Created"]), "Config": {"Labels": one["Labels"]}}
        )

    async def _start(self, request: web.Request) -> web.Response:
        self._find(request.match_info["id"])["State"] = "running"
        return web.Response(status=204)

    async def _rename(self, request: web.Request) -> web.Response:
        self._find(request.match_info["id"])["Name"] = request.query["name"]
        return web.Response(status=204)

    async def _delete(self, request: web.Request) -> web.Response:
        del self.containers[self._find(request.match_info["id"])["Id"]]
        return web.Response(status=204)

    async def _prune_containers(self, request: web.Request) -> web.Response:
        gone = [id for id, one in self.containers.items() if one["State"] != "running"]
        for id in gone:
            del self.containers[id]
        return web.json_response({"ContainersDeleted": gone or None, "SpaceReclaimed": 10 * len(gone)})

    async def _commit(self, request: web.Request) -> web.Response:
        self._find(request.query["container"])
        return web.json_response({"Id": f"sha256:{self.mark}"}, status=201)

    async def _exec(self, request: web.Request) -> web.Response:
        self._find(request.match_info["id"])
        id = f"{self.mark}{len(self.execs)}".rjust(64, "e")
        self.execs[id] = (await request.read()).decode()
        return web.json_response({"Id": id}, status=201)

    async def _exec_json(self, request: web.Request) -> web.Response:
        if request.match_info["id"] not in self.execs:
            raise _Refused(404, f"No such exec instance: {request.match_info['id']}")
        return web.json_response({"ID": request.match_info["id"], "ExitCode": int(self.mark, 16)})

    async def _image(self, request: web.Request) -> web.Response:
        if request.match_info["name"] not in self.images:
            raise _Refused(404, "No such image")
        return web.json_response({"Id": "sha256:1"})

    async def _volumes(self, request: web.Request) -> web.Response:
        names = json.loads(request.query["filters"])["name"]
        return web.json_response({"Volumes": [{"Name": name} for name in self.volumes if any(part in name for part in names)] or None})

    def _network(self, request: web.Request) -> str:
        """Its name."""
        reference = request.match_info["id"]
        for name in self.local_networks:
            if reference in (name, f"id-{name}-{self.mark}"):
                return name
        raise _Refused(404, f"network {reference} not found")

    async def _inspect_network(self, request: web.Request) -> web.Response:
        name = self._network(request)
        return web.json_response({"Name": name, "Id": f"id-{name}-{self.mark}"})

    async def _connect(self, request: web.Request) -> web.Response:
        body, network = await request.json(), self._network(request)
        self._find(body["Container"])["Networks"][network] = body.get("EndpointConfig")
        return web.Response()

    async def _disconnect(self, request: web.Request) -> web.Response:
        body, network = await request.json(), self._network(request)
        del self._find(body["Container"])["Networks"][network]
        return web.Response()

    async def _networks(self, request: web.Request) -> web.Response:
        return web.json_response([{"Name": name, "Id": f"id-{name}-{self.mark}"} for name in self.local_networks])


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.123456789Z")
