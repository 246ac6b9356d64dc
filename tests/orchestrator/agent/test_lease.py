"""What fenced tasks live on: kept over restarts of the process, lost with the machine's boot."""

from __future__ import annotations

from pathlib import Path

from orchestrator.agent.lease import Lease


def test_it_ages_and_is_never_older_than_the_best_proof(tmp_path: Path) -> None:
    now = [100.0]
    lease = Lease(tmp_path / "run" / "lease.json", lambda: now[0])
    assert lease.age_s() == float("inf")
    lease.heard(2.0)
    assert lease.age_s() == 2.0
    now[0] = 105.0
    assert lease.age_s() == 7.0
    lease.heard(20.0)
    assert lease.age_s() == 7.0, "an older proof takes nothing away"
    lease.fence("t1")
    lease.fence("t2")
    now[0] = 110.0
    heir = Lease(tmp_path / "run" / "lease.json", lambda: now[0])
    assert heir.age_s() == 12.0 and heir.fenced == {"t1", "t2"}
    heir.forget(frozenset({"t2", "t3"}))
    assert Lease(tmp_path / "run" / "lease.json").fenced == {"t2"}


def test_a_file_that_can_not_be_read_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    path.write_text("{")
    lease = Lease(path)
    assert lease.age_s() == float("inf")
    lease.heard(0.0)
    assert Lease(path).age_s() < 1000
