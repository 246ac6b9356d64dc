"""What is known of each upstream: how often and how fast it answered, and whether to ask it just now.

Pure but for its memory; `now` (monotonic seconds) is an argument.
Source: RFC 8767 5 and RFC 1035 7.2 (prefer servers that answer); RFC 6298 2 (the weight of a new round trip).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dnsd.model import UpstreamStatus
from dnsd.resolvers import Endpoint, endpoint_text

# An upstream that did not answer is asked after the others for so long.
AVOID_S = 5.0
# One that leads back to us is not asked at all for so long; and how often an upstream is suspected of it.
LOOP_S = 60.0
# RFC 6891, 6.2.2 and 7: that a server is without EDNS is remembered, but may change.
PLAIN_S = 3_600.0
_RTT_WEIGHT = 1 / 8
# Upstreams come from configuration; this only bounds what years of changes leave behind.
_REMEMBERED = 1024


class Health(msgspec.Struct):
    """asked: questions sent. answered: also with a denial. failed: refused, broken or an error of the server. silent: in vain.
    plain_until: it doesn't know EDNS and is asked without."""

    asked: int = 0
    answered: int = 0
    failed: int = 0
    silent: int = 0
    rtt_s: float = 0.0
    avoid_until: float = float("-inf")
    looping_until: float = float("-inf")
    plain_until: float = float("-inf")
    probe_at: float = float("-inf")


class HealthTable:
    def __init__(self) -> None:
        self._known: dict[Endpoint, Health] = {}

    def of(self, endpoint: Endpoint) -> Health:
        health = self._known.get(endpoint)
        if health is None:
            if len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            health = self._known[endpoint] = Health()
        return health

    def usable(self, endpoints: Sequence[Endpoint], now: float) -> tuple[Endpoint, ...]:
        """Without those that lead back to us; those that were silent lately come last, otherwise the order stays."""
        health = {endpoint: self.of(endpoint) for endpoint in endpoints}
        sound = [endpoint for endpoint in health if health[endpoint].looping_until <= now]
        return tuple(sorted(sound, key=lambda endpoint: health[endpoint].avoid_until > now))

    def answered(self, endpoint: Endpoint, rtt_s: float) -> None:
        health = self.of(endpoint)
        health.answered += 1
        health.rtt_s += (rtt_s - health.rtt_s) * (_RTT_WEIGHT if health.rtt_s else 1)
        health.avoid_until = float("-inf")

    def failed(self, endpoint: Endpoint, now: float, *, avoid: bool) -> None:
        """avoid: it can't be reached, rather than having trouble with this question."""
        health = self.of(endpoint)
        health.failed += 1
        if avoid:
            health.avoid_until = now + AVOID_S

    def silent(self, endpoint: Endpoint, now: float) -> None:
        health = self.of(endpoint)
        health.silent += 1
        health.avoid_until = now + AVOID_S

    def takes_edns(self, endpoint: Endpoint, now: float) -> bool:
        return self.of(endpoint).plain_until <= now

    def without_edns(self, endpoint: Endpoint, now: float) -> None:
        self.of(endpoint).plain_until = now + PLAIN_S

    def suspect(self, endpoint: Endpoint, now: float) -> bool:
        """Whether it is time to find out if the way through this upstream leads back to us; not again for a while then."""
        health = self.of(endpoint)
        if now < health.probe_at:
            return False
        health.probe_at = now + LOOP_S
        return True

    def looping(self, endpoint: Endpoint, now: float) -> None:
        self.of(endpoint).looping_until = now + LOOP_S

    def status(self, now: float) -> tuple[UpstreamStatus, ...]:
        return tuple(
            UpstreamStatus(
                address=endpoint_text(endpoint),
                state="looping" if health.looping_until > now else "silent" if health.avoid_until > now else "up",
                asked=health.asked,
                answered=health.answered,
                failed=health.failed,
                silent=health.silent,
                rtt_s=health.rtt_s,
            )
            for endpoint, health in sorted(self._known.items())
            if health.asked
        )
