"""Docker's defaults, applied where a spec leaves a field out.

Pure: no I/O. Source: SwarmKit api/defaults/service.go; Engine API 1.44 (RestartPolicy, UpdateConfig: nanoseconds). Where the API's
number can't say "not given" (monitor), 0 counts as not given.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from orchestrator.model import Cluster, Service, TaskSpec, UpdateConfig

RESTART_DELAY = timedelta(seconds=5)
MONITOR = timedelta(seconds=5)
STOP_GRACE = timedelta(seconds=10)
HISTORY_LIMIT = 5


@dataclass(frozen=True, slots=True)
class RestartRule:
    """condition any | on-failure | none; max_attempts 0 = for ever; window 0 = attempts never expire."""

    condition: str = "any"
    delay: timedelta = RESTART_DELAY
    max_attempts: int = 0
    window: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class UpdateRule:
    """parallelism 0 = all at once; failure_action pause | continue | rollback; order stop-first | start-first."""

    parallelism: int = 1
    delay: timedelta = timedelta()
    monitor: timedelta = MONITOR
    failure_action: str = "pause"
    max_failure_ratio: float = 0.0
    order: str = "stop-first"


def restart_rule(spec: TaskSpec) -> RestartRule:
    policy = spec.restart_policy
    if policy is None:
        return RestartRule()
    return RestartRule(
        condition=policy.condition or "any",
        delay=RESTART_DELAY if policy.delay is None else duration(policy.delay),
        max_attempts=policy.max_attempts or 0,
        window=duration(policy.window or 0),
    )


def update_rule(config: UpdateConfig | None) -> UpdateRule:
    if config is None:
        return UpdateRule()
    return UpdateRule(
        parallelism=config.parallelism,
        delay=duration(config.delay),
        monitor=duration(config.monitor) if config.monitor > 0 else MONITOR,
        failure_action=config.failure_action or "pause",
        max_failure_ratio=config.max_failure_ratio,
        order=config.order or "stop-first",
    )


def replicas(service: Service) -> int:
    mode = service.spec.mode.replicated
    return 1 if mode is None or mode.replicas is None else mode.replicas


def stop_grace(spec: TaskSpec) -> timedelta:
    container = spec.container_spec
    return STOP_GRACE if container is None or container.stop_grace_period is None else duration(container.stop_grace_period)


def history_limit(cluster: Cluster | None) -> int | None:
    """Tasks a slot keeps, the running one included; None = all of them."""
    limit = cluster.spec.orchestration.task_history_retention_limit if cluster is not None else None
    if limit is None:
        return HISTORY_LIMIT
    return None if limit < 0 else limit


def duration(nanoseconds: int) -> timedelta:
    return timedelta(microseconds=nanoseconds / 1000)
