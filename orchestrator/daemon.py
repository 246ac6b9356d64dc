"""The process of meshd: what this machine must have, the doors that are opened, signals, the end.

Edge. What the daemon is and does is in `meshd`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys

import uvloop

from mesh import check_kernel, detect_balancer
from orchestrator.addresses import metrics_endpoint
from orchestrator.api.app import serve
from orchestrator.api.connection import Limits
from orchestrator.audit_log import AuditLog
from orchestrator.daemon_config import DaemonConfig
from orchestrator.errors import ConfigError
from orchestrator.meshd import Meshd
from orchestrator.version import VERSION

log = logging.getLogger(__name__)


async def _serve(config: DaemonConfig) -> None:
    balancer = detect_balancer()
    daemon = Meshd(config, balancer)
    runners = []
    if config.metrics:
        from orchestrator import metrics

        runners.append(await metrics.serve(*metrics_endpoint(config.metrics), daemon.member))
    limits = Limits(requests_per_s=config.api_rate)
    audit_log = AuditLog(config.audit_log) if config.audit_log is not None else None
    runners.append(await serve(daemon, config.endpoints, group=config.group, tls=config.tls, limits=limits, audit_log=audit_log))
    log.info(
        "meshd version=%s api=%s engine=%s balancer=%s hostname=%s",
        VERSION,
        ",".join(map(str, config.endpoints)),
        config.engine,
        balancer,
        config.hostname,
    )
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    starting = asyncio.create_task(daemon.start(), name="start")
    waiting = asyncio.create_task(ended.wait(), name="end")
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await waiting
    finally:
        for task in (starting, waiting):
            task.cancel()
        for runner in runners:
            await runner.cleanup()
        await daemon.stop()


def run(config: DaemonConfig) -> None:
    """The daemon until SIGTERM. ConfigError: one sentence what this machine lacks."""
    if os.geteuid() != 0:
        raise ConfigError("meshd makes network namespaces and devices: run it as root")
    logging.basicConfig(level=config.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if problems := check_kernel():
        raise ConfigError("; ".join(problems))
    if shutil.which("nft") is None and shutil.which("nft", path="/usr/sbin:/sbin") is None:
        raise ConfigError("nft is missing: apt-get install nftables")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config))
