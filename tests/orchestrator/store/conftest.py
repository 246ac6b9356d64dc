from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.store import Delete, Store
from orchestrator.store.memory import MemoryStore
from orchestrator.store.sealing import Sealed, new_key
from tests.orchestrator.store.etcds import Etcds

_KEY = new_key()
Opener = Callable[[], Awaitable[Store]]


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcds]:
    etcds = Etcds(tmp_path_factory.mktemp("etcd"))
    try:
        yield etcds
    finally:
        etcds.stop()


@pytest.fixture(params=["memory", "etcd"])
async def open_store(request: pytest.FixtureRequest) -> AsyncIterator[Opener]:
    """Opens stores on one backend, empty at the start of the test: as several managers have it."""
    opened: list[Store] = []
    if request.param == "memory":
        memory = MemoryStore()

        async def open_one() -> Store:
            opened.append(memory)
            return memory
    else:
        etcds: Etcds = request.getfixturevalue("etcd")

        async def open_one() -> Store:
            # as managers have it: sealed
            store = await etcds.open(sealing=Sealed(_KEY))
            opened.append(store)
            return store

        cleaner = await open_one()
        names = [(kind, id) for kind, table in cleaner.snapshot().tables.items() for id in table]
        for start in range(0, len(names), cleaner.max_changes):
            await cleaner.commit([Delete(kind, id) for kind, id in names[start : start + cleaner.max_changes]])  # type: ignore[arg-type]
    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
async def store(open_store: Opener) -> Store:
    return await open_store()


@pytest.fixture
def etcds_of(tmp_path: Path) -> Iterator[Callable[[int], Etcds]]:
    """Clusters of the test's own, ended with it."""
    made: list[Etcds] = []

    def make(count: int) -> Etcds:
        made.append(Etcds(tmp_path / f"cluster{len(made)}", count))
        return made[-1]

    yield make
    for etcds in made:
        etcds.stop()
