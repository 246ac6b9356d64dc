"""Rotating the root, decided: what OpenSSL accepts at every step, who is awaited, what is refused."""

from __future__ import annotations

import contextlib
import itertools
import ssl
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from orchestrator.errors import ConfigError, RemoteProtocolError
from orchestrator.model import CAConfig, Cluster, ExternalCA, Node, NodeDescription, NodeStatus, TLSInfo
from orchestrator.security import ca, roots, rotation, tokens
from orchestrator.security.identity import Identity

from .clusters import CLUSTER_ID, now

NOW = now()
ROOT = ca.new_root(CLUSTER_ID, NOW)
OTHER = ca.new_root(CLUSTER_ID, NOW)
URL = "https://ca.example/sign"
CLUSTER = Cluster(
    id=CLUSTER_ID,
    join_tokens=tokens.make_both(ROOT.certificate),
    mesh_ca_cert=ROOT.certificate,
    mesh_ca_key=ROOT.key,
    tls_info=ca.tls_info(ROOT.certificate),
)


def order(cluster: Cluster, **config: object) -> Cluster:
    asked = rotation.normalized(cluster, CAConfig(**config))  # type: ignore[arg-type]
    return rotation.ordered(cluster, asked, rotation.wanted(cluster, asked, NOW), NOW)


def issued(cluster: Cluster) -> Identity:
    """A worker's, as the cluster issues it now."""
    key, csr = ca.new_key_and_csr()
    certificate = ca.issue(rotation.issuing(cluster), csr, node_id="w1", role="worker", cluster_id=CLUSTER_ID, now=NOW)
    return Identity.of(certificate, key, cluster.mesh_ca_cert)


def node(id: str, tls_info: TLSInfo | None, state: str = "ready") -> Node:
    return Node(id=id, description=NodeDescription(tls_info=tls_info), status=NodeStatus(state=state))


def shake_hands(directory: Path, server: Identity, client_trusts: str) -> bool:
    """OpenSSL's own word, strict, without a network."""
    cert, key = directory / "cert", directory / "key"
    cert.write_text(server.certificate)
    key.write_text(server.key)
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(cert, key)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    theirs.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    theirs.load_verify_locations(cadata=client_trusts)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = theirs.wrap_bio(to_client, to_server, server_hostname="swarm-worker")
    other = ours.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(6):
            for side in (one, other):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
    except ssl.SSLCertVerificationError:
        return False
    return one.getpeercert() is not None


def test_whatever_nodes_trust_and_show_on_the_way_they_accept_each_other(tmp_path: Path) -> None:
    rotating = order(CLUSTER, force_rotate=1)
    after = rotation.finished(rotating, [])
    assert after is not None
    # at any moment a node has one of these, and trusts the old root until its own certificate is of the new one
    before, meanwhile = issued(CLUSTER), issued(rotating)
    renewed, late = issued(after), meanwhile.under(after.mesh_ca_cert, NOW)
    for server, client in itertools.product((before, meanwhile), (before, meanwhile)):
        assert shake_hands(tmp_path, server, client.root_certificate)
    for server, client in itertools.product((meanwhile, late, renewed), (late, renewed)):
        assert shake_hands(tmp_path, server, client.root_certificate)
    # a node that has not heard of the end yet
    assert shake_hands(tmp_path, late, meanwhile.root_certificate)
    # the old root is gone
    assert not shake_hands(tmp_path, before, late.root_certificate)
    with pytest.raises(RemoteProtocolError, match="not signed by this cluster's CA"):
        before.under(after.mesh_ca_cert, NOW)


def test_a_rotation_step_by_step() -> None:
    old = CLUSTER.tls_info
    assert old is not None
    rotating = order(CLUSTER, force_rotate=1)
    shown = rotating.tls_info
    assert shown is not None
    assert (rotating.root_rotation_in_progress, shown.trust_root) == (True, ROOT.certificate)
    assert shown.cert_issuer_public_key != old.cert_issuer_public_key
    assert rotating.join_tokens == CLUSTER.join_tokens
    assert issued(rotating).tls_info == shown
    assert issued(CLUSTER).tls_info == old
    nodes = [node("a", shown), node("b", old), node("c", old, "down"), node("d", None, "unknown"), node("e", None, "disconnected")]
    assert rotation.awaited(rotating, nodes) == ["b", "e"]
    assert rotation.finished(rotating, nodes) is None
    # who is down is not waited for
    after = rotation.finished(rotating, [node("a", shown), node("b", shown), node("c", old, "down")])
    assert after is not None
    assert (after.root_rotation_in_progress, after.mesh_root_rotation) == (False, None)
    assert after.mesh_ca_cert != ROOT.certificate
    assert after.tls_info == ca.tls_info(after.mesh_ca_cert)
    assert after.join_tokens is not None
    assert CLUSTER.join_tokens is not None
    for new, was in ((after.join_tokens.worker, CLUSTER.join_tokens.worker), (after.join_tokens.manager, CLUSTER.join_tokens.manager)):
        assert tokens.parse(new).digest == ca.digest(after.mesh_ca_cert)
        assert tokens.role_of(was, after.join_tokens) is None
    assert rotation.finished(after, nodes) is None
    # the same counter asks for nothing more, an update without one neither
    assert order(after, force_rotate=1) == after


def test_no_key_stays_in_the_spec() -> None:
    rotating = order(CLUSTER, signing_ca_cert=OTHER.certificate, signing_ca_key=OTHER.key)
    assert (rotating.spec.ca_config.signing_ca_cert, rotating.spec.ca_config.signing_ca_key) == ("", "")
    assert rotating.mesh_root_rotation is not None
    assert (rotating.mesh_root_rotation.ca_cert, rotating.mesh_root_rotation.ca_key) == (OTHER.certificate, OTHER.key)
    assert OTHER.key not in repr(rotation.issuing(rotating))


def test_an_order_on_the_way_replaces_the_one_before_and_the_old_root_ends_it() -> None:
    rotating = order(CLUSTER, force_rotate=1)
    again = order(rotating, force_rotate=2)
    assert again.mesh_root_rotation is not None
    assert again.mesh_root_rotation != rotating.mesh_root_rotation
    assert roots.leads(again.mesh_root_rotation.cross_signed, ROOT.certificate, again.mesh_root_rotation.ca_cert)
    same = order(again, force_rotate=2)
    assert same == again
    back = order(again, force_rotate=2, signing_ca_cert=ROOT.certificate, signing_ca_key=ROOT.key)
    assert (back.mesh_root_rotation, back.root_rotation_in_progress, back.tls_info) == (None, False, CLUSTER.tls_info)


def test_a_node_finds_the_way_over_any_number_of_rotations() -> None:
    trusted, cluster = [ROOT.certificate], CLUSTER
    for count in range(1, 5):
        after = rotation.finished(order(cluster, force_rotate=count), [])
        assert after is not None
        cluster = after
        trusted.append(cluster.mesh_ca_cert)
    bridges = cluster.mesh_bridges or []
    assert len(bridges) == 4
    for root in trusted:
        assert roots.successor(root, cluster.mesh_ca_cert, bridges, NOW)
    assert not roots.successor(OTHER.certificate, cluster.mesh_ca_cert, bridges, NOW)
    assert not roots.successor(trusted[0], cluster.mesh_ca_cert, bridges[1:], NOW)
    assert not roots.successor(trusted[0], cluster.mesh_ca_cert, [*reversed(bridges)], NOW)
    assert not roots.successor(trusted[0], OTHER.certificate, bridges, NOW)
    assert not roots.successor(trusted[0], cluster.mesh_ca_cert, bridges, NOW + timedelta(days=365 * 21))
    # a node's certificate is no bridge, though the old root has signed it
    leaf = issued(CLUSTER)
    assert not roots.successor(ROOT.certificate, leaf.certificate, [leaf.certificate], NOW)


def test_external_cas_stand_for_keys() -> None:
    with pytest.raises(ConfigError, match="at least one valid, reachable external CA corresponding to the desired CA certificate"):
        order(CLUSTER, signing_ca_cert=OTHER.certificate)
    known = [ExternalCA(protocol="cfssl", url=URL, ca_cert=OTHER.certificate)]
    rotating = order(CLUSTER, signing_ca_cert=OTHER.certificate, external_cas=known)
    assert rotation.external_urls(rotating.spec.ca_config, OTHER.certificate) == [URL]
    assert rotation.without_key(rotating) == {"desired": OTHER.certificate}
    after = rotation.finished(rotating, [])
    assert after is not None
    assert (after.mesh_ca_cert, after.mesh_ca_key) == (OTHER.certificate, "")
    # the only ones that can sign may not be taken away
    with pytest.raises(ConfigError, match="corresponding to the current CA certificate"):
        order(after)
    wanted = ca.new_root(CLUSTER_ID, NOW)
    assert rotation.needs_signature_of_old_ca(after, wanted)
    assert not rotation.needs_signature_of_old_ca(after, ca.RootCA(OTHER.certificate, OTHER.key))
    taken = order(after, signing_ca_cert=OTHER.certificate, signing_ca_key=OTHER.key)
    assert (taken.mesh_ca_key, taken.mesh_root_rotation) == (OTHER.key, None)
    # without a root an external CA is the present root's
    assert order(CLUSTER, external_cas=[ExternalCA(protocol="CFSSL", url=URL)]).spec.ca_config.external_cas == [
        ExternalCA(protocol="cfssl", url=URL, ca_cert=ROOT.certificate)
    ]


def given_root(**different: object) -> tuple[str, str]:
    """(certificate, key) of a good root but for what is told."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ours")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW + different.get("starts", timedelta()))  # type: ignore[operator]
        .not_valid_after(NOW + different.get("life", timedelta(days=3650)))  # type: ignore[operator]
        .add_extension(different.get("constraints", x509.BasicConstraints(ca=True, path_length=None)), critical=True)  # type: ignore[arg-type]
    )
    if different.get("ski", True):
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    signer = different.get("signer", key)
    return ca.certificate_pem(builder.sign(signer, hashes.SHA256())), ca.key_pem(key)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("different", "text"),
    [
        ({"constraints": x509.BasicConstraints(ca=False, path_length=None)}, "not a CA's"),
        ({"constraints": x509.BasicConstraints(ca=True, path_length=0)}, "path length of 0"),
        ({"ski": False}, "subject key identifier"),
        ({"life": timedelta(days=300)}, "CA certificate expires too soon"),
        ({"starts": timedelta(days=1)}, "not valid yet"),
        ({"signer": ec.generate_private_key(ec.SECP256R1())}, "signed by its own key"),
    ],
)
def test_roots_that_would_not_do_are_refused(different: dict[str, object], text: str) -> None:
    certificate, key = given_root(**different)
    with pytest.raises(ConfigError, match=text):
        order(CLUSTER, signing_ca_cert=certificate, signing_ca_key=key)


def test_a_given_root_is_taken_and_others_are_refused(tmp_path: Path) -> None:
    certificate, key = given_root()
    rotating = order(CLUSTER, signing_ca_cert=certificate, signing_ca_key=key)
    assert shake_hands(tmp_path, issued(rotating), ROOT.certificate)
    for asked, text in (
        ({"signing_ca_cert": certificate, "signing_ca_key": OTHER.key}, "don't belong together"),
        ({"signing_ca_cert": certificate, "signing_ca_key": "x"}, "not a PEM private key"),
        ({"signing_ca_cert": certificate + OTHER.certificate, "signing_ca_key": key}, "multiple certificates"),
        ({"signing_ca_key": key}, "the signing CA cert must also be provided"),
        ({"external_cas": [ExternalCA(protocol="cfssl", url=URL, options={"a": "b"})]}, "options of external CAs"),
    ):
        with pytest.raises(ConfigError, match=text):
            order(CLUSTER, **asked)
    reissued = ca.load_certificate(ROOT.certificate)
    builder = x509.CertificateBuilder(
        reissued.issuer, reissued.subject, reissued.public_key(), 7, NOW, NOW + timedelta(days=4000), [*reissued.extensions]  # type: ignore[arg-type]
    )  # fmt: skip
    same_key = ca.certificate_pem(builder.sign(ca.load_ca_key(ROOT.key), hashes.SHA256()))
    with pytest.raises(ConfigError, match="identical key"):
        order(CLUSTER, signing_ca_cert=same_key, signing_ca_key=ROOT.key)


def test_openssl_makes_roots_that_are_taken(tmp_path: Path) -> None:
    """As people do; RSA too."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "cert", "-days", "3650", "-subj", "/CN=ours",
         "-addext", "keyUsage=critical,keyCertSign,cRLSign"], cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    certificate, key = (tmp_path / "cert").read_text(), (tmp_path / "key").read_text()
    config = CAConfig(signing_ca_cert=certificate, signing_ca_key=key)
    # it is younger than this module's NOW
    rotating = rotation.ordered(CLUSTER, config, rotation.wanted(CLUSTER, config, now()), now())
    assert shake_hands(tmp_path, issued(rotating), ROOT.certificate)
    after = rotation.finished(rotating, [])
    assert after is not None
    assert shake_hands(tmp_path, issued(after), certificate)
    # and from there to one of ours
    assert shake_hands(tmp_path, issued(order(after, force_rotate=1)), certificate)


def test_life_of_nodes_follows_the_spec() -> None:
    changed = order(CLUSTER, node_cert_expiry=3600 * 10**9)
    assert replace(changed, spec=CLUSTER.spec) == CLUSTER
