"""Keeps a node's certificate as it should be: in time, of the CA that signs now, under the root that the cluster trusts.

Pure: `due`. Edge: `Renewal` asks the managers, or, on a manager, does it itself: so a cluster that was off for longer than its certificates
live comes back by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from orchestrator.errors import ConfigError, MeshdError
from orchestrator.security import ca
from orchestrator.security.admission import Trust
from orchestrator.security.identity import Credentials, Identity, renewal_due
from orchestrator.security.join import accepted, install_renewed, readmit, renew
from orchestrator.security.registrar import Registrar

log = logging.getLogger(__name__)

RETRY_FIRST_S, RETRY_LAST_S = 1.0, 60.0
# As a machine that slept or had its clock set must not be late.
LOOK_S = 10.0
# So long without a manager that accepts this node, and it asks whether the root was replaced.
LOST = timedelta(seconds=20)
# Nodes that are told to renew at once don't come at once.
SPREAD_S = 1.0

Step = Literal["renew", "readmit", "trust", ""]


def due(identity: Identity, trust: Trust, renew_at: datetime, alone_since: datetime | None, now: datetime) -> Step:
    """What is to be done now. alone_since: since then no manager has accepted this node."""
    if now >= identity.subject.not_after or (alone_since is not None and now >= alone_since + LOST):
        return "readmit"
    if told_to_renew(identity, trust):
        return "renew"
    if trust.root_certificate and identity.root_certificate != trust.root_certificate:
        return "trust"
    return "renew" if now >= renew_at else ""


def lives_too_long(identity: Identity, life_s: int, now: datetime) -> bool:
    """Longer than a certificate would that was issued now, clocks aside: `swarm update --cert-expiry` takes effect."""
    return identity.subject.not_after > now + timedelta(seconds=life_s) * 1.1


def told_to_renew(identity: Identity, trust: Trust) -> bool:
    """Another CA signs now."""
    return bool(trust.issuer) and identity.tls_info.cert_issuer_public_key != trust.issuer


class Renewal:
    """`run()` until cancelled. managers(): "ip:port". registrar(): on a manager that can write. connected(): a manager accepts this node.
    on_change(): certificate or root is another."""

    def __init__(
        self,
        credentials: Credentials,
        managers: Callable[[], Sequence[str]],
        *,
        registrar: Callable[[], Registrar | None] = lambda: None,
        connected: Callable[[], bool] = lambda: True,
        on_change: Callable[[], None] = lambda: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        random_: random.Random | None = None,
    ) -> None:
        self._credentials = credentials
        self._managers, self._registrar, self._connected, self._on_change = managers, registrar, connected, on_change
        self._now = now
        self._random = random_ or random.SystemRandom()
        self._trust = Trust()
        self._told = asyncio.Event()

    def told(self, trust: Trust) -> None:
        """By a manager."""
        if trust != self._trust:
            self._trust = trust
            self._told.set()

    async def run(self) -> None:
        certificate, renew_at = "", self._now()
        alone_since: datetime | None = None
        life_s = 0
        pause_s = RETRY_FIRST_S
        while True:
            identity = self._credentials.identity
            if identity.certificate != certificate:
                # also when something else, such as a promotion, has renewed it
                certificate, renew_at = identity.certificate, renewal_due(identity.subject, self._random)
            if life_s != self._trust.life_s:
                life_s = self._trust.life_s
                if lives_too_long(identity, life_s, self._now()):
                    # once: an external CA has its own mind about lives
                    renew_at = self._now()
            alone_since = None if self._connected() else alone_since or self._now()
            step = due(identity, self._trust, renew_at, alone_since, self._now())
            if not step:
                pause_s = RETRY_FIRST_S
                await self._pause(LOOK_S)
                continue
            try:
                await self._do(step)
                alone_since = None
                self._on_change()
            except (MeshdError, OSError) as error:
                # OSError: a full disk, a store that doesn't answer in time
                log.warning("%s failed reason=%s next_try_s=%d", step, error, pause_s)
                await self._pause(pause_s)
                pause_s = min(pause_s * 2, RETRY_LAST_S)

    async def _do(self, step: Step) -> None:
        if step == "trust":
            self._credentials.install(self._credentials.identity.under(self._trust.root_certificate, self._now()))
            log.info("root certificate replaced digest=%s", ca.digest(self._trust.root_certificate))
        elif (registrar := self._registrar()) is not None:
            if step == "readmit" and accepted(self._credentials.identity, registrar.root_certificate, self._now()):
                raise ConfigError("no manager lets this node in, and its certificate is good")
            await self._renew_here(registrar)
        elif step == "readmit":
            await readmit(self._credentials, self._managers(), now=self._now)
        else:
            if told_to_renew(self._credentials.identity, self._trust):
                await asyncio.sleep(self._random.uniform(0.0, SPREAD_S))
            await renew(self._credentials, self._managers(), now=self._now)

    async def _renew_here(self, registrar: Registrar) -> None:
        async with self._credentials.renewing:
            identity = self._credentials.identity
            key, csr = ca.new_key_and_csr()
            answer = await registrar.renew(csr, identity.node_id, identity.fingerprint, "")
            install_renewed(self._credentials, answer, key, self._now())

    async def _pause(self, pause_s: float) -> None:
        """Shorter when a manager says something new."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._told.wait()
        self._told.clear()
