from __future__ import annotations

import itertools
import random
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.security import ca, identity
from orchestrator.security.identity import CERT_FILE, KEY_FILE, ROOT_FILE, Credentials, Identity, renewal_due
from tests.orchestrator.crash import crashing_at_every_step

from .clusters import CLUSTER_ID, TestCluster, now


@pytest.fixture
def cluster(tmp_path: Path) -> TestCluster:
    return TestCluster(tmp_path / "nodes")


def same(one: Identity, other: Identity) -> bool:
    return (one.certificate, one.key, one.root_certificate) == (other.certificate, other.key, other.root_certificate)


def test_it_is_read_back_and_only_the_owner_can_read_it(cluster: TestCluster, tmp_path: Path) -> None:
    given = cluster.identity("node1")
    Credentials.create(tmp_path / "state", given)
    loaded = Credentials.load(tmp_path / "state")
    assert loaded is not None
    assert same(loaded.identity, given)
    assert (loaded.identity.node_id, loaded.identity.role, loaded.identity.cluster_id) == ("node1", "worker", CLUSTER_ID)
    assert {path.name for path in (tmp_path / "state").iterdir()} == {CERT_FILE, KEY_FILE, ROOT_FILE}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "state").iterdir())
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert "PRIVATE" not in repr(given)
    loaded.erase()
    assert Credentials.load(tmp_path / "state") is None


def test_none_where_there_is_nothing(tmp_path: Path) -> None:
    assert Credentials.load(tmp_path / "nowhere") is None


@pytest.mark.parametrize("name", [CERT_FILE, KEY_FILE, ROOT_FILE])
@pytest.mark.parametrize("content", [None, "", "garbage"])
def test_a_damaged_identity_gets_a_sentence(cluster: TestCluster, tmp_path: Path, name: str, content: str | None) -> None:
    Credentials.create(tmp_path, cluster.identity("node1"))
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    if name == ROOT_FILE and content is not None:
        credentials = Credentials.load(tmp_path)
        assert credentials is not None
        with pytest.raises((ConfigError, OSError, ValueError)):
            _ = credentials.server_context
    else:
        with pytest.raises(ConfigError, match="leave the cluster and join again"):
            Credentials.load(tmp_path)


def test_a_crash_at_any_step_of_a_renewal_leaves_a_whole_identity(cluster: TestCluster, tmp_path: Path) -> None:
    old, new = cluster.identity("node1"), cluster.identity("node1")
    runs = itertools.count()

    def prepare() -> Path:
        directory = tmp_path / str(next(runs))
        Credentials.create(directory, old)
        return directory

    def renew(directory: Path) -> None:
        credentials = Credentials.load(directory)
        assert credentials is not None
        credentials.install(new)

    for directory in crashing_at_every_step(prepare, renew):
        loaded = Credentials.load(directory)
        assert loaded is not None
        assert same(loaded.identity, old) or same(loaded.identity, new)
    assert same(loaded.identity, new)


def test_key_and_certificate_must_belong_together(cluster: TestCluster) -> None:
    one, other = cluster.identity("node1"), cluster.identity("node1")
    with pytest.raises(ConfigError, match="don't belong together"):
        Identity.of(one.certificate, other.key, one.root_certificate)


def test_renewal_is_due_between_half_and_four_fifths_of_life() -> None:
    start = now()
    subject = ca.Subject("n", "worker", "c", start - ca.BACKDATE, start + timedelta(days=90))
    dues = [(renewal_due(subject, random.Random(seed)) - start) / timedelta(days=90) for seed in range(300)]
    assert 0.5 <= min(dues) < 0.52
    assert 0.78 < max(dues) <= 0.8


def test_contexts_are_made_once_and_nothing_old_is_spoken(cluster: TestCluster) -> None:
    cluster.directory.mkdir()
    credentials = cluster.credentials("node1")
    assert credentials.client_context() is credentials.client_context(identity.ANY_MANAGER)
    assert credentials.client_context("node2") is not credentials.client_context()
    for context in (credentials.server_context, credentials.client_context()):
        assert context.minimum_version.name == "TLSv1_3"
