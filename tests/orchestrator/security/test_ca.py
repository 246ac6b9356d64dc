from __future__ import annotations

import base64
import re
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import ConfigError, RemoteProtocolError
from orchestrator.security import ca

from .clusters import CLUSTER_ID, now

NOW = now()
ROOT = ca.new_root(CLUSTER_ID, NOW)
KEY, CSR = ca.new_key_and_csr()


def issued(role: ca.Role = "worker", **more: object) -> str:
    return ca.issue(ROOT, CSR, node_id="node1", role=role, cluster_id=CLUSTER_ID, now=NOW, **more)  # type: ignore[arg-type]


def test_the_certificate_says_who_the_node_is() -> None:
    subject = ca.verify(issued("manager", addresses=["10.0.0.1", "fd00::1"]), ROOT.certificate, NOW)
    assert (subject.node_id, subject.role, subject.cluster_id) == ("node1", "manager", CLUSTER_ID)
    assert subject.not_before == NOW - timedelta(hours=1)
    assert subject.not_after == NOW + timedelta(days=90)
    names = ca.load_certificate(issued("manager", addresses=["10.0.0.1"])).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["node1", "swarm-manager"]
    assert [str(ip) for ip in names.value.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]
    assert ca.belongs(issued(), KEY)
    assert not ca.belongs(issued(), ca.new_key_and_csr()[0])


def test_the_root_lives_twenty_years_and_can_sign() -> None:
    root = ca.load_certificate(ROOT.certificate)
    assert root.not_valid_after_utc - NOW == timedelta(days=7300)
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not ca.load_certificate(issued()).extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_openssl_agrees(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    (tmp_path / "root.pem").write_text(ROOT.certificate)
    (tmp_path / "node.pem").write_text(issued("manager"))
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-CAfile",
        "root.pem",
        "-purpose",
        "sslserver",
        "-verify_hostname",
        "swarm-manager",
        "node.pem",
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("at", "text"),
    [(timedelta(days=90, seconds=1), "expired"), (timedelta(hours=-1, seconds=-1), "not valid before")],
)
def test_out_of_its_time_it_is_refused(at: timedelta, text: str) -> None:
    ca.verify(issued(), ROOT.certificate, NOW + timedelta(days=90))
    with pytest.raises(RemoteProtocolError, match=text):
        ca.verify(issued(), ROOT.certificate, NOW + at)


def test_another_root_of_the_same_name_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="not signed by this cluster"):
        ca.verify(issued(), ca.new_root(CLUSTER_ID, NOW).certificate, NOW)


def test_a_node_is_no_ca() -> None:
    """A certificate signed with a node's key is not the cluster's."""
    evil = ca.issue(ca.RootCA(issued(), KEY), CSR, node_id="node2", role="manager", cluster_id=CLUSTER_ID, now=NOW)
    with pytest.raises(RemoteProtocolError, match="not signed by this cluster"):
        ca.verify(evil, ROOT.certificate, NOW)


def test_life_is_bounded() -> None:
    short = ca.subject(issued(life=timedelta(seconds=1)))
    assert short.not_after == NOW + timedelta(hours=1)
    endless = ca.subject(issued(life=timedelta(days=99999)))
    assert endless.not_after == ca.load_certificate(ROOT.certificate).not_valid_after_utc


def test_nothing_of_the_request_but_its_key_is_taken() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    wish = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root-of-all")]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("swarm-manager")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    )
    certificate = ca.load_certificate(ca.issue(ROOT, wish, node_id="n", role="worker", cluster_id=CLUSTER_ID, now=NOW))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["n", "swarm-worker"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def request_with(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256()).public_bytes(
        serialization.Encoding.PEM
    ).decode()  # fmt: skip


def forged_signature() -> str:
    der = bytearray(base64.b64decode("".join(CSR.split("\n")[1:-2])))
    der[-3] ^= 1
    return "-----BEGIN CERTIFICATE REQUEST-----\n" + base64.b64encode(bytes(der)).decode() + "\n-----END CERTIFICATE REQUEST-----\n"


BAD_REQUESTS = {
    "nothing": "",
    "garbage": "garbage",
    "too long": CSR + " " * 9000,
    "a certificate": ROOT.certificate,
    "rsa": request_with(rsa.generate_private_key(65537, 2048)),
    "another curve": request_with(ec.generate_private_key(ec.SECP384R1())),
    "forged": forged_signature(),
}


@pytest.mark.parametrize("request_pem", BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_bad_requests_get_a_sentence(request_pem: str) -> None:
    with pytest.raises(RemoteProtocolError, match="certificate signing request"):
        ca.node_id_of(request_pem)


@settings(max_examples=50)
@given(st.text(max_size=300))
def test_no_text_breaks_the_request_parser(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        ca.node_id_of("-----BEGIN CERTIFICATE REQUEST-----\n" + text + "\n-----END CERTIFICATE REQUEST-----\n")


def test_the_node_id_is_the_keys() -> None:
    first = ca.node_id_of(CSR)
    assert re.fullmatch("[0-9a-z]{25}", first)
    assert ca.node_id_of(ca.csr_of(ca.load_key(KEY))) == first
    assert ca.node_id_of(ca.new_key_and_csr()[1]) != first


def test_tls_info_is_dockers() -> None:
    info = ca.tls_info(ROOT.certificate)
    assert info.trust_root == ROOT.certificate
    assert x509.load_pem_x509_certificate(ROOT.certificate.encode()).subject.public_bytes() == base64.b64decode(info.cert_issuer_subject)
    serialization.load_der_public_key(base64.b64decode(info.cert_issuer_public_key))


def test_bad_pem_gets_a_sentence() -> None:
    with pytest.raises(RemoteProtocolError, match="not a PEM certificate"):
        ca.digest("x")
    with pytest.raises(ConfigError, match="not a PEM private key"):
        ca.load_key("x")
    with pytest.raises(RemoteProtocolError, match="not a node's certificate"):
        ca.subject(ROOT.certificate)
