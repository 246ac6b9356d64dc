"""What a cluster that is left alone still lacks: nodes, managers, replicas, containers, names, virtual addresses, a doctor's blessing.

Edge: the managers' API, the Engines, requests from inside containers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from docker import DockerClient

from orchestrator.lab.lab import Lab, LabError, Node
from orchestrator.lab.probe import dns_addresses, http_get, in_network
from tests.lab.asking import switch
from tests.lab.cli import examined

# a node that is about to be asked may be about to be killed
_TIMEOUT_S = 10


@contextlib.contextmanager
def _client(socket: object) -> Iterator[DockerClient]:
    client = DockerClient(base_url=f"unix://{socket}", timeout=_TIMEOUT_S)
    try:
        yield client
    finally:
        client.close()


def client_netns(node: Node, service: str) -> str:
    """The network namespace of the service's container on this node; LabError: there is none."""
    with contextlib.suppress(Exception), _client(node.layout.engine_socket) as engine:
        for found in engine.api.containers(filters={"label": f"com.docker.swarm.service.name={service}"}):
            pid = engine.api.inspect_container(found["Id"])["State"]["Pid"]
            if pid:
                return f"/proc/{pid}/ns/net"
    raise LabError(f"{service} has no container on {node.name}")


class Convergence:
    """managers: names. web: a service with port `port`, on network `network`; client: one with a task on every node there."""

    def __init__(self, lab: Lab, managers: list[str], *, network: str, web: str, client: str, port: int) -> None:
        self._lab, self._managers = lab, managers
        self._network, self._web, self._client, self._port = network, web, client, port

    def lacks(self) -> list[str]:
        """[]: nothing. Later parts are not looked at before the earlier ones are well."""
        for part in (self._cluster, self._services, self._containers, self._traffic):
            try:
                if found := part():
                    return found
            except Exception as error:
                return [f"{part.__name__.strip('_')}: {type(error).__name__}: {error}"]
        return []

    def complaints(self) -> list[str]:
        """What the nodes' doctors find; that takes some seconds."""
        return self._on_every_node(_doctor)

    def _on_every_node(self, look: Callable[[Node], list[str]]) -> list[str]:
        with ThreadPoolExecutor(len(self._lab.nodes)) as threads:
            return [found for many in threads.map(look, self._lab.nodes) for found in many]

    def _manager(self) -> Node:
        return self._lab.node(self._managers[0])

    def _cluster(self) -> list[str]:
        found = []
        views = []
        for name in self._managers:
            with _client(self._lab.node(name).layout.meshd_socket) as manager:
                nodes = manager.api.nodes()
            views.append(sorted((node["ID"], (node.get("ManagerStatus") or {}).get("Leader", False)) for node in nodes))
            found += [
                f"{n['Description']['Hostname']} is {n['Status']['State']} to {name}" for n in nodes if n["Status"]["State"] != "ready"
            ]
            managers = [node["ManagerStatus"] for node in nodes if node.get("ManagerStatus")]
            found += [f"a manager is {status['Reachability']} to {name}" for status in managers if status["Reachability"] != "reachable"]
            if sum(bool(status.get("Leader")) for status in managers) != 1 or len(managers) != len(self._managers):
                found.append(f"{name} shows {len(managers)} managers: {managers}")
        return found or (["managers disagree about who leads"] if any(view != views[0] for view in views) else [])

    def _tasks(self) -> list[dict[str, Any]]:
        with _client(self._manager().layout.meshd_socket) as manager:
            tasks: list[dict[str, Any]] = manager.api.tasks()
        return tasks

    def _services(self) -> list[str]:
        with _client(self._manager().layout.meshd_socket) as manager:
            services = manager.api._result(manager.api._get(manager.api._url("/services"), params={"status": True}), True)
        tasks = self._tasks()
        found = []
        for service in services:
            status, name = service["ServiceStatus"], service["Spec"]["Name"]
            if status["RunningTasks"] != status["DesiredTasks"]:
                found.append(f"{name} runs {status['RunningTasks']} of {status['DesiredTasks']}")
            wanted = [t for t in tasks if t["ServiceID"] == service["ID"] and t["DesiredState"] == "running"]
            if len(wanted) != status["DesiredTasks"]:
                found.append(f"{name} has {len(wanted)} tasks that are to run, and should have {status['DesiredTasks']}")
        return found

    def _containers(self) -> list[str]:
        """On every node exactly the containers of its running tasks."""
        running = [t for t in self._tasks() if t["Status"]["State"] == "running"]
        with _client(self._manager().layout.meshd_socket) as manager:
            ids = {node["Description"]["Hostname"]: node["ID"] for node in manager.api.nodes()}
        found = []
        for node in self._lab.nodes:
            wanted = {t["Status"]["ContainerStatus"]["ContainerID"] for t in running if t["NodeID"] == ids[node.name]}
            with _client(node.layout.engine_socket) as engine:
                there = {container["Id"] for container in engine.api.containers(filters={"label": "com.docker.swarm.task"})}
            found += [f"{node.name} has a container of no running task: {id[:12]}" for id in sorted(there - wanted)]
            found += [f"{node.name} lacks a running task's container: {id[:12]}" for id in sorted(wanted - there)]
        return found

    def _traffic(self) -> list[str]:
        with _client(self._manager().layout.meshd_socket) as manager:
            service = manager.api.inspect_service(self._web)
            network_id = manager.api.inspect_network(self._network)["Id"]
        vips = {v["Addr"].split("/")[0] for v in service["Endpoint"]["VirtualIPs"] if v["NetworkID"] == network_id}
        addresses = {
            attachment["Addresses"][0].split("/")[0]
            for task in self._tasks()
            if task["ServiceID"] == service["ID"] and task["DesiredState"] == task["Status"]["State"] == "running"
            for attachment in task["NetworksAttachments"]
            if attachment["Network"]["ID"] == network_id
        }
        return self._on_every_node(lambda node: self._traffic_on(node, vips, addresses))

    def _traffic_on(self, node: Node, vips: set[str], addresses: set[str]) -> list[str]:
        found = []
        netns = client_netns(node, self._client)
        for name, wanted in ((self._web, vips), (f"tasks.{self._web}", addresses)):
            if (told := set(in_network(netns, partial(dns_addresses, name, timeout_s=5.0)))) != wanted:
                found.append(f"DNS on {node.name}: {name} is {sorted(told)}, not {sorted(wanted)}")
        for where, target, port in ((netns, min(vips), 80), (switch(self._lab), node.address, self._port)):
            # as many requests as make it sure that each backend is met: of seven, 200 miss one with 3e-13
            met = {in_network(where, partial(http_get, target, port, 5.0))[0] for _ in range(200)}
            if len(met) != len(addresses):
                found.append(f"{target}:{port} from {node.name} is answered by {len(met)} of {len(addresses)} tasks")
        return found


def _doctor(node: Node) -> list[str]:
    return [f"doctor on {node.name}: {finding.check}: {finding.what}" for finding in examined(node) if finding.level == "bad"]
