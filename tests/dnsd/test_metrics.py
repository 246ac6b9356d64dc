"""Metrics: what Prometheus reads of a server that was asked a few things."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dnsd import ConfigError, DnsState, ScopeSpec, Server, ServiceName, ZoneSpec, metrics
from dnsd.resolvers import NodeResolvers
from tests.dnsd.ask import ask
from tests.dnsd.process import free_port
from tests.dnsd.upstream import Upstream


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read().decode())


async def test_what_prometheus_reads() -> None:
    server = Server(NodeResolvers(Path("/nonexistent"), Path("/nonexistent")))
    zone = ZoneSpec(network="n", name="net", services=(ServiceName(id="w", name="web", vips=("10.0.0.2",)),))
    async with Upstream(lambda record, tcp: record.reply()) as upstream:
        try:
            scope = ScopeSpec(id="s", netns="", networks=("n",), listen="127.0.0.1:0", upstreams=(upstream.address,))
            await server.apply(DnsState(zones=(zone,), scopes=(scope, ScopeSpec(id="t", netns="/nonexistent"))))
            for name, kind in (("web", "A"), ("web", "A"), ("web", "AAAA"), ("nosuch", "A"), ("example.com", "MX")):
                await ask(server.address("s"), name, kind)
            port = free_port()
            metrics.serve(server, f"127.0.0.1:{port}")
            text = await asyncio.to_thread(read, f"http://127.0.0.1:{port}/metrics")
            with pytest.raises(ConfigError, match="can't be served"):
                metrics.serve(server, f"127.0.0.1:{port}")
            differing = set(metrics.exposition(server.status()).splitlines()) - set(text.splitlines())
            assert all("uptime" in line for line in differing)
        finally:
            await server.close()
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    samples = {(sample.name, *sorted(sample.labels.items())): sample.value for sample in found}
    for kind, rcode, count in (("A", "NOERROR", 2), ("AAAA", "NOERROR", 1), ("A", "NXDOMAIN", 1), ("MX", "NOERROR", 1)):
        assert samples[("dnsd_answers_total", ("rcode", rcode), ("type", kind))] == count
    for origin, count in (("own", 4), ("upstream", 1)):
        assert samples[("dnsd_answer_seconds_count", ("from", origin))] == count
        assert samples[("dnsd_answer_seconds_bucket", ("from", origin), ("le", "+Inf"))] == count
        assert samples[("dnsd_answer_seconds_sum", ("from", origin))] > 0
    assert samples[("dnsd_cache_misses_total",)] == 1
    assert samples[("dnsd_upstream_queries_total", ("outcome", "answered"), ("upstream", upstream.address))] == 1
    assert samples[("dnsd_upstream_up", ("upstream", upstream.address))] == 1
    assert samples[("dnsd_upstream_rtt_seconds", ("upstream", upstream.address))] > 0
    assert samples[("dnsd_scopes", ("state", "open"))] == samples[("dnsd_scopes", ("state", "failed"))] == 1
    assert samples[("dnsd_names",)] == 1
