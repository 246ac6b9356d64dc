"""What a NodeMesh has done, as Prometheus metrics, for whoever embeds it: `registry.register(collector(mesh))`.

Pure but for reading the clock-free counts of a living mesh at each scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric

from mesh.node import NodeMesh, Totals


def families(totals: Totals) -> Iterator[Metric]:
    yield CounterMetricFamily("mesh_applies", "Desired states applied.", totals.applies)
    yield CounterMetricFamily("mesh_resyncs", "Applies that read the kernel whole.", totals.resyncs)
    yield CounterMetricFamily("mesh_errors", "Objects that an apply could not put into place.", totals.errors)
    yield CounterMetricFamily("mesh_busy_seconds", "Time spent applying.", totals.busy_s)
    operations = CounterMetricFamily("mesh_operations", "Operations on the kernel.", labels=("kind",))
    for kind, count in sorted(totals.operations.items()):
        operations.add_metric((kind,), count)
    drift = CounterMetricFamily("mesh_drift", "Objects that somebody else had changed, found and repaired.", labels=("kind",))
    for kind, count in sorted(totals.drift.items()):
        drift.add_metric((kind,), count)
    yield from (operations, drift)


class _Collector:
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self.collect = collect


def collector(mesh: NodeMesh) -> _Collector:
    return _Collector(lambda: families(mesh.totals))
