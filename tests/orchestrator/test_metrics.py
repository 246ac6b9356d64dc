"""The node's figures over HTTP: in no cluster, in one, and with a DNS server that doesn't answer."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dnsd import DnsUnavailable, Server
from dnsd.model import Status
from dnsd.resolvers import NodeResolvers
from mesh.node import Totals
from orchestrator import metrics
from orchestrator.errors import ConfigError
from tests.dnsd.process import free_port


class Node:
    def __init__(self, server: Server | None) -> None:
        self._server = server

    def mesh_totals(self) -> Totals:
        return Totals(applies=7)

    async def dns_status(self) -> Status:
        if self._server is None:
            raise DnsUnavailable("no dnsd")
        return self._server.status()


async def test_figures_over_http() -> None:
    port = free_port()
    node: Node | None = None
    runner = await metrics.serve("127.0.0.1", port, lambda: node)
    try:

        async def read() -> dict[str, float]:
            async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as response:
                assert response.status == 200
                families = text_string_to_metric_families(await response.text())
                return {sample.name: sample.value for family in families for sample in family.samples}

        assert (await read()).keys() == {"meshd_info", "meshd_member"}
        node = Node(None)
        found = await read()
        assert (found["meshd_member"], found["meshd_dns_up"], found["mesh_applies_total"]) == (1, 0, 7)
        node = Node(Server(NodeResolvers(Path("/nonexistent"), Path("/nonexistent"))))
        found = await read()
        assert (found["meshd_dns_up"], found["dnsd_names"], found["dnsd_cache_hits_total"]) == (1, 0, 0)
        with pytest.raises(ConfigError, match=r"--metrics: 127\.0\.0\.1 port \d+ can't be listened on"):
            await metrics.serve("127.0.0.1", port, lambda: node)
    finally:
        await runner.cleanup()
