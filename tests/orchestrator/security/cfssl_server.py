"""A cfssl server as far as `sign` goes: strict about what it is sent, and able to answer wrongly on demand.

Source: CloudFlare's cfssl, doc/api/endpoint_sign.txt. It shows a certificate under the root it signs for, and lets in managers only.
"""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from orchestrator.security import ca
from orchestrator.security.peer import peer_of

from .clusters import CLUSTER_ID, now

_KNOWN = {"hosts", "certificate_request", "subject", "profile", "extensions"}
_CA_EXTENSION = [{"id": "2.5.29.19", "critical": True, "value": "30060101ff020100"}]


@dataclass
class CfsslServer:
    """wrong: what it does wrong. asked: profiles of the requests it has answered."""

    root: ca.RootCA
    trusts: str
    wrong: str = ""
    asked: list[str] = field(default_factory=list)
    url: str = ""

    async def sign(self, request: web.Request) -> web.Response:
        peer = peer_of(request.transport, CLUSTER_ID)
        if peer is None or peer.role != "manager":
            return _answer(403, errors=[{"code": 403, "message": "managers only"}])
        body = json.loads(await request.read())
        assert request.content_type == "application/json"
        assert set(body) <= _KNOWN, body
        self.asked.append(body.get("profile", ""))
        if self.wrong == "refusal":
            return _answer(400, errors=[{"code": 1, "message": "policy says no"}])
        if self.wrong == "garbage":
            return web.Response(body=b"\xff" * 100)
        if self.wrong == "endless":
            return web.Response(body=b" " * 200_000)
        if body.get("profile") == "CA":
            assert body["extensions"] == _CA_EXTENSION
            assert "subject" not in body
            return _answer(200, certificate=self._cross_signed(body["certificate_request"]))
        [name] = body["subject"]["names"]
        assert set(name) == {"OU", "O"}
        return _answer(200, certificate=self._certificate(body, name))

    def _certificate(self, body: dict[str, Any], name: dict[str, str]) -> str:
        csr, node_id = body["certificate_request"], body["subject"]["CN"]
        role = ca.ROLE_OF[name["OU"]]
        assert {node_id, name["OU"]} <= set(body["hosts"])
        root = self.root
        match self.wrong:
            case "another key":
                csr = ca.new_key_and_csr()[1]
            case "another node":
                node_id = "somebody"
            case "another role":
                role = "manager"
            case "another root":
                root = ca.new_root(CLUSTER_ID, now())
        at = now() - timedelta(days=2) if self.wrong == "expired" else now()
        return ca.issue(root, csr, node_id=node_id, role=role, cluster_id=name["O"], now=at, life=timedelta(hours=1))

    def _cross_signed(self, csr: str) -> str:
        request, issuer = x509.load_pem_x509_csr(csr.encode()), ca.load_certificate(self.root.certificate)
        key = ca.load_ca_key(ca.new_root(CLUSTER_ID, now()).key).public_key() if self.wrong == "another key" else request.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(request.subject)
            .issuer_name(issuer.subject)
            .public_key(key)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(now())
            .not_valid_after(issuer.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(ca.key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)  # type: ignore[arg-type]
            .add_extension(ca.authority_key(issuer), critical=False)
        )
        return ca.certificate_pem(builder.sign(ca.load_ca_key(self.root.key), hashes.SHA256()))


def _answer(status: int, *, certificate: str = "", errors: list[dict[str, Any]] | None = None) -> web.Response:
    result = {"certificate": certificate} if certificate else None
    return web.json_response({"success": not errors, "result": result, "errors": errors or [], "messages": []}, status=status)


@contextlib.asynccontextmanager
async def cfssl(directory: Path, root: ca.RootCA, trusts: str) -> AsyncIterator[CfsslServer]:
    """Serving on loopback. trusts: PEM of the root that clients' certificates are under."""
    server = CfsslServer(root, trusts)
    key, csr = ca.new_key_and_csr()
    certificate = ca.issue(root, csr, node_id="cfssl", role="worker", cluster_id=CLUSTER_ID, now=now(), addresses=["127.0.0.1"])
    (directory / "cfssl.pem").write_text(key + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cfssl.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=trusts)
    app = web.Application()
    app.router.add_post("/api/v1/cfssl/sign", server.sign)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    assert site._server is not None
    server.url = f"https://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/api/v1/cfssl/sign"  # type: ignore[attr-defined]
    try:
        yield server
    finally:
        await runner.cleanup()
