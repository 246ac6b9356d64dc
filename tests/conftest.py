"""Tests that need root, an Engine, a cluster or a virtual machine are skipped, with a reason, where that isn't there.

Hypothesis draws the same examples in every run, so that a change is judged by its own merits; HYPOTHESIS_PROFILE=default searches on.
"""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import HealthCheck, settings

from tests.vm import guest

settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = os.geteuid() == 0
    engine = shutil.which("dockerd") is not None
    for item in items:
        if not root and any(item.get_closest_marker(name) for name in ("root", "engine", "cluster", "vm")):
            item.add_marker(pytest.mark.skip(reason="needs root"))
        elif not engine and any(item.get_closest_marker(name) for name in ("engine", "cluster")):
            item.add_marker(pytest.mark.skip(reason="needs dockerd: apt-get install docker.io"))
    if root:
        guest.skip_or_prepare(items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if not guest.replay(item):
        return None
    # what tests before this one have set up for its module ends here, as if this one had run here
    item.session._setupstate.teardown_exact(nextitem)
    return True


_config: pytest.Config | None = None


def pytest_configure(config: pytest.Config) -> None:
    global _config
    _config = config


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if _config is not None:
        guest.write_report(report, _config)
