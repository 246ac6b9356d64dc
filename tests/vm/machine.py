"""A throw-away virtual machine: Debian's own kernel over this machine's files, one command, its exit code.

Edge. QEMU interprets every instruction (no KVM needed), so the guest is about ten times slower than its host: it is for what needs a
kernel with ip_vs, and for nothing else. The guest sees this machine's root over 9p, read-only, with a tmpfs on top: whatever it does
to its disk or its kernel ends with it. A second 9p share, writable, carries the command in and results out.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUEST_SHARE = "/run/share"
_BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
_QEMU = "qemu-system-x86_64"
_BUSYBOX = "/bin/busybox"

_INIT = """#!{busybox} sh
b={busybox}
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
for m in {modules}; do $b insmod /modules/$m || echo "insmod $m failed"; done
nine=trans=virtio,version=9p2000.L,msize=262144
$b mount -t 9p -o $nine,ro,cache=loose root /lower || echo "no root"
$b mount -t tmpfs tmpfs /upper; $b mkdir /upper/u /upper/w
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/u,workdir=/upper/w overlay /new || echo "no overlay"
for m in proc sys dev; do $b mount --move /$m /new/$m; done
$b mount -t tmpfs -o mode=1777 tmpfs /new/tmp
$b mount -t tmpfs tmpfs /new/run; $b mkdir -p /new/run/netns /new/run/lock /new{share} /new/lib/modules
$b mkdir -p /new/dev/pts /new/dev/shm; $b mount -t devpts devpts /new/dev/pts; $b mount -t tmpfs tmpfs /new/dev/shm
# the repository may lie below a directory that the lines above have covered, such as /tmp
$b mkdir -p /upper/pu /upper/pw /new{project}
$b mount -t overlay -o lowerdir=/lower{project},upperdir=/upper/pu,workdir=/upper/pw overlay /new{project} || echo "no repository"
$b mount -t 9p -o $nine,rw,cache=none share /new{share} || echo "no share"
$b mount -t tmpfs tmpfs /new/lib/modules
$b mkdir /new/lib/modules/{version}; $b mount --bind /new{kernel}/lib/modules/{version} /new/lib/modules/{version}
$b ip link set lo up
$b hostname guest
# in this very process: what the kernel calls by itself (modprobe) sees the root that process 1 has
exec $b chroot /new {busybox} sh {share}/boot
"""


_BOOT = f"""/bin/sh {GUEST_SHARE}/command </dev/null >{GUEST_SHARE}/output 2>&1
echo $? >{GUEST_SHARE}/exit
sync
{_BUSYBOX} poweroff -f
"""


class Unavailable(Exception):
    """This machine can't run it; the text says what to do."""


class GuestFailed(Exception):
    """The machine did not come up, or didn't end in time. The text has the end of its console."""


@dataclass(frozen=True, slots=True)
class Result:
    exit_code: int
    output: str


def kernel() -> Path:
    """The directory that scripts/vm-kernel prints. Raises Unavailable where there can be no machine."""
    if platform.machine() != "x86_64":
        raise Unavailable(f"the virtual machine is for x86_64, this is {platform.machine()}")
    if shutil.which(_QEMU) is None:
        raise Unavailable("needs the package qemu-system-x86: run scripts/bootstrap")
    done = subprocess.run([str(ROOT / "scripts/vm-kernel")], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    if done.returncode:
        raise Unavailable(f"no kernel for the virtual machine: {done.stderr.strip() or 'scripts/vm-kernel failed'}")
    return Path(done.stdout.strip())


def run(command: Sequence[str], share: Path, *, timeout_s: float, environment: Mapping[str, str] | None = None) -> Result:
    """Boot, run the command there in the directory of this repository, halt. `share` is GUEST_SHARE inside; the console is left in it.

    Raises Unavailable, or GuestFailed when the command's exit code did not arrive within `timeout_s`.
    """
    directory = kernel()
    values = {"HOME": "/root", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin", "MESHD_GUEST": "1", **(environment or {})}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(values.items())]
    (share / "command").write_text("\n".join([*lines, f"cd {shlex.quote(str(ROOT))}", f"exec {shlex.join(command)}"]) + "\n")
    (share / "boot").write_text(_BOOT)
    (share / "exit").unlink(missing_ok=True)
    console = share / "console"
    initrd = share / "initrd"
    initrd.write_bytes(_initrd(directory))
    # one thread a processor, and no more of them than this machine has
    processors = max(1, min(2, os.cpu_count() or 1))
    machine = [_QEMU, "-M", "pc", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max", "-smp", str(processors), "-m", "1536"]
    machine += ["-nodefaults", "-no-reboot", "-display", "none", "-serial", f"file:{console}"]
    machine += ["-kernel", str(directory / "vmlinuz"), "-initrd", str(initrd), "-append", "console=ttyS0 quiet panic=-1 mitigations=off"]
    for tag, path, options in (("root", Path("/"), "readonly=on,multidevs=remap"), ("share", share, "multidevs=remap")):
        machine += ["-virtfs", f"local,path={path},mount_tag={tag},security_model=none,{options}"]
    process = subprocess.Popen(
        machine, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=_die_with_us
    )
    try:
        _, complaint = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise GuestFailed(f"no end within {timeout_s:.0f} s; its console:\n{_tail(console)}\n{_tail(share / 'output')}") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    try:
        return Result(int((share / "exit").read_text()), (share / "output").read_text(errors="replace"))
    except (OSError, ValueError):
        raise GuestFailed(f"it ended without an exit code: {complaint.decode(errors='replace')}\n{_tail(console)}") from None


@contextmanager
def shared_directory() -> Iterator[Path]:
    """An empty directory for `run`. Kept, and named, where the block fails: the console and the output are in it."""
    path = Path(tempfile.mkdtemp(prefix="meshd-vm-"))
    try:
        yield path
    except Exception as error:
        error.add_note(f"what the virtual machine said is in {path}")
        raise
    shutil.rmtree(path)


def _die_with_us() -> None:
    """PR_SET_PDEATHSIG: a test run that is killed leaves no machine behind."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _tail(path: Path, size_bytes: int = 3000) -> str:
    try:
        return path.read_bytes()[-size_bytes:].decode(errors="replace")
    except OSError:
        return ""


def _initrd(directory: Path) -> bytes:
    """busybox, the modules that find the root, and /init. Source: the kernel's early-userspace/buffer-format (cpio, "newc")."""
    version = next((directory / "lib/modules").iterdir()).name
    modules: list[Path] = []
    for name in _BOOT_MODULES:
        shown = ["modprobe", "--show-depends", "-d", str(directory), "-S", version, name]
        for line in subprocess.run(shown, check=True, capture_output=True, text=True).stdout.splitlines():
            kind, _, path = line.strip().partition(" ")
            if kind == "insmod" and Path(path) not in modules:
                modules.append(Path(path))
    names = " ".join(module.name for module in modules)
    init = _INIT.format(modules=names, share=GUEST_SHARE, version=version, kernel=directory, busybox=_BUSYBOX, project=ROOT)
    archive = [_entry(name, 0o040755, b"") for name in ("bin", "dev", "proc", "sys", "modules", "lower", "upper", "new")]
    archive.append(_entry("bin/busybox", 0o100755, Path(_BUSYBOX).read_bytes()))
    archive += [_entry(f"modules/{m.name}", 0o100644, m.read_bytes()) for m in modules]
    archive += [_entry("init", 0o100755, init.encode()), _entry("TRAILER!!!", 0, b"")]
    return b"".join(archive)


def _entry(name: str, mode: int, content: bytes) -> bytes:
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % f for f in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)
