"""Tests that need root, an Engine or a cluster are skipped, with a reason, where that isn't there."""

from __future__ import annotations

import os
import shutil

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = os.geteuid() == 0
    engine = shutil.which("dockerd") is not None
    for item in items:
        if not root and any(item.get_closest_marker(name) for name in ("root", "engine", "cluster")):
            item.add_marker(pytest.mark.skip(reason="needs root"))
        elif not engine and any(item.get_closest_marker(name) for name in ("engine", "cluster")):
            item.add_marker(pytest.mark.skip(reason="needs dockerd: apt-get install docker.io"))
