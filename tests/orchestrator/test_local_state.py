from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import local_state
from orchestrator.errors import ConfigError
from orchestrator.local_state import LocalState

STATE = LocalState(
    cluster_id="c", node_id="n", advertise_addr="192.0.2.1", data_addr="192.0.2.1", listen="0.0.0.0:2377", managers=("192.0.2.1:2377",)
)


def test_nothing_saved_save_load_erase(tmp_path: Path) -> None:
    directory = tmp_path / "new"
    assert local_state.load(directory) is None
    local_state.save(directory, STATE)
    assert local_state.load(directory) == STATE
    assert ((directory / "node.json").stat().st_mode & 0o777) == 0o600
    local_state.erase(directory)
    local_state.erase(directory)
    assert local_state.load(directory) is None


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"cluster_id": 7}', b"\xff"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "node.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"node\.json can't be used: .*remove it"):
        local_state.load(tmp_path)
