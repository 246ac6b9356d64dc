"""Object ids as Swarm makes them: 25 base-36 digits of 128 random bits. Edge: reads the system's randomness."""

from __future__ import annotations

import secrets

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def base36(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, rest = divmod(number, 36)
        digits.append(_DIGITS[rest])
    return "".join(reversed(digits))


def new_id() -> str:
    return base36(secrets.randbits(128), 25)
