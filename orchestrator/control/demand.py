"""What a task asks of its node, read once for all tasks that ask for the same.

Pure: no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.control.constraints import Constraint, parse
from orchestrator.control.expressions import Expression, expressions_of
from orchestrator.control.resources import NOTHING, Reservation, reservation
from orchestrator.errors import ConfigError
from orchestrator.model import Platform, Task, TaskSpec
from orchestrator.permissions import needed

HostPort = tuple[str, int]
_BUILT_IN_VOLUME_DRIVERS = frozenset({"", "local"})
_BUILT_IN_LOG_DRIVERS = frozenset({"", "none"})


@dataclass(frozen=True, slots=True)
class Demand:
    """`constraints` None: they, or the classic expressions, can't be read, so no node matches. networks: ids, of which the node needs an
    address. encrypted: one of them is."""

    constraints: tuple[Constraint, ...] | None = ()
    expressions: tuple[Expression, ...] = ()
    platforms: tuple[Platform, ...] = ()
    volume_drivers: frozenset[str] = frozenset()
    log_driver: str = ""
    host_ports: frozenset[HostPort] = frozenset()
    max_replicas: int = 0
    reserved: Reservation = NOTHING
    networks: tuple[str, ...] = ()
    preferences: tuple[str, ...] = ()
    permissions: frozenset[str] = frozenset()
    encrypted: bool = False


def demand(task: Task) -> Demand:
    spec = task.spec
    placement = spec.placement
    constraints: tuple[Constraint, ...] | None
    expressions: tuple[Expression, ...] = ()
    try:
        constraints = tuple(parse((placement.constraints if placement else None) or ()))
        expressions = expressions_of(spec.container_spec)
    except ConfigError:
        constraints = None
    return Demand(
        constraints=constraints,
        expressions=expressions,
        platforms=tuple((placement.platforms if placement else None) or ()),
        volume_drivers=_volume_drivers(spec),
        log_driver=spec.log_driver.name if spec.log_driver and spec.log_driver.name not in _BUILT_IN_LOG_DRIVERS else "",
        host_ports=host_ports(task),
        max_replicas=placement.max_replicas if placement else 0,
        reserved=reservation(spec),
        networks=networks(task),
        permissions=needed(spec),
        encrypted=any(attachment.network.mesh_encrypted for attachment in task.networks_attachments or ()),
        preferences=tuple(
            preference.spread.spread_descriptor if preference.spread else ""
            for preference in (placement.preferences if placement else None) or ()
        ),
    )


def host_ports(task: Task) -> frozenset[HostPort]:
    """The ports it takes on its node. A port that the Engine is to choose (0) collides with none."""
    return frozenset(
        (port.protocol, port.published_port)
        for port in task.mesh_endpoint_ports or ()
        if port.publish_mode == "host" and port.published_port
    )


def networks(task: Task) -> tuple[str, ...]:
    attachments = task.networks_attachments
    return tuple(attachment.network.id for attachment in attachments) if attachments else ()


def _volume_drivers(spec: TaskSpec) -> frozenset[str]:
    drivers = set()
    for mount in (spec.container_spec.mounts if spec.container_spec else None) or ():
        if mount.type == "volume" and mount.volume_options and mount.volume_options.driver_config:
            drivers.add(mount.volume_options.driver_config.name)
    return frozenset(drivers) - _BUILT_IN_VOLUME_DRIVERS
