"""Runs etcd with a disk as slow as a file says: every fsync and fdatasync waits for that many seconds first.

Edge, a program of its own: `python slow_fsync.py FILE PROGRAM ARGUMENTS...` becomes PROGRAM, with the same pid. etcd makes its system calls
itself, so nothing that is preloaded sees them; the kernel tells a child of this process about them instead, and lets each go on when the
child says so. Source: seccomp(2), seccomp_unotify(2) (Linux 5.5), linux/seccomp.h, linux/filter.h.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
import sys
import threading
import time
from pathlib import Path

# system call numbers and AUDIT_ARCH of what etcd is built for
_CALLS = {"x86_64": (0xC000003E, 317, 74, 75), "aarch64": (0xC00000B7, 277, 82, 83)}
_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _FLAG_NEW_LISTENER = 1, 8
_NOTIF_RECV, _NOTIF_SEND = 0xC0502100, 0xC0182101
_NOTIF_SIZE = 80
_FLAG_CONTINUE = 1


class _Filter(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Filter))]


def _install() -> int:
    """From here on this process and what it becomes asks before it syncs; the descriptor at which it asks."""
    architecture, seccomp, fsync, fdatasync = _CALLS[platform.machine()]
    steps = [
        (_LOAD_WORD, 0, 0, 4),
        (_JUMP_EQUAL, 0, 4, architecture),
        (_LOAD_WORD, 0, 0, 0),
        (_JUMP_EQUAL, 1, 0, fsync),
        (_JUMP_EQUAL, 0, 1, fdatasync),
        (_RETURN, 0, 0, _NOTIFY),
        (_RETURN, 0, 0, _ALLOW),
    ]
    program = _Program(len(steps), (_Filter * len(steps))(*(_Filter(*step) for step in steps)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener = int(libc.syscall(seccomp, _SET_MODE_FILTER, _FLAG_NEW_LISTENER, ctypes.byref(program)))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp: this kernel can't tell of system calls")
    return listener


def _delay_s(file: Path) -> float:
    try:
        return float(file.read_text() or 0)
    except (OSError, ValueError):
        return 0.0


def _let_go_on(listener: int, request: int) -> None:
    try:
        fcntl.ioctl(listener, _NOTIF_SEND, struct.pack("<QqiI", request, 0, 0, _FLAG_CONTINUE))
    except OSError as error:
        # who asked was killed meanwhile
        if error.errno != errno.ENOENT:
            raise


def _answer_later(listener: int, request: int, delay_s: float) -> None:
    time.sleep(delay_s)
    _let_go_on(listener, request)


def _supervise(listener: int, file: Path) -> None:
    """Until the last process that asks is gone."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        events = poll.poll()[0][1]
        if not events & select.POLLIN:
            return
        asked = bytearray(_NOTIF_SIZE)
        try:
            fcntl.ioctl(listener, _NOTIF_RECV, asked)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                continue
            raise
        (request,) = struct.unpack_from("<Q", asked)
        delay_s = _delay_s(file)
        if delay_s:
            threading.Thread(target=_answer_later, args=(listener, request, delay_s), daemon=True).start()
        else:
            _let_go_on(listener, request)


def main() -> None:
    file, program, *arguments = sys.argv[1:]
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        # not in etcd's process group: it must outlive whoever still waits for it
        os.setsid()
        ours.close()
        _, ancillary, _, _ = theirs.recvmsg(1, socket.CMSG_SPACE(4))
        if ancillary:
            _supervise(array.array("i", ancillary[0][2])[0], Path(file))
        os._exit(0)
    theirs.close()
    listener = _install()
    ours.sendmsg([b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))])
    ours.close()
    os.close(listener)
    os.execv(program, [Path(program).name, *arguments])


if __name__ == "__main__":
    main()
