"""A tiny image made on the spot, so that a lab needs no registry: a static busybox with its applets and a little web server.

Edge: reads the machine's busybox. Its answer at / is `<container's hostname> <version>`.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import struct
import subprocess
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from orchestrator.errors import ConfigError

DEMO_IMAGE = "meshd/demo"
VERSIONS = ("v1", "v2")
# / is a static page written at start (cheap enough for a load test); /cgi-bin/client says whom the server takes for its client.
# PID 1 gets no default signal handlers: without the trap every stop would take the whole grace period.
_SERVE = """#!/bin/sh
mkdir -p /tmp/www/cgi-bin && cp /www/cgi-bin/client /tmp/www/cgi-bin/ && echo "$(hostname) ${VERSION:-none}" > /tmp/www/index.html
httpd -f -p "${PORT:-80}" -h /tmp/www &
trap "kill $!; exit 0" TERM INT
wait
"""
_IDLE = """#!/bin/sh
sleep 2147483647 &
trap "kill $!; exit 0" TERM INT
wait
"""
_CLIENT = """#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
echo "$(hostname) ${VERSION:-none} $REMOTE_ADDR"
"""


def busybox() -> Path:
    """The machine's static busybox. ConfigError if there is none, or if it needs shared libraries."""
    path = next((Path(p) for p in ("/bin/busybox", "/usr/bin/busybox") if Path(p).exists()), None)
    if path is None:
        raise ConfigError("busybox is missing: apt-get install busybox-static")
    if not _is_static(path.read_bytes()):
        raise ConfigError(f"{path} needs shared libraries: apt-get install busybox-static")
    return path


def _is_static(program: bytes) -> bool:
    """An ELF file without a PT_INTERP (3) program header needs no loader. Source: elf(5), 64-bit layout."""
    table, size, count = *struct.unpack_from("<Q", program, 32), *struct.unpack_from("<HH", program, 54)
    return all(struct.unpack_from("<I", program, table + i * size)[0] != 3 for i in range(count))


def rootfs() -> bytes:
    """The image's root file system as a tar archive."""
    program = busybox()
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for directory in ("bin", "etc", "tmp", "www", "www/cgi-bin", "proc", "sys", "dev", "run"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            tar.addfile(entry)
        for name, content, mode in (
            ("bin/busybox", program.read_bytes(), 0o755),
            ("www/cgi-bin/client", _CLIENT.encode(), 0o755),
            ("bin/serve", _SERVE.encode(), 0o755),
            ("bin/idle", _IDLE.encode(), 0o755),
            ("etc/passwd", b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n", 0o644),
            ("etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644),
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
        for applet in applets:
            if applet != "busybox":
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
    return buffer.getvalue()


def archive() -> bytes:
    """All versions, for `docker load`: the same images, with the same ids, wherever it is loaded. The first is `latest`, too."""
    layer = rootfs()
    digest = hashlib.sha256(layer).hexdigest()
    created = datetime.fromtimestamp(int(busybox().stat().st_mtime), UTC)
    files = {"layer.tar": layer}
    manifest = []
    for number, version in enumerate(VERSIONS):
        # one after the other: lists of images have an order then
        moment = (created + timedelta(seconds=number)).isoformat().replace("+00:00", "Z")
        config = {
            "architecture": "amd64" if platform.machine() == "x86_64" else "arm64",
            "os": "linux",
            "created": moment,
            "config": {"Cmd": ["serve"], "ExposedPorts": {"80/tcp": {}}, "Env": [f"VERSION={version}", "PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
            "history": [{"created": moment, "comment": "made by the lab"}],
        }
        files[f"{version}.json"] = json.dumps(config).encode()
        tags = [f"{DEMO_IMAGE}:{tag}" for tag in (version, *(["latest"] if number == 0 else []))]
        manifest.append({"Config": f"{version}.json", "RepoTags": tags, "Layers": ["layer.tar"]})
    files["manifest.json"] = json.dumps(manifest).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
