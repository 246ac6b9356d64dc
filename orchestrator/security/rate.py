"""A rate limit by key: a token bucket each, forgotten once it is full again.

Pure: the time is an argument.
"""

from __future__ import annotations

MAX_KEYS = 4096


class RateLimit:
    """`burst` at once, then `per_s`. With more than MAX_KEYS busy keys a new one is refused: memory stays bounded under attack."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._levels: dict[str, tuple[float, float]] = {}

    def allows(self, key: str, now_s: float) -> bool:
        level, since_s = self._levels.get(key, (float(self._burst), now_s))
        level = min(float(self._burst), level + (now_s - since_s) * self._per_s)
        if key not in self._levels and len(self._levels) >= MAX_KEYS:
            self._forget_full(now_s)
            if len(self._levels) >= MAX_KEYS:
                return False
        self._levels[key] = (level - 1 if level >= 1 else level, now_s)
        return level >= 1

    def _forget_full(self, now_s: float) -> None:
        def full(state: tuple[float, float]) -> bool:
            return state[0] + (now_s - state[1]) * self._per_s >= self._burst

        self._levels = {key: state for key, state in self._levels.items() if not full(state)}
