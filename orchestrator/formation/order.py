"""What a node was told on its command line about the cluster it comes into by itself: `--retry-join`, `--bootstrap-expect` and their files.

Pure but for `read`, which reads the two files.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.security.admission import join_endpoint, split_endpoint

# what `openssl rand -hex 16` gives; whoever listens in can try shorter ones out at home
MIN_SECRET_LENGTH = 32
_MAKE_SECRET = "make one for all machines: openssl rand -hex 32"


@dataclass(frozen=True, slots=True, repr=False)
class Order:
    """peers: "ip:port", sorted. expect: how many of them begin a cluster, always all; 0: none, only join. No `repr`: a secret is in it."""

    peers: tuple[str, ...]
    expect: int = 0
    secret: bytes = b""
    token_file: Path | None = None

    @property
    def founder(self) -> str:
        """The one that begins the cluster; "" = nobody does."""
        return self.peers[0] if self.expect else ""

    @property
    def digest(self) -> str:
        """Equal on all machines that were told the same. Says nothing of the secret."""
        return hashlib.sha256(f"{self.expect} {' '.join(self.peers)}".encode()).hexdigest()


def read(retry_join: Sequence[str], expect: int, secret_file: str, token_file: str, *, member: bool) -> Order | None:
    """None: nothing was asked for. member: this node is in a cluster already, so a secret that is gone only closes its door.

    ConfigError: what is missing, contradictory, or can't be read; nothing is open by default.
    """
    if not retry_join:
        for flag, given in (("--bootstrap-expect", expect), ("--join-secret-file", secret_file), ("--join-token-file", token_file)):
            if given:
                raise ConfigError(f"{flag} needs --retry-join: the addresses of the machines that begin the cluster")
        return None
    peers = _peers(retry_join)
    if expect and token_file:
        raise ConfigError("--bootstrap-expect begins a cluster, --join-token-file is for one that exists: give one of them")
    if expect and not secret_file:
        raise ConfigError(
            "--bootstrap-expect needs --join-secret-file: before there is a cluster nothing else tells its machines from strangers; "
            + _MAKE_SECRET
        )
    if bool(secret_file) == bool(token_file):
        raise ConfigError("--retry-join needs --join-secret-file or --join-token-file, one of them")
    if expect and expect != len(peers):
        # all, not most of them: a majority can be found twice by machines that lost their disks, all can not
        raise ConfigError(
            f"--bootstrap-expect {expect}: --retry-join has to name exactly the {expect} machines that begin the cluster, "
            f"on every machine alike; it names {len(peers)}"
        )
    return Order(
        peers=peers,
        expect=expect,
        secret=_secret(secret_file, member) if secret_file else b"",
        token_file=Path(token_file) if token_file else None,
    )


def own_peer(order: Order, addresses: Sequence[str]) -> str:
    """Which of the peers this machine is, by its addresses; "" = none. ConfigError: more than one."""
    own = [peer for peer in order.peers if split_endpoint(peer)[0] in addresses]
    if len(own) > 1:
        raise ConfigError(f"--retry-join names this machine more than once: {', '.join(own)}; say which one with --advertise-addr")
    return own[0] if own else ""


def _peers(retry_join: Sequence[str]) -> tuple[str, ...]:
    found = set()
    for text in (part.strip() for given in retry_join for part in given.split(",")):
        try:
            host, port = split_endpoint(text)
            found.add((ipaddress.ip_address(host), port))
        except ValueError:
            raise ConfigError(f"--retry-join {text[:80]!r}: expected an IP address with an optional port") from None
    ordered = sorted(found, key=lambda peer: (peer[0].version, int(peer[0]), peer[1]))
    return tuple(join_endpoint(str(address), port) for address, port in ordered)


def _secret(path: str, member: bool) -> bytes:
    try:
        secret = Path(path).read_bytes().strip()
    except FileNotFoundError:
        if member:
            return b""
        raise ConfigError(f"--join-secret-file {path} is missing; {_MAKE_SECRET}") from None
    except OSError as error:
        raise ConfigError(f"--join-secret-file {path} can't be read: {(error.strerror or str(error)).lower()}") from None
    if len(secret) < MIN_SECRET_LENGTH:
        raise ConfigError(
            f"--join-secret-file {path} has {len(secret)} characters, at least {MIN_SECRET_LENGTH} are needed; {_MAKE_SECRET}"
        )
    return secret
