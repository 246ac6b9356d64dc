"""Values at rest: what is sealed opens under its key and its name, and no nonce is used twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.store.sealing import Open, Sealed, new_key, sealing

KEY = bytes(range(32))


@given(st.binary(max_size=2000), st.binary(min_size=1, max_size=50))
def test_a_value_comes_back_in_any_process_that_has_the_key(value: bytes, name: bytes) -> None:
    box = Sealed(KEY).seal(name, value)
    assert Sealed(KEY).open(name, box) == value
    assert len(box) == len(value) + 45
    if len(value) > 8:
        assert value not in box


def test_neither_another_key_nor_another_name_nor_a_changed_byte_opens() -> None:
    mine = Sealed(KEY)
    box = mine.seal(b"/meshd/secret/1", b"Marmalade")
    for other, name, changed in (
        (Sealed(new_key()), b"/meshd/secret/1", box),
        (mine, b"/meshd/secret/2", box),
        (mine, b"/meshd/secret/1", b'{"ID":"1"}'),
        (mine, b"/meshd/secret/1", b""),
        *((mine, b"/meshd/secret/1", box[:at] + bytes([box[at] ^ 1]) + box[at + 1 :]) for at in range(len(box))),
        *((mine, b"/meshd/secret/1", box[:length]) for length in range(len(box))),
    ):
        with pytest.raises(ConfigError):
            other.open(name, changed)


def test_no_nonce_twice() -> None:
    one, two = Sealed(KEY), Sealed(KEY)
    boxes = [process.seal(b"n", b"same") for process in (one, two) for _ in range(500)]
    assert len({box[1:29] for box in boxes}) == len(set(boxes)) == 1000


def test_without_a_key_values_are_as_they_are() -> None:
    assert isinstance(sealing(b""), Open)
    assert Open().open(b"n", Open().seal(b"n", b"v")) == b"v"
    with pytest.raises(ConfigError, match="has 5 bytes, not 32"):
        sealing(b"short")
