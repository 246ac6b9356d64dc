from __future__ import annotations

import pytest

from orchestrator.addresses import choose_address, listen_address
from orchestrator.errors import ApiError

TWO = {"192.0.2.1": "eth0", "198.51.100.1": "eth1"}


@pytest.mark.parametrize(
    ("wanted", "own", "towards", "chosen"),
    [
        ("192.0.2.9", {}, "", "192.0.2.9"),
        ("192.0.2.9:2377", {}, "", "192.0.2.9"),
        ("[fd00::1]", {}, "", "fd00::1"),
        ("[fd00::1]:2377", {}, "", "fd00::1"),
        ("fd00::1", {}, "", "fd00::1"),
        ("eth1", TWO, "", "198.51.100.1"),
        ("eth0", {"fd00::1": "eth0", "192.0.2.1": "eth0"}, "", "192.0.2.1"),
        ("", {"192.0.2.1": "eth0"}, "", "192.0.2.1"),
        ("", {"192.0.2.1": "eth0", "172.17.0.1": "docker0", "172.30.0.1": "mg-gateway"}, "", "192.0.2.1"),
        ("", {"192.0.2.1": "eth0", "fd00::1": "eth0"}, "", "192.0.2.1"),
        ("", {"fd00::1": "eth0"}, "", "fd00::1"),
    ],
)
def test_choices(wanted: str, own: dict[str, str], towards: str, chosen: str) -> None:
    assert choose_address(wanted, own, towards) == chosen


@pytest.mark.parametrize(
    ("wanted", "own", "text"),
    [
        ("", TWO, r"multiple addresses on different interfaces \(192.0.2.1 on eth0 and 198.51.100.1 on eth1\) - specify one"),
        ("", {"192.0.2.1": "eth0", "192.0.2.2": "eth0"}, r"multiple addresses on interface eth0"),
        ("", {}, "could not find the system's IP address"),
        ("", {"172.17.0.1": "docker0"}, "could not find the system's IP address"),
        ("eth7", TWO, "must be a non-zero IP address or network interface"),
    ],
)
def test_no_choice_is_an_error_that_says_what_to_give(wanted: str, own: dict[str, str], text: str) -> None:
    with pytest.raises(ApiError, match=text) as caught:
        choose_address(wanted, own, "")
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0", "0.0.0.0"),
        ("0.0.0.0:2377", "0.0.0.0"),
        ("::", "::"),
        ("[::]", "::"),
        ("[::]:2377", "::"),
        ("192.0.2.9:2377", "192.0.2.9"),
        ("[fd00::1]:2377", "fd00::1"),
        ("eth1", "198.51.100.1"),
        ("eth1:2377", "198.51.100.1"),
    ],
)
def test_listened_at(text: str, address: str) -> None:
    assert listen_address(text, TWO) == address


@pytest.mark.parametrize("text", ["eth7", "eth7:2377", "[eth0:2377", "[eth7]:2377"])
def test_not_listened_at(text: str) -> None:
    with pytest.raises(ApiError, match="listen address must be an IP address or network interface"):
        listen_address(text, TWO)
