"""The node's figures for Prometheus over HTTP: its data plane's and its DNS server's.

Edge. Loaded only where `meshd daemon --metrics` asks for it. A DNS server that doesn't answer is a figure as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

from dnsd import metrics as dns_metrics
from dnsd.errors import DnsError
from dnsd.model import Status
from mesh import metrics as mesh_metrics
from mesh.node import Totals
from orchestrator.errors import ConfigError
from orchestrator.version import VERSION


class Node(Protocol):
    """`node.NodeRuntime`: what a member of a cluster runs."""

    def mesh_totals(self) -> Totals: ...

    async def dns_status(self) -> Status: ...


async def families(node: Node | None) -> list[Metric]:
    """None: this node is in no cluster."""
    found: list[Metric] = [
        InfoMetricFamily("meshd", "This daemon.", {"version": VERSION}),
        GaugeMetricFamily("meshd_member", "1: this node is in a cluster.", node is not None),
    ]
    if node is None:
        return found
    found += mesh_metrics.families(node.mesh_totals())
    try:
        of_dns = list(dns_metrics.families(await node.dns_status()))
    except DnsError:
        of_dns = []
    return [*found, GaugeMetricFamily("meshd_dns_up", "1: the node's DNS server answers meshd.", bool(of_dns)), *of_dns]


async def serve(host: str, port: int, node: Callable[[], Node | None]) -> web.AppRunner:
    """http://host:port/metrics, until the runner's cleanup. ConfigError: it can't be listened on."""

    async def answer(_request: web.Request) -> web.Response:
        text = generate_latest(_Collected(await families(node())))
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise ConfigError(f"--metrics: {host} port {port} can't be listened on: {error.strerror or error}") from error
    return runner


class _Collected:
    """What prometheus_client's writer asks for metrics."""

    def __init__(self, found: Iterable[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found
