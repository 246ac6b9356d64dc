"""Talking to etcd: the mutual-TLS channel, its errors as ours, a member's status, changes of membership.

Edge: gRPC. Source: etcd API v3 (rpc.proto); etcd 3.4 server/etcdserver/api/v3rpc/rpctypes/error.go for the texts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
from aetcd.rpc import rpc_pb2 as pb
from aetcd.rpc import rpc_pb2_grpc as stubs

from orchestrator.errors import ConfigError, StoreError, StoreUnavailable
from orchestrator.store.etcd_tls import SERVER_NAME, TLSFiles

T = TypeVar("T")

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # etcd is restarted within a second: don't sit out gRPC's usual back-off of up to two minutes
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # a stopped etcd is noticed after 15 s even when nothing is asked; etcd hangs up on pings more often than every 5 s
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # one connection of its own for every channel: a fresh channel to a restarted etcd must not inherit a dead one
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]


def open_channel(endpoint: str, tls: TLSFiles) -> grpc.aio.Channel:
    """endpoint: "ip:port"."""
    try:
        credentials = grpc.ssl_channel_credentials(tls.ca.read_bytes(), tls.key.read_bytes(), tls.cert.read_bytes())
    except OSError as error:
        raise ConfigError(f"etcd's client certificate can't be read: {error}") from error
    return grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)


async def call(request: Awaitable[T], what: str) -> T:
    """The answer of a unary call, or StoreUnavailable / StoreError with a sentence."""
    try:
        return await request
    except grpc.aio.AioRpcError as error:
        raise translate(error, what) from error
    except asyncio.CancelledError as error:
        # grpc.aio answers with CancelledError too when the channel is closed under the call; nobody cancelled *us* then
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise StoreUnavailable(f"{what}: the connection to etcd was closed") from error


def translate(error: grpc.aio.AioRpcError, what: str) -> StoreError:
    code = error.code()
    text = f"{what}: {error.details() or code.name}"
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND):
        return StoreError(text)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return StoreError(f"{text} (this etcd is too old for meshd)")
    return StoreUnavailable(text)


@dataclass(frozen=True, slots=True)
class EtcdStatus:
    """What one member says of itself. leader_id 0: it knows no leader (no quorum)."""

    member_id: int
    leader_id: int
    is_learner: bool
    version: str
    revision: int
    raft_term: int
    raft_index: int
    db_size_bytes: int
    db_used_bytes: int
    errors: tuple[str, ...]

    @property
    def is_leader(self) -> bool:
        return self.leader_id != 0 and self.member_id == self.leader_id


@dataclass(frozen=True, slots=True)
class EtcdMember:
    """name "": added but never started."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    is_learner: bool


class EtcdClient:
    """Maintenance and membership of the cluster, through one member. Answers StoreUnavailable when that one or the quorum is away."""

    def __init__(self, endpoint: str, tls: TLSFiles, *, timeout_s: float = 5.0) -> None:
        self._channel = open_channel(endpoint, tls)
        self._kv = stubs.KVStub(self._channel)
        self._cluster = stubs.ClusterStub(self._channel)
        self._maintenance = stubs.MaintenanceStub(self._channel)
        self._timeout_s = timeout_s

    async def close(self) -> None:
        await self._channel.close()

    async def status(self, *, timeout_s: float = 1.0) -> EtcdStatus:
        answer = await call(self._maintenance.Status(pb.StatusRequest(), timeout=timeout_s), "etcd's status")
        return EtcdStatus(
            member_id=answer.header.member_id,
            leader_id=answer.leader,
            is_learner=answer.isLearner,
            version=answer.version,
            revision=answer.header.revision,
            raft_term=answer.raftTerm,
            raft_index=answer.raftIndex,
            db_size_bytes=answer.dbSize,
            db_used_bytes=answer.dbSizeInUse,
            errors=tuple(answer.errors),
        )

    async def read_linearizable(self) -> int:
        """The cluster's revision, confirmed by a quorum."""
        answer = await call(self._kv.Range(pb.RangeRequest(key=b"/meshd/", keys_only=True), timeout=self._timeout_s), "reading from etcd")
        return int(answer.header.revision)

    async def members(self) -> list[EtcdMember]:
        answer = await call(self._cluster.MemberList(pb.MemberListRequest(), timeout=self._timeout_s), "listing etcd's members")
        return [_member(member) for member in answer.members]

    async def add_learner(self, peer_url: str, *, timeout_s: float = 30.0) -> tuple[EtcdMember, list[EtcdMember]]:
        """The new member and all members, the new one included.

        A learner that is there already under this URL is what an interrupted join left: it is replaced, so the joiner must start with
        an empty data directory. Waits while etcd wants rest between two changes (one learner at a time, every member seen for 5 s).
        """

        async def attempt() -> tuple[EtcdMember, list[EtcdMember]]:
            for member in await self.members():
                if peer_url in member.peer_urls:
                    if not member.is_learner:
                        raise ConfigError(f"{peer_url} is a member of etcd already: remove it first")
                    await self.remove(member.id)
            request = pb.MemberAddRequest(peerURLs=[peer_url], isLearner=True)
            answer = await call(self._cluster.MemberAdd(request, timeout=self._timeout_s), f"adding {peer_url} to etcd")
            return _member(answer.member), [_member(member) for member in answer.members]

        # "member not found": an id is made of URL and second, and the id just removed can't come back within the same second
        return await _retried(attempt, timeout_s, ("unhealthy cluster", "too many learner", "not enough started", "member not found"))

    async def promote(self, member_id: int, *, timeout_s: float = 30.0) -> None:
        """Make the learner a voting member, once it is in sync; done already is fine."""

        async def attempt() -> None:
            found = next((member for member in await self.members() if member.id == member_id), None)
            if found is None:
                raise ConfigError(f"etcd has no member {member_id:x}: was it removed meanwhile?")
            if found.is_learner:
                request = pb.MemberPromoteRequest(ID=member_id)
                await call(self._cluster.MemberPromote(request, timeout=self._timeout_s), f"promoting etcd's member {member_id:x}")

        await _retried(attempt, timeout_s, ("in sync", "unhealthy cluster", "not enough started"))

    async def remove(self, member_id: int, *, timeout_s: float = 30.0) -> None:
        """Gone already is fine. etcd refuses (StoreError) what would cost the quorum."""

        async def attempt() -> None:
            if any(member.id == member_id for member in await self.members()):
                request = pb.MemberRemoveRequest(ID=member_id)
                await call(self._cluster.MemberRemove(request, timeout=self._timeout_s), f"removing etcd's member {member_id:x}")

        await _retried(attempt, timeout_s, ("unhealthy cluster",))

    async def move_leader(self, member_id: int) -> None:
        """Hand Raft's leadership over; only the leader's own endpoint accepts it."""
        request = pb.MoveLeaderRequest(targetID=member_id)
        await call(self._maintenance.MoveLeader(request, timeout=self._timeout_s), f"moving Raft's leadership to {member_id:x}")


def _member(member: Any) -> EtcdMember:
    return EtcdMember(id=member.ID, name=member.name, peer_urls=tuple(member.peerURLs), is_learner=member.isLearner)


async def _retried(attempt: Callable[[], Awaitable[T]], timeout_s: float, passing: tuple[str, ...]) -> T:
    """Again every half second while etcd is unavailable or answers with one of the `passing` texts, until the deadline."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            return await attempt()
        except StoreError as error:
            retry = isinstance(error, StoreUnavailable) or any(text in str(error) for text in passing)
            if not retry or asyncio.get_running_loop().time() + 0.5 > deadline:
                raise
        await asyncio.sleep(0.5)
