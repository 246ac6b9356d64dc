from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.security import api_certificates
from tests.orchestrator.api.fakes import Setup, controlled, serving


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Setup]:
    """A node in no cluster."""
    async with serving(tmp_path) as setup:
        yield setup


@pytest.fixture
async def manager(node: Setup) -> AsyncIterator[Setup]:
    """The only manager of a cluster whose control loops do nothing."""
    await node.init()
    yield node


@pytest.fixture
async def cluster(manager: Setup) -> AsyncIterator[Setup]:
    """The only manager of a cluster that runs what it is told to."""
    async with controlled(manager):
        yield manager


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `meshd api-certs` makes, for clients alice and bob."""
    directory = tmp_path_factory.mktemp("api") / "certs"
    api_certificates.make(directory, ["alice", "bob"], ["127.0.0.1", "localhost"], datetime.now(UTC))
    return directory
