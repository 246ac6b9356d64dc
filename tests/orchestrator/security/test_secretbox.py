from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.security import secretbox

KEY = secretbox.new_key()


@given(st.binary(max_size=2000))
def test_what_goes_in_comes_out(plain: bytes) -> None:
    box = secretbox.encrypt(KEY, plain)
    assert secretbox.decrypt(KEY, box) == plain
    assert box != secretbox.encrypt(KEY, plain)
    assert len(plain) < 8 or plain not in box


@given(st.integers(min_value=0), st.integers(1, 255))
def test_any_changed_byte_is_noticed(at: int, flip: int) -> None:
    box = bytearray(secretbox.encrypt(KEY, b"the secret"))
    box[at % len(box)] ^= flip
    with pytest.raises(ConfigError, match="stored secret"):
        secretbox.decrypt(KEY, bytes(box))


def test_every_shorter_box_is_noticed() -> None:
    box = secretbox.encrypt(KEY, b"x")
    for length in range(len(box)):
        with pytest.raises(ConfigError, match="stored secret"):
            secretbox.decrypt(KEY, box[:length])


def test_another_key_does_not_open_it() -> None:
    with pytest.raises(ConfigError, match="another cluster's key"):
        secretbox.decrypt(secretbox.new_key(), secretbox.encrypt(KEY, b"x"))
    with pytest.raises(ConfigError, match="has 3 bytes"):
        secretbox.encrypt(b"abc", b"x")
