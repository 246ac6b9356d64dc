"""A node that comes into a cluster by itself asks the daemon for what `docker swarm init` and `join` ask for.

Edge: built by `meshd`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from orchestrator.addresses import choose_address, own_addresses
from orchestrator.api.backend import InitRequest, JoinRequest
from orchestrator.api.swarm import DEFAULT_SPEC
from orchestrator.daemon_config import DaemonConfig
from orchestrator.formation.decision import Membership
from orchestrator.formation.former import Daemon, Former
from orchestrator.security.admission import DEFAULT_PORT, split_endpoint


def former_of(
    config: DaemonConfig,
    membership: Callable[[], Membership | None],
    busy: Callable[[], bool],
    init: Callable[[InitRequest], Awaitable[str]],
    join: Callable[[JoinRequest], Awaitable[None]],
) -> Former | None:
    """None: this node is brought into a cluster by hand. membership: None while it is in none."""
    if config.formation is None:
        return None

    def listen(own: str) -> str:
        return config.listen_addr or f"0.0.0.0:{split_endpoint(own)[1] if own else DEFAULT_PORT}"

    async def addresses() -> list[str]:
        own = await asyncio.to_thread(own_addresses)
        return [choose_address(config.advertise_addr, own, "")] if config.advertise_addr else list(own)

    async def begin(own: str) -> None:
        await init(InitRequest(spec=DEFAULT_SPEC, advertise_addr=split_endpoint(own)[0], listen_addr=listen(own)))

    async def enter(own: str, managers: tuple[str, ...], token: str) -> None:
        advertise = split_endpoint(own)[0] if own else ""
        await join(JoinRequest(remote_addrs=managers, token=token, advertise_addr=advertise, listen_addr=listen(own)))

    daemon = Daemon(
        member=membership,
        busy=busy,
        addresses=addresses,
        listen=lambda own: split_endpoint(listen(own)),
        found=begin,
        join=enter,
    )
    return Former(config.formation, config.state_dir, daemon)
