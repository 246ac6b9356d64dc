"""Held start: a container is started with its application waiting, so that its namespaces exist before its first line runs.

Edge: makes files, opens a FIFO, reads /proc. Source: fifo(7), proc(5); busybox 1.35 ash and env.

The holder is a static busybox, bind-mounted (with the FIFO beside it) at /.meshd, that becomes the container's process: ash reads the
FIFO, then `exec`s the application by way of busybox env. Three things an obvious script gets wrong:
- busybox prefers its own applets to the image's programs ("ls" would be busybox's): the program is looked up here, and exec'ed by path.
- ash drops environment variables that are no shell identifiers ("discovery.type") and adds SHLVL and PWD: env puts that right.
- a reader of a FIFO sees end of file when a writer dies before it wrote: the holder opens it again.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from orchestrator.errors import ConfigError

MOUNT = "/.meshd"
_BUSYBOX = f"{MOUNT}/busybox"
_WORD = "go"
# ash itself writes these, or gives them a meaning of its own
_SHELL_VARIABLES = frozenset({"IFS", "LINENO", "OLDPWD", "OPTARG", "OPTIND", "PPID", "PWD", "RANDOM", "SHLVL", "_"})
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_COMPLAINT = "meshd: "
# what /proc shows of a process in the middle of execve(2): from runc to the holder, or from there to the application
_NONE_YET = [""]

# $1 = the program, the rest its arguments. The wording is the Engine's own (Go os/exec), exit codes are those of execvp users.
_SCRIPT = """\
until read -r meshd_word <{mount}/go && [ "$meshd_word" = {word} ]; do :; done
meshd_program=$1; shift
meshd_fail() {{ printf '{complaint}exec: "%s": %s\\n' "$meshd_program" "$1" >&2; exit "$2"; }}
meshd_path=$meshd_program
case $meshd_program in
*/*)
  [ -e "$meshd_path" ] || meshd_fail "stat $meshd_program: no such file or directory" 127
  [ -d "$meshd_path" ] && meshd_fail "is a directory" 126
  [ -x "$meshd_path" ] || meshd_fail "permission denied" 126 ;;
*)
  meshd_path= meshd_rest=$PATH:
  while [ -n "$meshd_rest" ]; do
    meshd_try=${{meshd_rest%%:*}}; meshd_try=${{meshd_try:-.}}/$meshd_program; meshd_rest=${{meshd_rest#*:}}
    [ -f "$meshd_try" ] && [ -x "$meshd_try" ] && meshd_path=$meshd_try && break
  done
  [ -n "$meshd_path" ] || meshd_fail 'executable file not found in $PATH' 127 ;;
esac
exec {busybox} env -u SHLVL -u PWD {environment} "$meshd_path" "$@"
"""


# ENTRYPOINT of a held container; its CMD is the application's whole argument vector
ENTRYPOINT = (_BUSYBOX, "sh", f"{MOUNT}/start")


def script(environment: Iterable[str]) -> str:
    """What the holder runs. environment: "NAME=value" of image and spec, the latter last."""
    return _SCRIPT.format(
        mount=MOUNT, word=_WORD, complaint=_COMPLAINT, busybox=_BUSYBOX, environment=" ".join(map(shlex.quote, put_back(environment)))
    )


def put_back(environment: Iterable[str]) -> list[str]:
    """Those of the variables that the holder's shell would drop or change."""
    latest = {name: value for name, separator, value in (entry.partition("=") for entry in environment) if separator}
    return [f"{n}={v}" for n, v in latest.items() if n and (n in _SHELL_VARIABLES or not _IDENTIFIER.match(n))]


def complaint(last_line: str) -> str:
    """What the holder said when it could not run the program; "" if the line is not the holder's."""
    line = last_line.strip()
    if line.startswith(_COMPLAINT + "exec: "):
        return line.removeprefix(_COMPLAINT)
    # the lookup succeeded and execve did not: a missing interpreter or a foreign binary
    if match := re.fullmatch(r"env: can't execute '(.*)': (.*)", line):
        return f'exec: "{match[1]}": {match[2].lower()}'
    return ""


def is_holder(command_line: Sequence[str]) -> bool:
    return tuple(command_line[:3]) == ENTRYPOINT


def find_busybox() -> Path:
    """The machine's static busybox. ConfigError if there is none, or if it needs shared libraries (an image may have none)."""
    path = next((Path(p) for p in ("/bin/busybox", "/usr/bin/busybox") if Path(p).exists()), None)
    if path is None:
        raise ConfigError("busybox is missing: apt-get install busybox-static")
    if _needs_loader(path.read_bytes()):
        raise ConfigError(f"{path} needs shared libraries: apt-get install busybox-static")
    return path


def _needs_loader(program: bytes) -> bool:
    """An ELF file with a PT_INTERP (3) program header. Source: elf(5), 64-bit layout."""
    table, size, count = *struct.unpack_from("<Q", program, 32), *struct.unpack_from("<HH", program, 54)
    return any(struct.unpack_from("<I", program, table + i * size)[0] == 3 for i in range(count))


def install(directory: Path, busybox: Path) -> Path:
    """Copy busybox to `directory`, where every gate links to it. ConfigError if programs can't be executed there."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / "busybox"
    if not target.exists() or target.stat().st_size != busybox.stat().st_size:
        temporary = directory / "busybox.new"
        shutil.copyfile(busybox, temporary)
        temporary.chmod(0o755)
        temporary.replace(target)
    if os.statvfs(directory).f_flag & os.ST_NOEXEC:
        raise ConfigError(f"{directory} is mounted noexec: choose a state directory on another file system")
    return target


def make_gate(directory: Path, busybox: Path, script: str) -> None:
    """What is mounted into a container at /.meshd. Idempotent. Readable by all: the container's user may be anybody."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    if not (directory / "busybox").exists():
        os.link(busybox, directory / "busybox")
    (directory / "start").write_text(script)
    (directory / "start").chmod(0o644)
    if not (directory / "go").exists():
        os.mkfifo(directory / "go")
        (directory / "go").chmod(0o644)


def open_gate(directory: Path) -> bool:
    """Let the holder go on, if one is waiting just now. Never blocks.

    True: a reader had the FIFO open (or waits in open), and will get the word whatever happens to us next. False: nobody reads (yet,
    or any more).
    """
    try:
        fd = os.open(directory / "go", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):
            return False
        raise
    try:
        os.write(fd, f"{_WORD}\n".encode())
    finally:
        os.close(fd)
    return True


def mark_released(directory: Path) -> None:
    (directory / "released").touch()


def is_released(directory: Path) -> bool:
    """Whether the gate is known to have been opened. Written after the fact: a crash in between costs a second, harmless release."""
    return (directory / "released").exists()


def is_waiting(pid: int) -> bool:
    """Whether the container whose first process is `pid` has not got past its holder. With an init process, its child is the holder."""
    command_line = _command_line(pid)
    if command_line == _NONE_YET:
        return _is_alive(pid)
    if command_line[1:2] == ["init"] and Path(command_line[0]).name == "runc":
        return True
    if is_holder(command_line):
        return True
    if Path(command_line[0] if command_line else "").name == "docker-init":
        children = [_command_line(child) for child in _children(pid)]
        return not children or any(is_holder(child) or child in (command_line, _NONE_YET) for child in children)
    return False


def _is_alive(pid: int) -> bool:
    """A zombie has no command line either, and no namespaces."""
    return Path(f"/proc/{pid}/ns/net").exists()


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
