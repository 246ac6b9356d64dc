"""What the Engine says of its machine, as the node's description.

Pure: no I/O. Source: Docker Engine API 1.41, GET /info. Generic resources (cards) are the ones of the Engine's own configuration,
`node-generic-resources` in daemon.json.
"""

from __future__ import annotations

from typing import Any

import msgspec

from orchestrator.model import EngineDescription, EnginePlugin, GenericResource, NodeDescription, Platform, ResourceObject

# classic Swarm's names of constraints; source: classicswarm cluster/engine.go (labels of engines)
_FACTS = {"storagedriver": "Driver", "kernelversion": "KernelVersion", "operatingsystem": "OperatingSystem"}


def description(info: dict[str, Any], hostname: str) -> NodeDescription:
    """`hostname` "": the Engine's own name."""
    plugins = [
        EnginePlugin(type=kind, name=name) for kind, names in sorted((info.get("Plugins") or {}).items()) for name in sorted(names or ())
    ]
    labels = dict(label.partition("=")[::2] for label in info.get("Labels") or ())
    generic = msgspec.convert(info.get("GenericResources") or [], list[GenericResource])
    return NodeDescription(
        hostname=hostname or info.get("Name", ""),
        platform=Platform(architecture=info.get("Architecture", ""), os=info.get("OSType", "")),
        resources=ResourceObject(
            nano_cpus=int(info.get("NCPU", 0)) * 1_000_000_000,
            memory_bytes=int(info.get("MemTotal", 0)),
            generic_resources=generic or None,
        ),
        engine=EngineDescription(engine_version=info.get("ServerVersion", ""), labels=labels or None, plugins=plugins),
        mesh_facts={name: str(info[key]) for name, key in _FACTS.items() if info.get(key)} or None,
    )
