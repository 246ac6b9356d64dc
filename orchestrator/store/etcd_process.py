"""One etcd as a child of this process: started, watched over, restarted, ended; and never outliving its meshd.

Edge: processes, files, signals. Source: etcd 3.4 `etcd --help`; prctl(2) PR_SET_PDEATHSIG; proc(5) stat. The death signal belongs to
the *thread* that forked, which is the event loop's: run the loop in the main thread, or etcd goes when the loop's thread goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import shutil
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import msgspec

from orchestrator.errors import ConfigError, MemberRemoved, StoreError, StoreUnavailable
from orchestrator.store.etcd_client import EtcdClient
from orchestrator.store.etcd_codec import MAX_BYTES
from orchestrator.store.etcd_tls import TLSFiles

log = logging.getLogger(__name__)

MAX_TXN_OPS = 4_096
_LOG_SIZE_BYTES = 4 * 1024 * 1024
_LOG_CHECK_S = 10.0
_BACKOFF_MIN_S = 0.5
_BACKOFF_MAX_S = 10.0
# a run this long was a good one: the next failure is a new story
_GOOD_RUN_S = 60.0
_STOP_GRACE_S = 5.0
# etcd 3.4 and 3.5, etcdserver/server.go
_REMOVED = b"data-dir used by this member must be removed"


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """directory: holds data/, etcd.log, etcd.pid. initial_cluster: (name, peer URL) of all members, () = this one alone.

    joining: the others exist already and know this one as a learner. All of the last three matter only while data/ is empty.
    """

    name: str
    directory: Path
    tls: TLSFiles
    client_port: int
    peer_addr: str
    peer_port: int
    initial_cluster: tuple[tuple[str, str], ...] = ()
    joining: bool = False
    cluster_token: str = "meshd"
    heartbeat_ms: int = 100
    election_ms: int = 1000
    quota_bytes: int = 2 * 1024**3
    keep_revisions: int = 10_000
    log_level: str = "warn"
    binary: str = "etcd"
    force_new_cluster: bool = False
    # descriptors that the TLS files' paths name
    pass_fds: tuple[int, ...] = ()

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return peer_url(self.peer_addr, self.peer_port)


def peer_url(addr: str, port: int) -> str:
    return f"https://[{addr}]:{port}" if ":" in addr else f"https://{addr}:{port}"


def command_line(config: EtcdConfig) -> list[str]:
    members = config.initial_cluster or ((config.name, config.peer_url),)
    client_url = f"https://{config.endpoint}"
    tls = config.tls
    flags = {
        "name": config.name,
        "data-dir": config.data_dir,
        "listen-client-urls": client_url,
        "advertise-client-urls": client_url,
        "listen-peer-urls": config.peer_url,
        "initial-advertise-peer-urls": config.peer_url,
        "initial-cluster": ",".join(f"{name}={url}" for name, url in members),
        "initial-cluster-state": "existing" if config.joining else "new",
        "initial-cluster-token": config.cluster_token,
        "cert-file": tls.cert, "key-file": tls.key, "trusted-ca-file": tls.ca, "client-cert-auth": "true",
        "peer-cert-file": tls.cert, "peer-key-file": tls.key, "peer-trusted-ca-file": tls.ca, "peer-client-cert-auth": "true",
        # a node with several addresses may dial out from another one than it advertises; etcd's CA signs members only
        "experimental-peer-skip-client-san-verification": "true",
        "heartbeat-interval": config.heartbeat_ms,
        "election-timeout": config.election_ms,
        # a member that comes back from a cut must not depose a leader the others are content with
        "pre-vote": "true",
        "max-txn-ops": MAX_TXN_OPS,
        # names, conditions and Raft's own framing come on top of the values
        "max-request-bytes": MAX_BYTES + 2 * 1024 * 1024,
        "quota-backend-bytes": config.quota_bytes,
        "auto-compaction-mode": "revision", "auto-compaction-retention": config.keep_revisions,
        "snapshot-count": 10_000,
        "experimental-initial-corrupt-check": "true", "experimental-corrupt-check-time": "1h",
        "enable-v2": "false", "enable-grpc-gateway": "false",
        "logger": "zap", "log-outputs": "stderr", "log-level": config.log_level,
    }  # fmt: skip
    if config.force_new_cluster:
        flags["force-new-cluster"] = "true"
    return [config.binary, *(f"--{flag}={value}" for flag, value in flags.items())]


def check_version(text: str) -> str:
    """The version in `etcd --version`'s output; ConfigError for one that must not or can't hold a cluster's state."""
    found = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", text)
    if not found:
        raise ConfigError(f"`etcd --version` answered something unknown: {text.strip()[:200]!r}")
    version = tuple(int(part) for part in found.groups())
    shown = ".".join(found.groups())
    if (3, 5, 0) <= version <= (3, 5, 5):
        raise ConfigError(
            f"etcd {shown} can lose or corrupt data when it is killed: install 3.4.23 or later of 3.4, or 3.5.26 or later of 3.5"
        )
    if not (3, 4, 0) <= version < (3, 6, 0):
        raise ConfigError(f"etcd {shown} is not supported: install 3.4.23 or later of 3.4, or 3.5.26 or later of 3.5")
    return shown


class EtcdProcess:
    """`start()`, then `wait_healthy()`, then `run()` in a task of its own for as long as it shall live, then `stop()`."""

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        self.restarts = 0
        self.version = ""
        # set once the other members have removed this one: it is not restarted then
        self.removed = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int:
        """0 while it doesn't run."""
        return self._process.pid if self._process and self._process.returncode is None else 0

    @property
    def log_path(self) -> Path:
        return self.config.directory / "etcd.log"

    @property
    def _pid_path(self) -> Path:
        return self.config.directory / "etcd.pid"

    def client(self) -> EtcdClient:
        """Status and membership, through this member; the caller closes it."""
        return EtcdClient(self.config.endpoint, self.config.tls)

    async def check(self) -> None:
        """ConfigError: no etcd here, or one that must not be used."""
        binary = shutil.which(self.config.binary)
        if binary is None:
            raise ConfigError(f"there is no {self.config.binary} in PATH: install etcd-server")
        probe = await asyncio.create_subprocess_exec(
            binary, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=_environment()
        )
        output, _ = await probe.communicate()
        self.version = check_version(output.decode(errors="replace"))

    async def start(self) -> None:
        """Running, not yet healthy. ConfigError: no etcd, one that must not be used, an unusable directory."""
        await self.check()
        try:
            # etcd insists on a data directory that only its owner can enter
            self.config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.config.data_dir.chmod(0o700)
        except OSError as error:
            raise ConfigError(f"etcd's directory {self.config.directory} can't be used: {error.strerror}") from error
        self._stopping.clear()
        await self._end_leftover()
        # before the start, or what answers on the port could be taken for our etcd
        _check_bindable("127.0.0.1", self.config.client_port)
        _check_bindable(self.config.peer_addr, self.config.peer_port)
        try:
            await self._spawn()
        except OSError as error:
            raise ConfigError(f"etcd can't be started in {self.config.directory}: {error.strerror or error}") from error

    async def wait_healthy(self, timeout_s: float = 30.0) -> None:
        """It answers and knows a leader; a voting member also reads through the quorum.

        StoreUnavailable at the deadline (it runs on: the quorum may come later); ConfigError with etcd's own words if it ended,
        MemberRemoved if that was because the others let it go.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        client = self.client()
        reason = "it does not answer"
        try:
            while True:
                if not self.pid:
                    code = self._process.returncode if self._process else None
                    if self._was_removed():
                        raise MemberRemoved("the other managers let this one's etcd go")
                    raise ConfigError(f"etcd ended (exit code {code}): {self._last_words()}")
                try:
                    status = await client.status()
                    if status.leader_id == 0:
                        reason = "it has no leader: a majority of the managers must be reachable"
                    elif status.is_learner or await client.read_linearizable():
                        return
                except StoreError as error:
                    reason = str(error)
                if asyncio.get_running_loop().time() > deadline:
                    raise StoreUnavailable(f"etcd did not become healthy within {timeout_s:g} s: {reason}")
                await asyncio.sleep(0.05)
        finally:
            await client.close()

    async def run(self) -> None:
        """Restart it whenever it ends, with back-off, until `stop()` or until the others removed it. Bounds its log's size."""
        backoff_s = _BACKOFF_MIN_S
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            started = loop.time()
            await self._wait_ended()
            if self._stopping.is_set():
                return
            if self._was_removed():
                log.warning("etcd=%s state=removed by=the-other-members", self.config.name)
                return
            if loop.time() - started > _GOOD_RUN_S:
                backoff_s = _BACKOFF_MIN_S
            code = self._process.returncode if self._process else None
            log.error("etcd=%s state=ended code=%s restart_in_s=%g words=%s", self.config.name, code, backoff_s, self._last_words())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s):
                    await self._stopping.wait()
                return
            backoff_s = min(_BACKOFF_MAX_S, backoff_s * 2)
            try:
                await self._spawn()
                self.restarts += 1
            except OSError as error:
                log.error("etcd=%s state=not-started error=%s", self.config.name, error)

    async def stop(self) -> None:
        """Asked to end (it hands Raft's leadership over then), killed after some seconds. Data stays."""
        self._stopping.set()
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            _signal_group(process.pid, signal.SIGTERM)
            try:
                async with asyncio.timeout(_STOP_GRACE_S):
                    await process.wait()
            except TimeoutError:
                _signal_group(process.pid, signal.SIGKILL)
                await process.wait()
        self._pid_path.unlink(missing_ok=True)

    # ---- details ---------------------------------------------------------------------------------------------------------------

    async def _spawn(self) -> None:
        # setpriv arms the death signal and becomes the shell, which gives up if meshd died in between, else becomes etcd: one pid.
        # SIGTERM, because etcd then hands Raft's leadership over, where SIGKILL leaves the others to wait for an election.
        guarded = ["setpriv", "--pdeathsig", "TERM", "--", "/bin/sh", "-c", 'test "$PPID" = "$0" && exec "$@"', str(os.getpid())]
        with open(self.log_path, "ab", opener=_private) as log_file:
            self._log_start = log_file.tell()
            self._process = await asyncio.create_subprocess_exec(
                *guarded,
                *command_line(self.config),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
                env=_environment(),
                cwd="/",
                pass_fds=self.config.pass_fds,
            )
        pid = self._process.pid
        started = _start_time(pid)
        fresh = self._pid_path.with_suffix(".new")
        fresh.write_text(f"{pid} {started}\n", encoding="ascii")
        fresh.replace(self._pid_path)
        log.info(
            "etcd=%s version=%s pid=%d client=%s peer=%s", self.config.name, self.version, pid, self.config.endpoint, self.config.peer_url
        )

    async def _wait_ended(self) -> None:
        while self._process is not None and self._process.returncode is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOG_CHECK_S):
                    await self._process.wait()
            self._bound_log()

    def _was_removed(self) -> bool:
        """etcd ends by itself, with code 0, for one reason only: its member was removed; it says so."""
        if self._process is None or self._process.returncode != 0 or self._stopping.is_set():
            return False
        with contextlib.suppress(OSError), open(self.log_path, "rb") as file:
            # a log that was emptied meanwhile is read from its start
            file.seek(self._log_start if self._log_start <= self.log_path.stat().st_size else 0)
            if _REMOVED in file.read():
                self.removed.set()
        return self.removed.is_set()

    async def _end_leftover(self) -> None:
        """End the etcd of an earlier run on this directory: it holds the database's lock. Never anything else under a reused pid."""
        try:
            pid, started = (int(part) for part in self._pid_path.read_text(encoding="ascii").split())
        except (FileNotFoundError, ValueError):
            return
        deadline = asyncio.get_running_loop().time() + _STOP_GRACE_S
        signal_number = signal.SIGTERM
        while _start_time(pid) == started and self._is_ours(pid):
            if signal_number is signal.SIGTERM:
                log.warning("etcd=%s state=leftover pid=%d action=end", self.config.name, pid)
                _signal_group(pid, signal_number)
                signal_number = signal.SIGKILL
            elif asyncio.get_running_loop().time() > deadline:
                _signal_group(pid, signal_number)
            await asyncio.sleep(0.05)
        self._pid_path.unlink(missing_ok=True)

    def _is_ours(self, pid: int) -> bool:
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return f"--data-dir={self.config.data_dir}".encode() in arguments

    def _bound_log(self) -> None:
        """etcd appends, so emptying the file under it is safe; the last stretch is kept beside it."""
        with contextlib.suppress(OSError):
            if self.log_path.stat().st_size > _LOG_SIZE_BYTES:
                shutil.copyfile(self.log_path, self.log_path.with_suffix(".log.1"))
                os.truncate(self.log_path, 0)

    def _last_words(self) -> str:
        """Why etcd says it ended: its last error, else its last line."""
        try:
            with open(self.log_path, "rb") as file:
                file.seek(max(0, self.log_path.stat().st_size - 64 * 1024))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return "it left no log"
        for line in reversed(lines):
            with contextlib.suppress(msgspec.MsgspecError):
                entry = msgspec.json.decode(line, type=_LogLine)
                if entry.level in ("error", "fatal", "panic"):
                    return ": ".join(part for part in (entry.msg, entry.error) if part)
        return next((line for line in reversed(lines) if line.strip()), "it left an empty log")


class _LogLine(msgspec.Struct):
    level: str = ""
    msg: str = ""
    error: str = ""


def _environment() -> dict[str, str]:
    """etcd takes every flag from ETCD_... variables too: none of the caller's gets through."""
    return {key: value for key, value in os.environ.items() if not key.startswith("ETCD_")}


def _check_bindable(addr: str, port: int) -> None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in addr else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((addr, port))
    except OSError as error:
        reason = {errno.EADDRINUSE: "another program uses it", errno.EADDRNOTAVAIL: f"{addr} is not an address of this node"}
        raise ConfigError(f"etcd can't listen on {addr}:{port}: {reason.get(error.errno or 0, error.strerror)}") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _start_time(pid: int) -> int:
    """Clock ticks after boot, which makes a pid unique; 0 = no such process, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
