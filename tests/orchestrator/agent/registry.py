"""A registry that asks for a name and a password, with one image: run it as a program, in the network namespace of an Engine.

Edge: an HTTP server on loopback. Source: the distribution API, version 2; image manifest version 2, schema 2.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def content(layer: bytes) -> tuple[bytes, dict[str, bytes]]:
    """The manifest, and every blob by its digest."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/sleep", "1000"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    ).encode()
    blobs = {_digest(blob): blob for blob in (config, layer)}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "size": len(config), "digest": _digest(config)},
        "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar", "size": len(layer), "digest": _digest(layer)}],
    }
    return json.dumps(manifest).encode(), blobs


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def serve(port: int, user: str, password: str, layer: bytes) -> None:
    manifest, blobs = content(layer)
    wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            if self.headers.get("Authorization") != wanted:
                self._answer(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}', "application/json")
            elif self.path == "/v2/":
                self._answer(200, b"{}", "application/json")
            elif "/manifests/" in self.path:
                self._answer(200, manifest, MANIFEST)
            elif name in blobs:
                self._answer(200, blobs[name], "application/octet-stream")
            else:
                self._answer(404, b"{}", "application/json")

        do_HEAD = do_GET  # noqa: N815

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="test"')
            elif kind == MANIFEST:
                self.send_header("Docker-Content-Digest", _digest(body))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", port), Handler)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]).read_bytes())
