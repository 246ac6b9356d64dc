"""A Status as Prometheus metrics.

`families` is pure; edge: `serve` answers HTTP from a thread of its own. What the figures mean is in their help texts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily, Metric

from dnsd.errors import ConfigError
from dnsd.model import Durations, Status
from dnsd.resolvers import parse_endpoint
from dnsd.server import Server

_TIMEOUT_S = 5.0

# Counter of Status.counters -> metric, help.
_COUNTERS = {
    "cache_hits": ("dnsd_cache_hits", "Questions to others that the cache answered."),
    "cache_misses": ("dnsd_cache_misses", "Questions for which other servers had to be asked."),
    "stale": ("dnsd_cache_stale", "Expired answers given because nobody had a newer one (RFC 8767)."),
    "joined": ("dnsd_forward_joined", "Questions that waited for another asker's flight instead of starting their own."),
    "refused_full": ("dnsd_forward_refused", "Questions refused because too many were waiting for other servers."),
    "servfail": ("dnsd_forward_failures", "Questions that ended in SERVFAIL because no upstream answered."),
    "loops": ("dnsd_forward_loops", "Upstreams found to lead back to this server."),
    "tcp_connections": ("dnsd_tcp_connections", "TCP connections accepted."),
    "tcp_refused": ("dnsd_tcp_refused", "TCP connections refused because there were too many."),
    "unsent": ("dnsd_unsent", "Answers the kernel did not take."),
    "bugs": ("dnsd_bugs", "Queries that met a bug of this server and got SERVFAIL."),
    "applied": ("dnsd_states_applied", "States (all zones and scopes) applied."),
}


def families(status: Status) -> Iterator[Metric]:
    yield InfoMetricFamily("dnsd", "The DNS server of this node.", {"version": status.version})
    yield GaugeMetricFamily("dnsd_uptime_seconds", "Since the process started.", status.uptime_s)
    answers = CounterMetricFamily("dnsd_answers", "Answers by type of the question and response code.", labels=("type", "rcode"))
    for answer in status.answers:
        answers.add_metric((answer.type, answer.rcode), answer.count)
    yield answers
    seconds = HistogramMetricFamily(
        "dnsd_answer_seconds",
        "From reading a query to sending its answer: of own and cached names, or from upstreams.",
        labels=("from",),
    )
    for origin, durations in (("own", status.own), ("upstream", status.forwarded)):
        seconds.add_metric((origin,), _buckets(durations), durations.sum_s)
    yield seconds
    for key, (name, text) in _COUNTERS.items():
        yield CounterMetricFamily(name, text, status.counters.get(key, 0))
    yield GaugeMetricFamily("dnsd_cache_entries", "Answers of others that are kept.", status.counters.get("cache_entries", 0))
    yield GaugeMetricFamily("dnsd_tcp_open", "TCP connections that are open.", status.counters.get("tcp_open", 0))
    yield GaugeMetricFamily("dnsd_names", "Names served.", sum(zone.names for zone in status.zones))
    scopes = GaugeMetricFamily("dnsd_scopes", "Askers with an open socket, and those whose socket can't be opened.", labels=("state",))
    failed = sum(bool(scope.reason) for scope in status.scopes)
    scopes.add_metric(("open",), len(status.scopes) - failed)
    scopes.add_metric(("failed",), failed)
    yield scopes
    yield from _upstreams(status)


def exposition(status: Status) -> str:
    """The text that Prometheus reads."""
    return generate_latest(_Collector(lambda: families(status))).decode()


def serve(server: Server, listen: str) -> None:
    """From now on http://<listen>/metrics, until the process ends. ConfigError: it can't be listened on."""
    host, port = parse_endpoint(listen)
    loop = asyncio.get_running_loop()

    async def status() -> Status:
        return server.status()

    def collect() -> Iterable[Metric]:
        # The server's own thread looks, nobody reads what it is changing.
        return families(asyncio.run_coroutine_threadsafe(status(), loop).result(_TIMEOUT_S))

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(collect))
    try:
        start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigError(f"metrics can't be served on {listen}: {error.strerror or error}") from error


class _Collector:
    """What prometheus_client's registries and writers ask for metrics."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self.collect = collect


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    bounds = [*map(repr, durations.bounds_s), "+Inf"]
    return list(zip(bounds, map(float, accumulate(durations.buckets)), strict=True))


def _upstreams(status: Status) -> Iterator[Metric]:
    queries = CounterMetricFamily("dnsd_upstream_queries", "Queries to an upstream by outcome.", labels=("upstream", "outcome"))
    up = GaugeMetricFamily("dnsd_upstream_up", "1: it answers; 0: it was silent lately, or leads back here.", labels=("upstream",))
    rtt = GaugeMetricFamily("dnsd_upstream_rtt_seconds", "Round trip to an upstream, smoothed.", labels=("upstream",))
    for health in status.health:
        for outcome, count in (("answered", health.answered), ("failed", health.failed), ("silent", health.silent)):
            queries.add_metric((health.address, outcome), count)
        up.add_metric((health.address,), health.state == "up")
        rtt.add_metric((health.address,), health.rtt_s)
    yield from (queries, up, rtt)
