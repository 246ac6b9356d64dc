"""Who led and who renewed, out of the store's own history.

Edge: gRPC to one etcd. A program of its own, to be run inside a manager's namespaces: `python -m tests.chaos.leaders ENDPOINT STATE_DIR
FIRST_REVISION` prints a JSON line for every change of the leadership since, up to now.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from aetcd.rpc import kv_pb2
from aetcd.rpc import rpc_pb2 as pb
from aetcd.rpc import rpc_pb2_grpc as stubs

from orchestrator.lab.lab import Lab, LabError
from orchestrator.model import Leadership, Version
from orchestrator.security import keyring
from orchestrator.store import etcd_tls
from orchestrator.store.etcd_client import EtcdClient, open_channel
from orchestrator.store.etcd_codec import decode, key
from orchestrator.store.sealing import Sealing, sealing

from .history import Term

_SILENCE_S = 2.0


def terms_since(lab: Lab, managers: list[str], first_revision: int) -> list[Term]:
    """Asks one manager after the other; LabError if none can tell."""
    errors = []
    for name in managers:
        node = lab.node(name)
        command = [sys.executable, "-m", "tests.chaos.leaders", "127.0.0.1:2379", str(node.layout.meshd_dir), str(first_revision)]
        try:
            lines = node.exec("env", f"PYTHONPATH={Path(__file__).parents[2]}", "timeout", "20", *command).splitlines()
            return [Term(**json.loads(line)) for line in lines]
        except LabError as error:
            errors.append(str(error))
    raise LabError("; ".join(errors))


async def _read(endpoint: str, tls: etcd_tls.TLSFiles, seal: Sealing, first_revision: int) -> list[Term]:
    client = EtcdClient(endpoint, tls)
    try:
        last = await client.read_linearizable()
    finally:
        await client.close()
    terms: dict[int, Term] = {}
    channel = open_channel(endpoint, tls)
    try:
        while True:
            stream = stubs.WatchStub(channel).Watch()
            prefix = key("leader", "")
            create = pb.WatchCreateRequest(key=prefix, range_end=prefix[:-1] + b"0", start_revision=first_revision)
            await stream.write(pb.WatchRequest(create_request=create))
            try:
                while True:
                    async with asyncio.timeout(_SILENCE_S):
                        response = await stream.read()
                    if response.compact_revision:
                        first_revision = response.compact_revision
                        break
                    for term in _terms(response.events, seal):
                        # both keys are written when the leadership is taken
                        if term.revision not in terms or term.taken:
                            terms[term.revision] = term
            except TimeoutError:
                return [terms[revision] for revision in sorted(terms) if revision <= last]
            finally:
                stream.cancel()
    finally:
        await channel.close()


def _terms(events: list[kv_pb2.Event], seal: Sealing) -> Iterator[Term]:
    for event in events:
        if event.type == kv_pb2.Event.PUT:
            held = decode("leader", seal.open(event.kv.key, event.kv.value), Version(index=event.kv.mod_revision))
            assert isinstance(held, Leadership)
            yield Term(event.kv.mod_revision, held.node_id, event.kv.key == key("leader", "leader"))


def main() -> None:
    endpoint, directory, first_revision = sys.argv[1:]
    keys = keyring.load(Path(directory))
    assert keys is not None, f"{directory} is no manager's"
    place = Path(directory) / "etcd" / "tls"
    files = etcd_tls.TLSFiles(ca=place / "ca.crt", cert=place / "etcd.crt", key=place / "etcd.key")
    tls, _ = etcd_tls.opened(files, keys.passphrase)
    for term in asyncio.run(_read(endpoint, tls, sealing(keys.store_key), int(first_revision))):
        print(json.dumps({"revision": term.revision, "holder": term.holder, "taken": term.taken}))


if __name__ == "__main__":
    main()
