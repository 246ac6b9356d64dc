"""Network namespaces: create, delete, find, and act inside them.

Edge. Source: network_namespaces(7), setns(2), ip-netns(8). A namespace is entered by the calling thread only; no descriptor of one is
kept, so nothing here keeps a namespace alive that its owner let go. Sockets opened and processes forked inside stay inside.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mesh.errors import KernelError, NamespaceGone

_CLONE_NEWNET: Final = 0x40000000
_MS_BIND: Final = 4096
_MS_REC: Final = 16384
_MS_SHARED: Final = 1 << 20
_MNT_DETACH: Final = 2
_MODE: Final = 0o444
_THREAD_NS: Final = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def _call(op: str, result: int) -> None:
    if result != 0:
        raise KernelError(op, ctypes.get_errno())


def setns(descriptor: int, what: str) -> None:
    _call(f"enter network namespace {what}", _libc.setns(descriptor, _CLONE_NEWNET))


def open_namespace(path: str) -> int:
    """A descriptor the caller closes. Raises NamespaceGone for a path that is no living namespace."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NamespaceGone(path) from error
    except OSError as error:
        raise KernelError(f"open network namespace {path}", error.errno or 0) from error


@contextmanager
def inside(path: str) -> Iterator[None]:
    """Run the block in the namespace at `path`; the thread is back in its own one afterwards, whatever happens."""
    target = open_namespace(path)
    try:
        home = os.open(_THREAD_NS, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(target, path)
            try:
                yield
            finally:
                setns(home, "of this thread")
        finally:
            os.close(home)
    finally:
        os.close(target)


def inode(path: str) -> int | None:
    """Identity of the namespace at `path`, None if there is none (any more)."""
    try:
        status = Path(path).stat()
        # A plain file under a namespace's name is what a killed `create` leaves, never bound to one. All namespaces are on one device.
        return status.st_ino if status.st_dev == Path(_THREAD_NS).stat().st_dev else None
    except OSError:
        return None


def unshare_network() -> None:
    """Move the calling thread into a new namespace for good."""
    _call("create a network namespace", _libc.unshare(_CLONE_NEWNET))


class Namespaces:
    """The namespaces under one directory (that of `ip netns`)."""

    def __init__(self, directory: str = "/run/netns") -> None:
        self._directory = Path(directory)

    def path(self, name: str) -> str:
        return str(self._directory / name)

    def names(self) -> list[str]:
        """Living and half-made ones alike."""
        try:
            return sorted(entry.name for entry in self._directory.iterdir())
        except FileNotFoundError:
            return []

    def alive(self, name: str) -> bool:
        return inode(self.path(name)) is not None

    def create(self, name: str, prepare: Callable[[], None]) -> None:
        """Afterwards the namespace exists under its name; `prepare` ran in it before it got the name. One that exists is left alone,
        remains of a killed attempt are replaced."""
        self._prepare_directory()
        if self.alive(name):
            return
        self.delete(name)
        path = self.path(name)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, _MODE))
        # A thread of its own: it leaves this process's namespace for good and ends.
        failures: list[KernelError] = []

        def bind() -> None:
            try:
                unshare_network()
                prepare()
                _mount(_THREAD_NS, path, _MS_BIND, f"bind network namespace {name}")
            except KernelError as error:
                failures.append(error)

        thread = threading.Thread(target=bind, name=f"create-{name}")
        thread.start()
        thread.join()
        if failures:
            self.delete(name)
            raise failures[0]

    def half_made(self, name: str) -> bool:
        """A `create` was killed here. (`ip netns add` leaves another mode.)"""
        try:
            return not self.alive(name) and Path(self.path(name)).stat().st_mode & 0o777 == _MODE
        except OSError:
            return False

    def delete(self, name: str) -> None:
        path = self.path(name)
        # detaching what is no mount fails with EINVAL, what is not there with ENOENT; both are what is wanted
        _libc.umount2(os.fsencode(path), _MNT_DETACH)
        try:
            Path(path).unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise KernelError(f"delete network namespace {name}", error.errno or 0) from error

    def _prepare_directory(self) -> None:
        """As ip-netns does: a shared mount point, so that a deletion reaches every mount namespace that saw the namespace."""
        self._directory.mkdir(parents=True, exist_ok=True)
        directory = os.fsencode(self._directory)
        if _libc.mount(b"", directory, b"none", _MS_SHARED | _MS_REC, None) == 0:
            return
        _mount(str(self._directory), str(self._directory), _MS_BIND | _MS_REC, "bind the namespace directory")
        _mount("", str(self._directory), _MS_SHARED | _MS_REC, "share the namespace directory")


def _mount(source: str, target: str, flags: int, op: str) -> None:
    _call(op, _libc.mount(os.fsencode(source), os.fsencode(target), b"none", flags, None))


def all_namespaces(named: Namespaces) -> list[str]:
    """A path of every other network namespace than the calling thread's that has a process or a name, each once."""
    paths = [*Path("/proc").glob("[0-9]*/ns/net"), *(Path(named.path(name)) for name in named.names())]
    here = inode(_THREAD_NS)
    found = {number: str(path) for path in paths if (number := inode(str(path))) is not None and number != here}
    return sorted(found.values())
