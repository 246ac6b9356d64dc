"""That the other side knows the join secret, without saying it: a MAC over what is said and over the certificate it is said to.

Pure. Before there is a CA nobody can verify a certificate; but who sits in between has another one than the machine behind him, and a
proof made for one certificate is worth nothing with the other. Source: RFC 2104, RFC 5929 section 4 (tls-server-end-point).
"""

from __future__ import annotations

import hashlib
import hmac

HEADER = "Meshd-Proof"


def fingerprint(certificate: bytes) -> bytes:
    """What the connection that carries the proof is pinned to."""
    return hashlib.sha256(certificate).digest()


def of_question(secret: bytes, certificate: bytes, question: bytes) -> str:
    """certificate: the server's, DER, as the side that asks was shown it."""
    return _mac(secret, b"question", certificate, question)


def of_answer(secret: bytes, certificate: bytes, question: bytes, answer: bytes) -> str:
    return _mac(secret, b"answer", certificate, question, answer)


def holds(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode())


def _mac(secret: bytes, *parts: bytes) -> str:
    mac = hmac.new(secret, b"meshd formation 1", hashlib.sha256)
    for part in parts:
        # of fixed length each, so that no two lists of parts read alike
        mac.update(hashlib.sha256(part).digest())
    return mac.hexdigest()
