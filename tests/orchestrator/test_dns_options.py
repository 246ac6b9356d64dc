"""What a network's options say about names outside."""

from __future__ import annotations

import pytest

from dnsd.model import RouteSpec
from orchestrator.dns_options import DnsOptions, dns_options
from orchestrator.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, DnsOptions()),
        ({"com.docker.network.driver.mtu": "1400", "meshd.dnsx": "x"}, DnsOptions()),
        ({"meshd.dns.forward": "false"}, DnsOptions(forward=False)),
        ({"meshd.dns.forward": "true"}, DnsOptions()),
        ({"meshd.dns.upstreams": "192.0.2.1, [fd00::1]:5353"}, DnsOptions(upstreams=("192.0.2.1", "[fd00::1]:5353"))),
        (
            {"meshd.dns.upstreams.Corp.Example.": "192.0.2.1", "meshd.dns.upstreams.a": ""},
            DnsOptions(routes=(RouteSpec(domain="corp.example", upstreams=("192.0.2.1",)), RouteSpec(domain="a"))),
        ),
    ],
)
def test_options(options: dict[str, str], said: DnsOptions) -> None:
    assert dns_options(options) == said


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("meshd.dns.forward", "no", "option meshd.dns.forward: 'no' is neither true nor false"),
        ("meshd.dns.upstreams", "", "option meshd.dns.upstreams names no server"),
        ("meshd.dns.upstreams", "192.0.2.1,web", "option meshd.dns.upstreams: 'web' is no address"),
        ("meshd.dns.upstreams.a..b", "192.0.2.1", "option meshd.dns.upstreams.a..b: 'a..b' can't be a domain"),
        ("meshd.dns.upstreams.", "192.0.2.1", "can't be a domain"),
        ("meshd.dns.upstream", "192.0.2.1", "unknown option meshd.dns.upstream: expected meshd.dns.forward"),
    ],
)
def test_what_makes_no_sense(key: str, value: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        dns_options({key: value})
    assert sentence in str(raised.value)
