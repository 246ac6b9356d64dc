"""What an embedder's registry shows of a mesh."""

from __future__ import annotations

from collections import Counter

from prometheus_client import CollectorRegistry, generate_latest

from mesh import NodeMesh, Totals
from mesh.metrics import collector


async def test_totals_are_exported_as_they_are_at_each_scrape() -> None:
    mesh = NodeMesh("x")
    registry = CollectorRegistry()
    registry.register(collector(mesh))  # type: ignore[arg-type]
    assert b"mesh_applies_total 0.0" in generate_latest(registry)
    mesh.totals = Totals(applies=3, resyncs=1, drift=Counter({"address": 2}), operations=Counter({"PutAddresses": 1}))
    text = generate_latest(registry)
    assert b"mesh_applies_total 3.0" in text
    assert b'mesh_drift_total{kind="address"} 2.0' in text
    assert b'mesh_operations_total{kind="PutAddresses"} 1.0' in text
    await mesh.close()
