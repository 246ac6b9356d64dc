"""What the running daemon can say of its node and of the way to the others: tunnels of full size, clocks, etcd, its own tables.

Pure: `tunnel_findings` and the other judgements. Edge: `examine` asks; every question is bounded in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp

from mesh.model import NodeState
from mesh.trace.expect import network_of
from orchestrator.addresses import mtu_of, own_addresses
from orchestrator.agent.rows import Rows, bare
from orchestrator.diagnose import judge
from orchestrator.diagnose.finding import Finding
from orchestrator.diagnose.node_side import ask_child
from orchestrator.errors import MeshdError
from orchestrator.security.identity import Credentials

_ECHO_TIMEOUT_S = 60.0
_CALL_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class NodeView:
    """What `examine` looks at. rows: the node's assignment, None before it has one. state: what its data plane was told. nodes: (name,
    "ip:port" of the TLS server, node id or "" for any manager) of those whose clock can be asked. etcd: asked on managers."""

    node_id: str
    data_addr: str
    netns_prefix: str
    credentials: Credentials
    rows: Rows | None
    state: NodeState | None
    nodes: Sequence[tuple[str, str, str]]
    network_errors: Mapping[str, str]
    differences: Callable[[], Awaitable[list[str]]]
    etcd: Callable[[], Coroutine[None, None, list[Finding]]] | None


async def examine(view: NodeView) -> list[Finding]:
    """In the order of the parts, whatever answers first."""
    parts = [_tunnels(view), _clocks(view), _tables(view)]
    if view.etcd is not None:
        parts.append(view.etcd())
    found = await asyncio.gather(*parts)
    return [finding for part in found for finding in part]


# ---- tunnels -------------------------------------------------------------------------------------------------------------------


async def _tunnels(view: NodeView) -> list[Finding]:
    if view.rows is None or view.state is None:
        return [
            Finding("note", "tunnels", "the managers have told this node nothing yet", "is a manager with a quorum reachable? see the log")
        ]
    nodes = sorted(view.rows.nodes.values(), key=lambda row: row.hostname)
    findings = judge.duplicates_in_cluster([(row.hostname, row.data_addr) for row in nodes])
    ingress = next((row for row in view.rows.networks.values() if row.ingress and view.node_id in row.lb_addresses), None)
    network = network_of(view.state, ingress.id) if ingress else None
    link = own_addresses().get(view.data_addr, "")
    if network is None or ingress is None or not link:
        return [*findings, Finding("note", "tunnels", "the ingress network is not here yet: nothing to reach the other nodes through", "")]
    underlay_mtu = mtu_of(link)
    peers = [
        {"name": row.id, "vtep": row.data_addr, "lb_address": bare(ingress.lb_addresses[row.id])}
        for row in nodes
        if row.id != view.node_id and row.data_addr and row.id in ingress.lb_addresses
    ]
    tunnel = {
        "namespace": f"/run/netns/{view.netns_prefix}-{network.id}",
        "vtep": view.data_addr,
        "lb_address": network.lb_address,
        "vni": network.vni,
        "port": view.state.vxlan_port,
        "mtu": network.mtu or underlay_mtu - 50,
        "underlay_mtu": underlay_mtu,
    }
    six = ":" in view.data_addr
    orders = {"tunnel": None if six or not peers else tunnel, "peers": peers, "link": link, "address": view.data_addr}
    answer = await ask_child("echo", orders, _ECHO_TIMEOUT_S)
    if "error" in answer:
        return [*findings, Finding("note", "tunnels", f"the other nodes could not be asked: {answer['error']}", "")]
    names = {row.id: f"{row.hostname} ({row.data_addr})" for row in nodes}
    for node_id, ways in answer["peers"].items():
        findings.append(tunnel_finding(names[node_id], ways, link, underlay_mtu, view.state.vxlan_port))
    return findings + judge.duplicate_owner(view.data_addr, answer["owners"])


def tunnel_finding(name: str, ways: Mapping[str, bool], link: str, underlay_mtu: int, vxlan_port: int) -> Finding:
    """ways: see `mesh.trace.echo`."""
    if not ways["small"]:
        if ways["direct"]:
            return Finding(
                "bad",
                "tunnels",
                f"{name} answers, but nothing comes through the tunnel to it",
                f"open UDP {vxlan_port} between both nodes, in both directions; `meshd trace` shows where it ends",
            )
        return Finding(
            "bad",
            "tunnels",
            f"nothing comes through the tunnel to {name}, and it doesn't answer a full-size ping either",
            f"is it up? is there a route to it? is UDP {vxlan_port} open in both directions?",
        )
    if not ways["full"]:
        return Finding(
            "bad",
            "tunnels",
            f"small packets reach {name} through the tunnel, full-size ones don't: connections will hang",
            f"the path carries less than the {underlay_mtu} bytes of {link}: lower its MTU to what the path carries, on all nodes",
        )
    if not ways["sealed"]:
        return Finding(
            "note",
            "tunnels",
            f"full-size packets reach {name} only in fragments: the path carries less than the {underlay_mtu} bytes of {link}",
            f"lower the MTU of {link} to what the path carries, on all nodes",
        )
    return Finding("ok", "tunnels", f"full-size packets reach {name} and come back")


# ---- clocks --------------------------------------------------------------------------------------------------------------------


async def _clocks(view: NodeView) -> list[Finding]:
    return list(await asyncio.gather(*(_clock(view.credentials, *node) for node in view.nodes)))


async def _clock(credentials: Credentials, name: str, address: str, node_id: str) -> Finding:
    """By the Date of an answer, which counts whole seconds."""
    context = credentials.client_context(node_id) if node_id else credentials.client_context()
    before = time.time()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_CALL_TIMEOUT_S), trust_env=False) as session:
            async with session.get(f"https://{address}/v1/ca", ssl=context) as response:
                after = time.time()
                theirs = parsedate_to_datetime(response.headers["Date"]).timestamp() + 0.5
    except (aiohttp.ClientError, TimeoutError, OSError, KeyError, ValueError) as error:
        reason = str(error) or type(error).__name__
        return Finding(
            "bad",
            "cluster",
            f"{name} doesn't answer at {address} ({reason})",
            f"is meshd running there, and TCP {address.rpartition(':')[2]} open?",
        )
    return judge.skew(name, theirs - (before + after) / 2, 0.5 + (after - before) / 2)


# ---- this node -----------------------------------------------------------------------------------------------------------------


async def _tables(view: NodeView) -> list[Finding]:
    findings = [
        Finding("bad", "network", f"task {task_id}: {reason}", "the log of meshd says when it began")
        for task_id, reason in view.network_errors.items()
    ]
    with contextlib.suppress(MeshdError):
        differences = await view.differences()
        if differences:
            text = "; ".join(differences[:5]) + (f" and {len(differences) - 5} more" if len(differences) > 5 else "")
            findings.append(
                Finding(
                    "note",
                    "network",
                    f"the kernel is not as it was told: {text}",
                    "meshd repairs it within 10 s; who changes it keeps doing so?",
                )
            )
    return findings or [Finding("ok", "network", "the kernel's tables are what they should be")]


def etcd_findings(status: Any, members: Sequence[Any], quota_bytes: int) -> list[Finding]:
    """status, members: of `store.etcd_client`."""
    findings: list[Finding] = []
    if not status.leader_id:
        findings.append(Finding("bad", "etcd", "etcd knows no leader: no quorum", "bring the other managers back; more than half must run"))
    silent = [member for member in members if not member.name]
    if silent:
        findings.append(
            Finding("note", "etcd", f"{len(silent)} of {len(members)} members of etcd never started", "finish or remove that manager")
        )
    voters = sum(not member.is_learner for member in members)
    if voters == 2:
        findings.append(Finding("note", "etcd", "two managers: if either fails, there is no quorum", "have three: docker node promote"))
    if status.db_used_bytes > 0.8 * quota_bytes:
        findings.append(
            Finding("bad", "etcd", f"etcd's data takes {status.db_used_bytes >> 20} of {quota_bytes >> 20} MiB", "remove old services")
        )
    findings += [Finding("bad", "etcd", f"etcd says: {error}") for error in status.errors]
    if not findings:
        findings.append(
            Finding("ok", "etcd", f"etcd {status.version}: {voters} voting, {status.db_size_bytes >> 10} KiB, term {status.raft_term}")
        )
    return findings
