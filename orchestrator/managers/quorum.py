"""The managers' etcd as a group: who is taken in, who is let go, how this one leaves.

Edge: etcd's membership and the store; what to do is decided in `membership`. Source: etcd 3.4, learner design.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import datetime

from msgspec.structs import replace

from orchestrator.errors import ConfigError, Conflict, MeshdError, StoreError, StoreUnavailable
from orchestrator.managers.membership import Forget, HandOver, Member, Remove, Step, Wait, leaving, plan
from orchestrator.model import ManagerStatus, Node, NodeSpec
from orchestrator.security.admission import split_endpoint
from orchestrator.store.base import Guard, Put, Store
from orchestrator.store.etcd_client import EtcdClient, EtcdMember
from orchestrator.store.etcd_process import peer_url
from orchestrator.store.subscription import at_changes

log = logging.getLogger(__name__)

# a joining manager pulls the whole state before it may vote
PROMOTION_TIMEOUT_S = 120.0
_RETRY_S = 1.0
_WITHDRAWAL_TIMEOUT_S = 10.0
_WRITE_TRIES = 20


class Quorum:
    """`lead()` while this manager leads; the rest at any manager. fence(): the guard of the present leadership."""

    def __init__(
        self,
        client: EtcdClient,
        store: Store,
        *,
        node_id: str,
        peer_port: int,
        fence: Callable[[], Guard | None],
        now: Callable[[], datetime],
    ) -> None:
        self._client, self._store, self._fence, self._now = client, store, fence, now
        self._node_id, self._peer_port = node_id, peer_port
        self._background: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        for task in [*self._background]:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    # ---- taking in -----------------------------------------------------------------------------------------------------------

    async def welcome(self, node_id: str, addr: str) -> str:
        """The node's etcd is a learner of the cluster from here on, and votes once it is in step; etcd's `--initial-cluster` for it.

        A voter of the same node is one that lost its data: it makes room for its new life (etcd refuses where that costs the quorum).
        addr: "ip:port" of the node's TLS server.
        """
        url = peer_url(split_endpoint(addr)[0], self._peer_port)
        for member in await self._client.members():
            if member.name == node_id and not member.is_learner:
                log.warning("manager without its data node=%s etcd_member=%x action=replace-member", node_id, member.id)
                await self._client.remove(member.id)
        added, members = await self._client.add_learner(url)
        log.info("manager joins node=%s etcd_member=%x peer=%s", node_id, added.id, url)
        task = asyncio.create_task(self._promote(added.id, node_id), name=f"promote {node_id}")
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        named = [f"{node_id if other.id == added.id else other.name}={peer}" for other in members for peer in other.peer_urls]
        return ",".join(named)

    async def record(self, node_id: str, addr: str) -> None:
        """The node is a manager in the store, too."""

        await self._write(node_id, lambda node: replace(node, manager_status=ManagerStatus(addr=addr)))

    async def _promote(self, member_id: int, node_id: str) -> None:
        try:
            await self._client.promote(member_id, timeout_s=PROMOTION_TIMEOUT_S)
            log.info("manager votes node=%s etcd_member=%x", node_id, member_id)
        except MeshdError as error:
            log.error("manager never got in step node=%s etcd_member=%x error=%s action=remove-member", node_id, member_id, error)
            with contextlib.suppress(MeshdError):
                await self._client.remove(member_id)

    # ---- letting go ----------------------------------------------------------------------------------------------------------

    async def lead(self) -> None:
        """Let demoted managers go, until cancelled. StoreUnavailable: the store was closed."""
        await at_changes(self._store, {"node"}, self._let_go)

    async def _let_go(self) -> None:
        """Until nobody is left to go."""
        told = ""
        while leaving(list(self._store.snapshot().all(Node))):
            step: Step | None = None
            try:
                # in this order: a node whose place is given back is forgotten only as long as nobody has given it a new one
                nodes = list(self._store.snapshot().all(Node))
                members = [_member(member) for member in await self._client.members()]
                step = plan(nodes, members, self._node_id)
                await self._run(step)
                why = step.why if isinstance(step, Wait) else ""
            except Conflict:
                why = ""
            except StoreError as error:
                why = str(error)
            if why and why != told:
                log.warning("demotion waits reason=%s", why)
                told = why
            # after a hand-over this manager is cancelled as leader in a moment
            if why or isinstance(step, HandOver):
                await asyncio.sleep(_RETRY_S)

    async def _run(self, step: Step | None) -> None:
        match step:
            case Remove(member, node_id):
                await self._client.remove(member)
                log.info("manager let go node=%s etcd_member=%x", node_id, member)
            case Forget(node):
                fence = self._fence()
                put = Put(replace(node, manager_status=None, updated_at=self._now()))
                await self._store.commit([put, fence] if fence is not None else [put])
                log.info("manager is a worker now node=%s", node.id)
            case HandOver(to):
                log.info("this manager is demoted, another leads first etcd_member=%x", to)
                await self._client.move_leader(to)
            case Wait() | None:
                pass

    async def withdraw(self) -> None:
        """This node leaves the cluster for good: the others count without it. Bounded; without a quorum it is given up, said in the log."""
        try:
            async with asyncio.timeout(_WITHDRAWAL_TIMEOUT_S):
                members = await self._client.members()
                own = next((member for member in members if member.name == self._node_id), None)
                others = [member for member in members if member.name != self._node_id and not member.is_learner]
                if own is None or not others:
                    return
                await self._write(self._node_id, _as_worker)
                if (await self._client.status()).is_leader:
                    await self._client.move_leader(others[0].id)
                with contextlib.suppress(StoreUnavailable):
                    # the answer may be lost with the member that gives it
                    await self._client.remove(own.id)
                log.info("withdrawn from the managers etcd_member=%x", own.id)
        except (StoreError, TimeoutError) as error:
            log.warning("the other managers still count this one: demote and remove it there node=%s reason=%r", self._node_id, error)

    async def _write(self, node_id: str, changed: Callable[[Node], Node]) -> None:
        """Read, change, write, again when somebody was faster. ConfigError: the node is gone."""
        for attempt in range(_WRITE_TRIES):
            node = self._store.snapshot().node(node_id)
            if node is None:
                raise ConfigError(f"node {node_id} is not part of this cluster any more")
            try:
                await self._store.commit([Put(replace(changed(node), updated_at=self._now()))])
                return
            except Conflict:
                await asyncio.sleep(0.01 * (attempt + 1))
        raise StoreUnavailable(f"node {node_id} keeps changing: try again")


def _as_worker(node: Node) -> Node:
    spec: NodeSpec = replace(node.spec, role="worker")
    return replace(node, spec=spec, manager_status=None, mesh_spec_since=node.version.index)


def _member(member: EtcdMember) -> Member:
    return Member.of(member.id, member.name, member.peer_urls, member.is_learner)
