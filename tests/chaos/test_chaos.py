"""A minute and a half of everything going wrong with three managers and a worker; `make chaos` is the long one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.lab.lab import Lab
from tests.lab.temporary import temporary_lab

from . import faults
from .picture import svg
from .run import Run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
MANAGERS, NODES = 3, 4


@pytest.fixture
def lab() -> Iterator[Lab]:
    with temporary_lab("chaos", environment=faults.environment) as lab:
        faults.prepare(lab, NODES)
        lab.up(NODES, managers=MANAGERS)
        yield lab


def test_nothing_that_was_told_is_untrue_and_the_cluster_comes_to_rest(lab: Lab, tmp_path: Path) -> None:
    told: list[str] = []
    run = Run(lab, MANAGERS, seed=17, duration_s=90.0, converges_within_s=180.0, tell=told.append)
    report = asyncio.run(run.play())
    (tmp_path / "chaos.svg").write_text(svg(report.story))
    if not report.good:
        faults.copy_logs(lab, tmp_path)
    said = "\n".join([*report.lines, *told, f"the picture and the nodes' logs: {tmp_path}"])
    assert report.violations == [], said
    assert report.lacks == [], said
    assert report.calm_failures == [], said
    # what proves nothing must not pass
    acknowledged = [op for op in run.clients.ops if op.kind != "read" and op.outcome == "ok"]
    assert len(acknowledged) >= 20 and len(run.faults) - run.skipped >= 10, said
