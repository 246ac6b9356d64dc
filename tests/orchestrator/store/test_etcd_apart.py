"""etcd's CA is not the cluster's: what a node has, worker or manager, opens neither side of etcd."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from orchestrator.errors import StoreError
from orchestrator.security import ca
from orchestrator.security.identity import CERT_FILE, KEY_FILE, ROOT_FILE, unverified_context
from orchestrator.store.etcd_client import EtcdClient
from orchestrator.store.etcd_tls import TLSFiles
from tests.orchestrator.security.clusters import TestCluster

from .etcds import Etcds, eventually


async def refused(port: int, context: ssl.SSLContext) -> bool:
    """TLS 1.3 tells the client only after its own handshake that its certificate was not accepted."""
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            writer.write(b"GET /version HTTP/1.0\r\n\r\n")
            answer = await reader.read(1000)
            writer.close()
    except (ssl.SSLError, ConnectionError):
        return True
    return answer == b""


@pytest.mark.parametrize("role", ["worker", "manager"])
async def test_a_nodes_certificate_opens_no_etcd(etcd: Etcds, tmp_path: Path, role: ca.Role) -> None:
    await etcd.leader()
    config = etcd.configs[0]
    credentials = TestCluster(tmp_path).credentials("n1", role)
    node = unverified_context()
    credentials.show_in(node)
    nobody = unverified_context()
    for port in (config.client_port, config.peer_port):
        assert await refused(port, node)
        assert await refused(port, nobody)
    # so that the refusals mean something
    member = unverified_context()
    member.load_cert_chain(etcd.tls.cert, etcd.tls.key)
    assert not await refused(config.client_port, member)
    [directory] = tmp_path.iterdir()
    client = EtcdClient(config.endpoint, TLSFiles(directory / ROOT_FILE, directory / CERT_FILE, directory / KEY_FILE))
    with pytest.raises(StoreError):
        await client.status()
    await client.close()
    await eventually(lambda: "rejected connection" in (config.directory / "etcd.log").read_text())
