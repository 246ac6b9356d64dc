"""Services and tasks: what is stored, what is shown, what is refused and in which words."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from msgspec.structs import replace

from orchestrator.api import validate
from orchestrator.model import Claim, Endpoint, Service, Task, TaskState, TaskStatus, Version
from orchestrator.store.base import Put
from tests.orchestrator.api.fakes import Setup

INVALID = "rpc error: code = InvalidArgument desc = "


def a_spec(name: str = "web", replicas: int = 1, **more: Any) -> dict[str, Any]:
    """As the docker CLI sends it."""
    return {
        "Name": name,
        "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": {"Image": "busybox:latest", "Args": ["sleep", "1000"], "Init": False, "DNSConfig": {}},
            "Resources": {"Limits": {}, "Reservations": {}},
            "Placement": {},
            "ForceUpdate": 0,
        },
        "Mode": {"Replicated": {"Replicas": replicas}},
        "EndpointSpec": {"Mode": "vip"},
        **more,
    }


def publishing(port: int, mode: str = "ingress", protocol: str = "tcp") -> dict[str, Any]:
    return {"Mode": "vip", "Ports": [{"Protocol": protocol, "TargetPort": 80, "PublishedPort": port, "PublishMode": mode}]}


def changed(path: str, value: Any) -> dict[str, Any]:
    spec = json.loads(json.dumps(a_spec()))
    *parents, last = path.split(".")
    place = spec
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return spec


async def filtered(node: Setup, path: str, filters: dict[str, Any]) -> Any:
    return await node.ok("GET", f"{path}?filters={quote(json.dumps(filters))}")


async def test_a_created_service_is_shown_as_docker_shows_it(cluster: Setup) -> None:
    network = await cluster.ok("POST", "/networks/create", {"Name": "ov1", "Driver": "overlay"})
    secret = await cluster.ok("POST", "/secrets/create", {"Name": "sec1", "Data": "c2VjZGF0YQ=="})
    spec = a_spec(replicas=2, EndpointSpec=publishing(8080))
    spec["TaskTemplate"]["Networks"] = [{"Target": "ov1", "Aliases": ["w"]}]
    spec["TaskTemplate"]["ContainerSpec"]["Secrets"] = [
        {"File": {"Name": "sec1", "UID": "0", "GID": "0", "Mode": 292}, "SecretID": secret["ID"], "SecretName": "sec1"}
    ]
    spec["TaskTemplate"]["ContainerSpec"]["Mounts"] = [{"Type": "volume", "Source": "v1", "Target": "/data"}]
    spec["UpdateConfig"] = {
        "Parallelism": 0,
        "Delay": 1_000_000_000,
        "FailureAction": "rollback",
        "MaxFailureRatio": 0,
        "Order": "start-first",
    }
    id = (await cluster.ok("POST", "/v1.44/services/create", spec))["ID"]
    await settled(cluster, id, 2)

    shown = await cluster.ok("GET", f"/v1.44/services/{id}?insertDefaults=false")
    container = shown["Spec"]["TaskTemplate"]["ContainerSpec"]
    assert container["Secrets"] == spec["TaskTemplate"]["ContainerSpec"]["Secrets"]
    assert container["Mounts"] == spec["TaskTemplate"]["ContainerSpec"]["Mounts"]
    assert container["Isolation"] == "default"
    assert container["Init"] is False
    assert shown["Spec"]["TaskTemplate"]["Networks"] == [{"Target": network["Id"], "Aliases": ["w"]}]
    assert shown["Spec"]["TaskTemplate"]["Runtime"] == "container"
    assert shown["Spec"]["UpdateConfig"] == spec["UpdateConfig"]
    assert shown["Spec"]["EndpointSpec"] == spec["EndpointSpec"]
    assert shown["Endpoint"] == {
        "Spec": {"Mode": "vip"},
        "Ports": spec["EndpointSpec"]["Ports"],
        "VirtualIPs": [{"NetworkID": network["Id"], "Addr": "10.0.1.2/24"}],
    }  # fmt: skip
    assert shown["Spec"]["Mode"] == {"Replicated": {"Replicas": 2}}

    with_defaults = (await cluster.ok("GET", "/services/web?insertDefaults=true"))["Spec"]
    assert with_defaults["RollbackConfig"]["Order"] == "stop-first"
    assert with_defaults["TaskTemplate"]["RestartPolicy"] == {"Condition": "any", "Delay": 5_000_000_000, "MaxAttempts": 0}
    assert with_defaults["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"] == 10_000_000_000

    tasks = await filtered(cluster, "/tasks", {"service": {id: True}, "_up-to-date": {"true": True}})
    assert [task["Slot"] for task in tasks] == [1, 2]
    task = tasks[0]
    assert (task["Status"]["State"], task["DesiredState"], task["Status"]["PortStatus"]) == ("running", "running", {})
    assert task["Status"]["ContainerStatus"]["ExitCode"] == 0
    attached = task["NetworksAttachments"][0]
    assert attached["Addresses"] == ["10.0.1.11/24"]
    assert attached["Network"]["Spec"]["Name"] == "ov1"
    assert attached["Network"]["IPAMOptions"]["Configs"] == [{"Subnet": "10.0.1.0/24", "Gateway": "10.0.1.1"}]
    assert not [key for key in task if key.startswith("Mesh")]
    listed = await cluster.ok("GET", "/services?status=true")
    assert listed[0]["ServiceStatus"] == {"RunningTasks": 2, "DesiredTasks": 2, "CompletedTasks": 0}


async def settled(node: Setup, id: str, replicas: int) -> None:
    async with asyncio.timeout(5):
        while True:
            tasks = await filtered(node, "/tasks", {"service": [id], "desired-state": ["running"], "_up-to-date": ["true"]})
            if len(tasks) == replicas:
                return
            await asyncio.sleep(0.01)


async def test_what_the_cli_reads_it_can_send_back_unchanged(cluster: Setup) -> None:
    id = (await cluster.ok("POST", "/services/create", a_spec(EndpointSpec=publishing(8080))))["ID"]
    await settled(cluster, id, 1)
    before = await cluster.ok("GET", f"/services/{id}")
    answer = await cluster.ok("POST", f"/services/{id}/update?version={before['Version']['Index']}", before["Spec"])
    assert answer == {"Warnings": None}
    after = await cluster.ok("GET", f"/services/{id}")
    assert after["Spec"] == before["Spec"]
    assert after["Version"]["Index"] > before["Version"]["Index"]


@pytest.mark.parametrize("nothing", [{}, None])
async def test_no_mode_means_one_replica_and_no_name_a_random_one(manager: Setup, nothing: Any) -> None:
    spec = a_spec()
    del spec["Name"]
    spec["Mode"] = nothing
    spec["EndpointSpec"] = nothing
    spec["Labels"] = nothing
    id = (await manager.ok("POST", "/services/create", spec))["ID"]
    shown = await manager.ok("GET", f"/services/{id}")
    assert shown["Spec"]["Mode"] == {"Replicated": {"Replicas": 1}}
    assert len(shown["Spec"]["Name"].split("_")) == 2


UNSUPPORTED = "rpc error: code = Unimplemented desc = "
REFUSED = [
    ("Name", "bad name", 400, INVALID + "name must be valid as a DNS name component"),
    ("Name", "a" * 64, 400, INVALID + "name must be 63 characters or fewer"),
    ("TaskTemplate.ContainerSpec", None, 400, "mismatched Runtime and *Spec fields"),
    ("TaskTemplate.ContainerSpec.Image", "", 400, INVALID + "ContainerSpec: image reference must be provided"),
    ("TaskTemplate.ContainerSpec.Image", "Bad Image", 400, INVALID + 'ContainerSpec: "Bad Image" is not a valid repository/tag'),
    ("TaskTemplate.ContainerSpec.Mounts", [{"Target": "/a"}, {"Target": "/a"}], 400, INVALID + "ContainerSpec: duplicate mount point: /a"),
    ("TaskTemplate.Placement.Constraints", ["node.role"], 400, INVALID + "constraint expected one operator from ==, !="),
    (
        "TaskTemplate.Placement.Preferences", [{"Spread": {"SpreadDescriptor": "zone"}}], 400,
        INVALID + "placement preference 'spread=zone' is invalid: expected node.labels.<label> or engine.labels.<label>",
    ),
    (
        "TaskTemplate.ContainerSpec.Env", ["constraint:storage=ssd"], 400,
        INVALID + "constraint 'storage=ssd' is invalid: expected <key>==<value> or <key>!=<value>",
    ),
    (
        "Labels", {"com.meshd.placement.strategy": "tight"}, 400,
        INVALID + "label com.meshd.placement.strategy: 'tight' is no strategy: expected one of spread, binpack, random",
    ),
    (
        "Labels", {"com.meshd.placement.prio": "1"}, 400,
        INVALID + "label com.meshd.placement.prio means nothing on a service: expected one of "
        "com.meshd.placement.priority, com.meshd.placement.rebalance, com.meshd.placement.strategy",
    ),
    ("TaskTemplate.Resources.Limits", {"NanoCPUs": 1}, 400, INVALID + "invalid cpu value 1e-09: Must be at least 0.001"),
    ("TaskTemplate.Resources.Limits", {"MemoryBytes": 1024}, 400, INVALID + "invalid memory value 1024: Must be at least 4MiB"),
    ("TaskTemplate.RestartPolicy", {"Condition": "maybe"}, 400, 'invalid RestartCondition: "maybe"'),
    ("TaskTemplate.RestartPolicy", {"Delay": -1}, 400, INVALID + "TaskSpec: restart-delay cannot be negative"),
    ("TaskTemplate.Networks", [{"Target": "nosuch"}], 404, "network nosuch not found"),
    (
        "TaskTemplate.Networks", [{"Target": "bridge"}], 400,
        "network bridge cannot be used with services. Only networks scoped to the swarm can be used, "
        "such as those created with the overlay driver.",
    ),
    (
        "TaskTemplate.Networks", [{"Target": "host"}, {"Target": "bridge"}], 400,
        INVALID + "a service on the host network can't be attached to other networks: it has the node's",
    ),
    (
        "TaskTemplate.ContainerSpec.Labels", {"com.meshd.run.privileged": "maybe"}, 400,
        INVALID + "ContainerSpec: com.meshd.run.privileged=maybe: expected true or false",
    ),
    (
        "TaskTemplate.ContainerSpec.Isolation", "hyperv", 501,
        UNSUPPORTED + "isolation hyperv is for Windows containers: only default is supported",
    ),
    (
        "TaskTemplate.ContainerSpec.Privileges", {"CredentialSpec": {"File": "spec.json"}}, 501,
        UNSUPPORTED + "credential specs are for Windows containers: they are not supported",
    ),
    ("Mode", {"Replicated": {}, "Global": {}}, 400, "must specify only one service mode"),
    ("Mode", {"Replicated": {"Replicas": -1}}, 400, INVALID + "Number of replicas must be non-negative"),
    ("Mode", {"Replicated": {"Replicas": 1 << 60}}, 400, INVALID + validate.TOO_MANY_REPLICAS),
    ("UpdateConfig", {"Order": "sideways"}, 400, "unrecognized update order sideways"),
    ("UpdateConfig", {"FailureAction": "cry"}, 400, "unrecognized update failure action cry"),
    ("UpdateConfig", {"MaxFailureRatio": 2}, 400, INVALID + "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"),
    (
        "EndpointSpec", {"Mode": "dnsrr", "Ports": [{"TargetPort": 80, "PublishedPort": 80}]}, 400,
        INVALID + "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
    ),
    (
        "EndpointSpec.Ports", [{"TargetPort": 80, "PublishedPort": 80}, {"TargetPort": 81, "PublishedPort": 80}], 400,
        INVALID + "EndpointSpec: duplicate published ports provided",
    ),
    (
        "TaskTemplate.ContainerSpec.Args", "sleep", 400,
        "invalid request: Expected `array | null`, got `str` - at `$.TaskTemplate.ContainerSpec.Args`",
    ),
    (
        "TaskTemplate.ContainerSpec.Secrets", [{"File": {"Name": "a"}, "SecretID": "nosuch", "SecretName": "sec"}], 400,
        INVALID + "secret not found: sec",
    ),
    # What Go's types can't hold would make `docker service ls` fail for everybody.
    ("Mode", {"Replicated": {"Replicas": 2**63}}, 400, "json: cannot unmarshal number 9223372036854775808 into a field of 64 bits"),
    ("TaskTemplate.ForceUpdate", -1, 400, INVALID + "TaskSpec: force-update cannot be negative"),
    (
        "TaskTemplate.ContainerSpec.Privileges", {"AppArmor": "x"}, 400,
        "invalid Privileges: Expected `object | null`, got `str` - at `$.AppArmor`",
    ),
    (
        "TaskTemplate.ContainerSpec.Privileges", {"SELinuxContext": 1}, 400,
        "invalid Privileges: Expected `object | null`, got `int` - at `$.SELinuxContext`",
    ),
    (
        "TaskTemplate.ContainerSpec.Configs", [{"File": {"Name": "a", "Mode": -1}, "ConfigID": "c", "ConfigName": "cfg"}], 400,
        INVALID + "malformed file config reference, invalid file mode -1",
    ),
    (
        "TaskTemplate.ContainerSpec.Mounts", [{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"Mode": -1}}], 400,
        INVALID + "ContainerSpec: invalid file mode -1 of tmpfs /t",
    ),
    (
        "TaskTemplate.ContainerSpec.Hosts", [""], 400,
        INVALID + 'ContainerSpec: malformed host entry "": it should be "IP_address canonical_hostname [aliases...]"',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "status", "text"), REFUSED, ids=[f"{path}={value}"[:50] for path, value, _, _ in REFUSED])
async def test_refused_in_dockers_words_and_nothing_is_left(manager: Setup, path: str, value: Any, status: int, text: str) -> None:
    before = manager.store.snapshot().revision
    assert await manager.refused("POST", "/services/create", changed(path, value)) == (status, text)
    assert manager.store.snapshot().revision == before


async def test_malformed_bodies(manager: Setup) -> None:
    for raw, text in ((b"{", "unexpected EOF"), (b"", "EOF"), (b"{}", "mismatched Runtime and *Spec fields")):
        status, answer = await manager.call("POST", "/services/create", raw=raw)
        assert (status, answer["message"]) == (400, text)
    status, answer = await manager.call("POST", "/services/create", raw=b"[" * 100_000)
    assert (status, answer["message"]) == (400, "invalid JSON: nested too deeply")
    status, answer = await manager.call("POST", "/services/create", raw=b"{]}")
    assert status == 400
    assert answer["message"].startswith("invalid JSON:")


async def test_names_are_unique_also_for_two_at_the_same_moment(manager: Setup) -> None:
    answers = await asyncio.gather(*(manager.call("POST", "/services/create", a_spec()) for _ in range(5)))
    assert sorted(status for status, _ in answers) == [201, 409, 409, 409, 409]
    text = next(answer["message"] for status, answer in answers if status == 409)
    assert text == "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service web already exists"
    assert manager.store.snapshot().count(Service) == 1


async def test_a_published_port_belongs_to_one_service(manager: Setup) -> None:
    id = (await manager.ok("POST", "/services/create", a_spec("p1", EndpointSpec=publishing(7777))))["ID"]
    taken = f"{INVALID}port '7777' is already in use by service 'p1' ({id}) as an ingress port"
    assert await manager.refused("POST", "/services/create", a_spec("p2", EndpointSpec=publishing(7777))) == (400, taken)
    assert await manager.refused("POST", "/services/create", a_spec("p2", EndpointSpec=publishing(7777, "host"))) == (400, taken)
    await manager.ok("POST", "/services/create", a_spec("udp", EndpointSpec=publishing(7777, protocol="udp")))
    for name in ("h1", "h2"):
        await manager.ok("POST", "/services/create", a_spec(name, EndpointSpec=publishing(7000, "host")))
    status, text = await manager.refused("POST", "/services/create", a_spec("p3", EndpointSpec=publishing(7000)))
    assert status == 400
    assert text.endswith("as a host-published port")
    # two at the same moment
    answers = await asyncio.gather(
        *(manager.call("POST", "/services/create", a_spec(f"r{number}", EndpointSpec=publishing(9000))) for number in range(4))
    )
    assert sorted(status for status, _ in answers) == [201, 400, 400, 400]


async def test_claims_follow_the_service(manager: Setup) -> None:
    def claims() -> set[str]:
        return {claim.id for claim in manager.store.snapshot().all(Claim)}

    id = (await manager.ok("POST", "/services/create", a_spec(EndpointSpec=publishing(8080))))["ID"]
    assert claims() == {"service/web", "port/tcp/8080"}
    seen = (await manager.ok("GET", "/services/web"))["Version"]["Index"]
    await manager.ok("POST", f"/services/web/update?version={seen}", a_spec(EndpointSpec=publishing(8081)))
    assert claims() == {"service/web", "port/tcp/8081"}
    await manager.ok("DELETE", f"/services/{id}")
    assert claims() == set()
    assert await manager.refused("DELETE", "/services/web") == (404, "service web not found")


async def test_what_the_cluster_itself_writes_makes_no_update_stale(manager: Setup) -> None:
    await manager.ok("POST", "/services/create", a_spec())
    read = await manager.ok("GET", "/services/web")
    stored = manager.store.snapshot().service(read["ID"])
    assert stored is not None
    # as the allocator does
    await manager.store.commit([Put(replace(stored, endpoint=Endpoint(ports=[])))])
    seen = read["Version"]["Index"]
    await manager.ok("POST", f"/services/web/update?version={seen}", a_spec(replicas=2))
    for version in (seen, 1, 10**6):
        stale = await manager.refused("POST", f"/services/web/update?version={version}", a_spec(replicas=3))
        assert stale == (500, "rpc error: code = Unknown desc = update out of sequence")


async def test_updates_need_the_newest_version(manager: Setup) -> None:
    await manager.ok("POST", "/services/create", a_spec())
    seen = (await manager.ok("GET", "/services/web"))["Version"]["Index"]
    await manager.ok("POST", f"/services/web/update?version={seen}", a_spec(replicas=3))
    stale = await manager.refused("POST", f"/services/web/update?version={seen}", a_spec(replicas=4))
    assert stale == (500, "rpc error: code = Unknown desc = update out of sequence")
    assert await manager.refused("POST", "/services/web/update", a_spec()) == (
        400, "invalid service version '': strconv.ParseUint: parsing \"\": invalid syntax",
    )  # fmt: skip
    current = (await manager.ok("GET", "/services/web"))["Version"]["Index"]
    renamed = await manager.refused("POST", f"/services/web/update?version={current}", a_spec("other"))
    assert renamed == (501, "rpc error: code = Unimplemented desc = renaming services is not supported")
    remade = await manager.refused("POST", f"/services/web/update?version={current}", a_spec(Mode={"Global": {}}))
    assert remade == (501, "rpc error: code = Unimplemented desc = service mode change is not allowed")


async def test_rollback_goes_back_to_the_spec_before(manager: Setup) -> None:
    await manager.ok("POST", "/services/create", a_spec())
    seen = (await manager.ok("GET", "/services/web"))["Version"]["Index"]
    status, text = await manager.refused("POST", f"/services/web/update?rollback=previous&version={seen}", a_spec())
    assert (status, text) == (400, "rpc error: code = FailedPrecondition desc = service web does not have a previous spec")
    await manager.ok("POST", f"/services/web/update?version={seen}", changed("TaskTemplate.ContainerSpec.Args", ["false"]))
    seen = (await manager.ok("GET", "/services/web"))["Version"]["Index"]
    await manager.ok("POST", f"/services/web/update?rollback=previous&version={seen}", a_spec())
    after = await manager.ok("GET", "/services/web")
    assert after["Spec"]["TaskTemplate"]["ContainerSpec"]["Args"] == ["sleep", "1000"]


async def test_filters_in_both_forms(cluster: Setup) -> None:
    ids = {}
    for name, mode in (("web", {"Replicated": {"Replicas": 1}}), ("webtty", {"Replicated": {"Replicas": 1}}), ("glob", {"Global": {}})):
        ids[name] = (await cluster.ok("POST", "/services/create", a_spec(name, Mode=mode, Labels={"of": name, "all": ""})))["ID"]
    await settled(cluster, ids["web"], 1)

    async def names(filters: dict[str, Any]) -> list[str]:
        return [service["Spec"]["Name"] for service in await filtered(cluster, "/services", filters)]

    assert await names({"name": {"web": True}}) == await names({"name": ["web"]}) == ["web", "webtty"]
    assert await names({"id": [ids["glob"][:10]]}) == ["glob"]
    assert await names({"mode": ["global"]}) == ["glob"]
    assert await names({"label": ["all"]}) == ["glob", "web", "webtty"]
    assert await names({"label": ["all", "of=web"]}) == ["web"]
    assert await names({"label": ["of=other"]}) == []
    assert await cluster.refused("GET", "/services?filters=" + quote('{"bogus":["x"]}')) == (400, "Invalid filter 'bogus'")
    assert await cluster.refused("GET", "/tasks?filters=" + quote('{"bogus":["x"]}')) == (400, "Invalid filter 'bogus'")
    assert (await cluster.refused("GET", "/tasks?filters=nonsense"))[0] == 400
    assert await cluster.refused("GET", "/tasks?filters=" + quote('{"service":["nosuch"]}')) == (404, "service nosuch not found")
    assert len(await filtered(cluster, "/tasks", {"service": ["web"], "node": [cluster.backend.node_id]})) == 1
    assert len(await filtered(cluster, "/tasks", {"label": ["of=web"]})) == 1
    assert await filtered(cluster, "/tasks", {"desired-state": ["shutdown"]}) == []


async def test_references_by_id_name_and_prefix(cluster: Setup) -> None:
    id = (await cluster.ok("POST", "/services/create", a_spec()))["ID"]
    await settled(cluster, id, 1)
    for reference in (id, "web", id[:8]):
        assert (await cluster.ok("GET", f"/services/{reference}"))["ID"] == id
    task = next(cluster.store.snapshot().all(Task))
    for reference in (task.id, task.id[:8], "web.1"):
        assert (await cluster.ok("GET", f"/tasks/{reference}"))["ID"] == task.id
    assert await cluster.refused("GET", "/tasks/nosuch") == (404, "task nosuch not found")


async def test_versions_in_the_path(manager: Setup) -> None:
    for path in ("/services", "/v1.24/services", "/v1.41/services", "/v1.44/services"):
        assert await manager.ok("GET", path) == []
    assert await manager.refused("GET", "/v9.99/services") == (
        400, "client version 9.99 is too new. Maximum supported API version is 1.50",
    )  # fmt: skip
    status, text = await manager.refused("GET", "/v1.0/services")
    assert status == 400
    assert text.startswith("client version 1.0 is too old. Minimum supported API version is 1.24,")
    for method, path in (("GET", "/nosuch"), ("PUT", "/services"), ("GET", "/swarm/nosuch")):
        assert await manager.refused(method, path) == (404, "page not found")


# ---- jobs -----------------------------------------------------------------------------------------------------------------------


def a_job(name: str = "job", total: int | None = None, concurrent: int | None = None, **more: Any) -> dict[str, Any]:
    mode = {key: value for key, value in (("TotalCompletions", total), ("MaxConcurrent", concurrent)) if value is not None}
    return {**a_spec(name), "Mode": {"ReplicatedJob": mode}, **more}


@pytest.mark.parametrize(
    ("total", "concurrent", "stored"), [(None, None, (1, 1)), (3, None, (3, 1)), (None, 2, (2, 2)), (5, 2, (5, 2)), (0, None, (0, 1))]
)
async def test_a_jobs_numbers_are_filled_in_as_docker_does(
    cluster: Setup, total: int | None, concurrent: int | None, stored: tuple[int, int]
) -> None:
    await cluster.ok("POST", "/services/create", a_job(total=total, concurrent=concurrent))
    shown = await cluster.ok("GET", "/services/job")
    assert shown["Spec"]["Mode"] == {"ReplicatedJob": {"TotalCompletions": stored[0], "MaxConcurrent": stored[1]}}
    assert shown["JobStatus"]["JobIteration"] == {} and shown["JobStatus"]["LastExecution"]
    assert "UpdateConfig" not in (await cluster.ok("GET", "/services/job"))["Spec"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (a_job(total=-1), "Number of replicas must be non-negative"),
        (a_job(total=2, concurrent=0), "Maximum concurrent tasks of a job must be at least 1"),
        (a_job(UpdateConfig={"Parallelism": 1}), "UpdateConfig: a job has no rolling update"),
        (a_job(Labels={"com.meshd.cron.schedule": "every day"}), "label com.meshd.cron.schedule: bad schedule 'every day'"),
        (a_spec(Labels={"com.meshd.cron.schedule": "@daily"}), "only jobs have a schedule"),
    ],
)
async def test_jobs_that_can_not_be_are_refused(cluster: Setup, spec: dict[str, Any], says: str) -> None:
    status, text = await cluster.refused("POST", "/services/create", spec)
    assert status == 400 and says in text
    assert await cluster.ok("GET", "/services") == []


async def test_tasks_of_a_job_are_shown_as_the_docker_cli_counts_them(cluster: Setup) -> None:
    created = await cluster.ok("POST", "/services/create", a_job(total=2, concurrent=2))
    service = cluster.store.snapshot().service(created["ID"])
    assert service is not None
    states = {1: TaskState.RUNNING, 2: TaskState.COMPLETE}
    for slot, state in states.items():
        task = Task(
            id=f"t{slot}",
            service_id=service.id,
            slot=slot,
            spec=service.spec.task_template,
            status=TaskStatus(state=state),
            job_iteration=Version(),
            mesh_service_name="job",
        )
        await cluster.store.commit([Put(task)])
    shown = await filtered(cluster, "/tasks", {"service": ["job"], "_up-to-date": ["true"]})
    assert [(task.get("Slot", 0), task["DesiredState"], task["JobIteration"]) for task in shown] == [
        (0, "complete", {}),
        (1, "complete", {}),
    ]
    assert [task["Slot"] for task in await filtered(cluster, "/tasks", {"service": ["job"]})] == [1, 2]
    assert [task["ID"] for task in await filtered(cluster, "/tasks", {"desired-state": ["complete"]})] == ["t1", "t2"]
    [listed] = await cluster.ok("GET", "/services?status=true")
    assert listed["ServiceStatus"] == {"RunningTasks": 1, "DesiredTasks": 2, "CompletedTasks": 1}
    await cluster.ok("POST", "/services/create", {**a_spec("other"), "Mode": {"GlobalJob": {}}})
    for mode, names in (("replicated-job", ["job"]), ("global-job", ["other"]), ("replicated", [])):
        assert [obj["Spec"]["Name"] for obj in await filtered(cluster, "/services", {"mode": [mode]})] == names


async def test_a_cron_job_says_when_it_runs(cluster: Setup) -> None:
    labels = {"com.meshd.cron.schedule": "0 3 * * *", "com.meshd.cron.timezone": "Asia/Shanghai"}
    await cluster.ok("POST", "/services/create", a_job(Labels=labels))
    shown = await cluster.ok("GET", "/services/job")
    assert shown["UpdateStatus"]["State"] == "completed", "the docker CLI waits for nothing then"
    assert "schedule '0 3 * * *'; next run 20" in shown["UpdateStatus"]["Message"] and "19:00:00 UTC" in shown["UpdateStatus"]["Message"]
    assert "LastExecution" not in shown["JobStatus"]
    forced = shown["Spec"]
    forced["TaskTemplate"]["ForceUpdate"] = 1
    forced["Labels"]["com.meshd.cron.concurrency"] = "forbid"
    await cluster.ok("POST", f"/services/job/update?version={shown['Version']['Index']}", forced)
    shown = await cluster.ok("GET", "/services/job")
    assert shown["JobStatus"]["LastExecution"] and "is under way" in shown["UpdateStatus"]["Message"]
    forced["TaskTemplate"]["ForceUpdate"] = 2
    status, text = await cluster.refused("POST", f"/services/job/update?version={shown['Version']['Index']}", forced)
    assert status == 400 and "has a run under way and forbids two at once" in text


async def test_a_service_may_share_the_nodes_network(manager: Setup) -> None:
    """As the CLI asks: it looks the network up first."""
    found = await manager.ok("GET", "/networks/host?scope=swarm")
    assert (found["Name"], found["Scope"], found["Driver"]) == ("host", "swarm", "host")
    spec = a_spec("near")
    spec["TaskTemplate"]["Networks"] = [{"Target": found["Id"]}]
    spec["EndpointSpec"] = {"Ports": [{"TargetPort": 80, "PublishedPort": 80, "PublishMode": "host"}]}
    id = (await manager.ok("POST", "/services/create", spec))["ID"]
    assert (await manager.ok("GET", f"/services/{id}"))["Spec"]["TaskTemplate"]["Networks"] == [{"Target": "host"}]
    for port in ({"TargetPort": 80}, {"TargetPort": 80, "PublishedPort": 81, "PublishMode": "host"}):
        spec = a_spec("other")
        spec["TaskTemplate"]["Networks"] = [{"Target": "host"}]
        spec["EndpointSpec"] = {"Ports": [port]}
        status, text = await manager.refused("POST", "/services/create", spec)
        assert status == 400 and "listens on the node itself: port 80 can only be published as mode=host" in text


async def test_registry_credentials_are_kept_encrypted_and_never_shown(manager: Setup) -> None:
    header = base64.urlsafe_b64encode(b'{"username":"ann","password":"s3cret","serveraddress":"r"}').decode()
    other = base64.urlsafe_b64encode(b'{"identitytoken":"t"}').decode().rstrip("=")

    def stored(id: str) -> bytes:
        service = manager.store.snapshot().service(id)
        assert service is not None
        return manager.backend.decrypt_secret(service.mesh_registry_auth) if service.mesh_registry_auth else b""

    async def send(path: str, auth: str | None, name: str = "private") -> tuple[int, Any]:
        headers = {} if auth is None else {"X-Registry-Auth": auth}
        async with manager.session.post(f"http://d{path}", json=a_spec(name), headers=headers) as response:
            return response.status, await response.json()

    async def update(auth: str | None) -> None:
        version = (await manager.ok("GET", f"/services/{id}"))["Version"]["Index"]
        assert (await send(f"/services/{id}/update?version={version}&registryAuthFrom=spec", auth))[0] == 200

    status, answer = await send("/services/create", header)
    assert status == 201
    id = answer["ID"]
    assert stored(id) == header.encode()
    shown = json.dumps(await manager.ok("GET", f"/services/{id}"))
    assert "s3cret" not in shown and "RegistryAuth" not in shown
    raw = msgspec.json.encode(manager.store.snapshot().service(id))
    assert b"s3cret" not in raw and header.encode() not in raw
    for auth, kept in ((None, header), ("e30=", header), (other, other)):
        await update(auth)
        assert stored(id) == kept.encode()
    for bad in ("%%%", "e30x", base64.b64encode(b"[1]").decode(), base64.b64encode(b'{"username":1}').decode()):
        status, answer = await send("/services/create", bad, "bad")
        assert status == 400 and answer["message"].startswith("invalid X-Registry-Auth header: it must be ")
