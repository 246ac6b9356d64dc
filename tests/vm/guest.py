"""Tests marked `vm` run in the virtual machine: one boot for all of them, their reports replayed here as if they had run here.

Edge. The guest runs pytest over the same files with the same names of tests, and writes each report down as it comes. So a test
marked `vm` is an ordinary test; it may even be run by hand on a machine whose kernel has ip_vs, with MESHD_GUEST=1.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from tests.vm import machine

MARK: Final = "vm"
_TIMEOUT_S: Final = 900.0
_REPORTS: Final = "reports"
_RESULTS: Final = pytest.StashKey[dict[str, list[pytest.TestReport]]]()


def is_guest() -> bool:
    return "MESHD_GUEST" in os.environ


def skip_or_prepare(items: list[pytest.Item]) -> None:
    """On the host, at collection: without a machine they are skipped with the reason; with one, no timer runs here."""
    ours = [item for item in items if item.get_closest_marker(MARK)]
    if is_guest() or not ours:
        return
    try:
        machine.kernel()
    except machine.Unavailable as error:
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=str(error)))
    else:
        for item in ours:
            item.add_marker(pytest.mark.timeout(0))


def replay(item: pytest.Item) -> bool:
    """For pytest_runtest_protocol: True when `item` is one for the guest and has been reported. The first one boots it for all."""
    if is_guest() or not item.get_closest_marker(MARK) or item.get_closest_marker("skip"):
        return False
    stash = item.session.stash
    if _RESULTS not in stash:
        stash[_RESULTS] = _run([i for i in item.session.items if i.get_closest_marker(MARK) and not i.get_closest_marker("skip")])
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in stash[_RESULTS][item.nodeid]:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def write_report(report: pytest.TestReport, config: pytest.Config) -> None:
    """For pytest_runtest_logreport, in the guest."""
    if is_guest() and (share := Path(machine.GUEST_SHARE)).is_dir():
        line = json.dumps(config.hook.pytest_report_to_serializable(config=config, report=report))
        with (share / _REPORTS).open("a") as f:
            f.write(line + "\n")


def _run(items: list[pytest.Item]) -> dict[str, list[pytest.TestReport]]:
    config = items[0].config
    with machine.shared_directory() as share:
        (share / "tests.json").write_text(json.dumps([item.nodeid for item in items]))
        start = time.monotonic()
        program = "import json, pytest, sys; sys.exit(pytest.main(['-p', 'no:cacheprovider', '--tb=short', *json.load(open(sys.argv[1]))]))"
        failure = ""
        try:
            done = machine.run([sys.executable, "-c", program, f"{machine.GUEST_SHARE}/tests.json"], share, timeout_s=_TIMEOUT_S)
            failure = f"pytest in the guest ended with {done.exit_code} and without a report of this test:\n{done.output[-3000:]}"
        except machine.GuestFailed as error:
            failure = str(error)
        found: dict[str, list[pytest.TestReport]] = {item.nodeid: [] for item in items}
        reports = share / _REPORTS
        for line in reports.read_text().splitlines() if reports.exists() else ():
            report = config.hook.pytest_report_from_serializable(config=config, data=json.loads(line))
            found.setdefault(report.nodeid, []).append(report)
        for item in items:
            if not any(report.when == "teardown" for report in found[item.nodeid]):
                lost = pytest.TestReport(item.nodeid, item.location, {}, "failed", failure, "call", duration=time.monotonic() - start)
                found[item.nodeid].append(lost)
    return found
