"""Rotating the cluster's root: what an order means, who signs meanwhile, who is awaited, what the end is.

Pure, but for new keys and tokens. Snapshot parts in, the changed cluster object out; nothing is kept elsewhere, so any leader goes on.

    all trust the old root, it signs
      order    -> the new root signs; behind their own certificate nodes show that root, signed by the old one, which all still trust
      all that are connected have certificates of the new root
      the end  -> the new root is the root, join tokens are new; nodes hear of it and trust nothing else from then on

A node that is down is not awaited: `admission.readmit` lets it in when it comes back. Source: SwarmKit manager/controlapi/ca_rotation.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from msgspec.structs import replace

from orchestrator.errors import ConfigError
from orchestrator.model import CAConfig, Cluster, Node, RootRotation, TLSInfo
from orchestrator.security import ca, roots, tokens

# So many rotations may a node miss and still find the way.
MAX_BRIDGES = 16
_AWAITED = ("ready", "disconnected")


def issuing(cluster: Cluster) -> ca.RootCA:
    """The CA whose key signs now."""
    rotation = cluster.mesh_root_rotation
    if rotation is None:
        return ca.RootCA(cluster.mesh_ca_cert, cluster.mesh_ca_key)
    return ca.RootCA(rotation.ca_cert, rotation.ca_key, rotation.cross_signed)


def external_urls(config: CAConfig, root_certificate: str) -> list[str]:
    """Where the external CAs of this root sign."""
    same = ca.digest(root_certificate)
    return [known.url for known in config.external_cas or () if known.ca_cert and ca.digest(known.ca_cert) == same]


def normalized(cluster: Cluster, config: CAConfig) -> CAConfig:
    """External CAs with their root: none given means the present one. ConfigError: what is not one."""
    external = []
    for given in config.external_cas or ():
        if given.protocol.lower() != "cfssl":
            raise ConfigError(f'invalid CAProtocol "{given.protocol[:40]}": only cfssl is there')
        if not given.url.startswith("https://"):
            raise ConfigError(f'the external CA "{given.url[:80]}" has to be an https:// address')
        if len(given.options or {}) > 0:
            raise ConfigError("options of external CAs are not supported")
        root = ca.certificate_pem(ca.load_certificate(given.ca_cert)) if given.ca_cert else cluster.mesh_ca_cert
        external.append(replace(given, protocol="cfssl", ca_cert=root))
    return replace(config, external_cas=external or None)


def wanted(cluster: Cluster, config: CAConfig, now: datetime) -> ca.RootCA | None:
    """The root that the order asks for; None: it asks for no change of the root. ConfigError: that can't be one.

    config: normalized, and with the certificate, key and counter as they were sent.
    """
    if config.signing_ca_key and not config.signing_ca_cert:
        raise ConfigError("if a signing CA key is provided, the signing CA cert must also be provided")
    if config.signing_ca_cert:
        return roots.checked(config.signing_ca_cert, config.signing_ca_key, now)
    return ca.new_root(cluster.id, now) if config.force_rotate != cluster.mesh_force_rotate else None


def needs_signature_of_old_ca(cluster: Cluster, root: ca.RootCA) -> bool:
    """The present root's key is an external CA's, and it has to sign the new root."""
    rotation = cluster.mesh_root_rotation
    known = (cluster.mesh_ca_cert, rotation.ca_cert if rotation else "")
    return not cluster.mesh_ca_key and root.certificate not in known


def ordered(cluster: Cluster, config: CAConfig, root: ca.RootCA | None, now: datetime, cross_signed: str = "") -> Cluster:
    """The cluster under the order. cross_signed: the old CA's signature where it isn't ours to give. ConfigError: why it can't be.

    The given key goes where keys are, and no key stays in the spec.
    """
    kept = replace(config, signing_ca_cert="", signing_ca_key="")
    changed = replace(cluster, spec=replace(cluster.spec, ca_config=kept), mesh_force_rotate=config.force_rotate)
    if root is not None:
        changed = _under(changed, root, now, cross_signed)
    for which, certificate in without_key(changed).items():
        if not external_urls(kept, certificate):
            raise ConfigError(no_external(which))
    return replace(changed, tls_info=shown(changed), root_rotation_in_progress=changed.mesh_root_rotation is not None)


def _under(cluster: Cluster, root: ca.RootCA, now: datetime, cross_signed: str) -> Cluster:
    rotation = cluster.mesh_root_rotation
    if root.certificate == cluster.mesh_ca_cert:
        # back to where we are: what is on its way ends, nodes that went ahead come back
        return replace(cluster, mesh_ca_key=root.key, mesh_root_rotation=None)
    if ca.load_certificate(root.certificate).public_key() == ca.load_certificate(cluster.mesh_ca_cert).public_key():
        raise ConfigError("Cannot update to a cert with an identical key")
    if rotation is not None and root.certificate == rotation.ca_cert:
        return replace(cluster, mesh_root_rotation=replace(rotation, ca_key=root.key))
    bridge = cross_signed or roots.cross_signed(ca.RootCA(cluster.mesh_ca_cert, cluster.mesh_ca_key), root.certificate, now)
    if not roots.leads(bridge, cluster.mesh_ca_cert, root.certificate):
        raise ConfigError("unable to generate a cross-signed certificate for root rotation: the external CA signed something else")
    return replace(cluster, mesh_root_rotation=RootRotation(ca_cert=root.certificate, ca_key=root.key, cross_signed=bridge))


def without_key(cluster: Cluster) -> dict[str, str]:
    """Roots whose key only an external CA has."""
    signers = {"current": ca.RootCA(cluster.mesh_ca_cert, cluster.mesh_ca_key)}
    if cluster.mesh_root_rotation is not None:
        signers["desired"] = issuing(cluster)
    return {which: root.certificate for which, root in signers.items() if not root.key}


def no_external(which: str) -> str:
    return f"there must be at least one valid, reachable external CA corresponding to the {which} CA certificate"


def shown(cluster: Cluster) -> TLSInfo:
    """What a node has whose certificate is as it should be: the root that is trusted, and who signs."""
    trusted, signer = ca.tls_info(cluster.mesh_ca_cert), ca.tls_info(issuing(cluster).certificate)
    return replace(signer, trust_root=trusted.trust_root)


def awaited(cluster: Cluster, nodes: Iterable[Node]) -> list[str]:
    """Ids of the connected nodes whose certificate is not of the new root yet."""
    signer = cluster.tls_info.cert_issuer_public_key if cluster.tls_info else ""
    return sorted(node.id for node in nodes if node.status.state in _AWAITED and _issuer(node) != signer)


def _issuer(node: Node) -> str:
    return node.description.tls_info.cert_issuer_public_key if node.description.tls_info else ""


def finished(cluster: Cluster, nodes: Sequence[Node]) -> Cluster | None:
    """The cluster after the rotation; None: there is none, or a node is awaited."""
    rotation = cluster.mesh_root_rotation
    if rotation is None or awaited(cluster, nodes):
        return None
    return replace(
        cluster,
        mesh_ca_cert=rotation.ca_cert,
        mesh_ca_key=rotation.ca_key,
        mesh_root_rotation=None,
        root_rotation_in_progress=False,
        mesh_bridges=[*(cluster.mesh_bridges or ()), rotation.cross_signed][-MAX_BRIDGES:],
        tls_info=ca.tls_info(rotation.ca_cert),
        join_tokens=tokens.make_both(rotation.ca_cert),
    )
