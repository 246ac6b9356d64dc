"""Counters: what they say about responses of every kind."""

from __future__ import annotations

import pytest
from dnslib import QTYPE, RCODE, DNSRecord

from dnsd.counters import BOUNDS_S, Histogram, QueryCounters, label, label_of
from tests.dnsd.ask import query


@pytest.mark.parametrize("kind", ["A", "AAAA", "SRV", "HTTPS", "ANY", "CAA"])
@pytest.mark.parametrize("rcode", [0, 2, 3, 5])
def test_labels_are_type_and_rcode(kind: str, rcode: int) -> None:
    reply = DNSRecord.parse(query("a.b", kind)).reply()
    reply.header.rcode = rcode
    assert label_of(bytes(reply.pack())) == label(getattr(QTYPE, kind), rcode)


@pytest.mark.parametrize("size", range(12, 20))
def test_responses_without_a_readable_question(size: int) -> None:
    reply = DNSRecord.parse(query("ab.c")).reply()
    reply.header.rcode = RCODE.FORMERR
    assert label_of(bytes(reply.pack())[:size]) == label(0, 1)


def test_counts_are_given_sorted() -> None:
    counters = QueryCounters()
    counters.count([label(28, 0), label(1, 3), label(28, 0)])
    assert list(counters.by_type_and_rcode()) == [(1, 3, 1), (28, 0, 2)]


def test_each_duration_has_one_bucket() -> None:
    for index, bound in enumerate(BOUNDS_S):
        histogram = Histogram()
        histogram.observe(bound)
        histogram.observe(bound * 1.000001, 2)
        assert histogram.buckets[index : index + 2] == [1, 2]
        assert sum(histogram.buckets) == 3
