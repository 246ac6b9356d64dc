"""What `--host` takes, and that nothing listens on TCP by accident."""

from __future__ import annotations

import pytest

from orchestrator.api.endpoints import TcpEndpoint, UnixEndpoint, endpoints, protection
from orchestrator.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("tcp://0.0.0.0:2376", "0.0.0.0", 2376),
        ("tcp://192.0.2.1", "192.0.2.1", 0),
        ("tcp://", "0.0.0.0", 0),
        ("tcp://:1234", "0.0.0.0", 1234),
        ("tcp://[::]:2376", "::", 2376),
        ("tcp://node-1:99", "node-1", 99),
    ],
)
def test_tcp_has_dockerds_ports(text: str, host: str, port: int) -> None:
    assert endpoints([text], "mutual-tls") == (TcpEndpoint(host, port or 2376, tls=True),)
    assert endpoints([text], "insecure") == (TcpEndpoint(host, port or 2375, tls=False),)
    with pytest.raises(ConfigError, match="needs --tlsverify"):
        endpoints([text], "none")


def test_each_endpoint_once_in_order() -> None:
    texts = ["unix:///b", "tcp://0.0.0.0", "unix:///a", "unix:///b", "tcp://0.0.0.0:2376"]
    assert endpoints(texts, "mutual-tls") == (UnixEndpoint("/b"), TcpEndpoint("0.0.0.0", 2376, tls=True), UnixEndpoint("/a"))


@pytest.mark.parametrize(
    "text", ["", "2376", "fd://", "unix://relative", "http://1.2.3.4", "tcp:/x", "tcp://a:b", "tcp://a:70000", "tcp://a/b", "tcp://u@a"]
)
def test_what_is_no_endpoint_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--host {text}: not"):
        endpoints([text], "mutual-tls")


def test_plain_tcp_is_asked_for_by_name() -> None:
    assert [protection(tlsverify=tls, insecure=plain) for tls, plain in ((False, False), (True, False), (False, True))] == [
        "none",
        "mutual-tls",
        "insecure",
    ]
    with pytest.raises(ConfigError, match="exclude each other"):
        protection(tlsverify=True, insecure=True)
