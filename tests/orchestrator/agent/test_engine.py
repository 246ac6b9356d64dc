"""The Docker Engine keeps the contract; and what only a real Engine can show of the held start and of the mapping."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from orchestrator.agent.container_spec import ImageConfig, container_name, create_request
from orchestrator.agent.errors import EngineUnavailable
from orchestrator.agent.hold import find_busybox
from orchestrator.errors import TaskError
from orchestrator.model import (
    ConfigReference,
    ContainerSpec,
    DiscreteGenericResource,
    Driver,
    FileTarget,
    GenericResource,
    HealthConfig,
    Limit,
    Mount,
    NamedGenericResource,
    NetworkAttachment,
    NetworkAttachmentConfig,
    NetworkReference,
    ResourceObject,
    ResourceRequirements,
    SecretReference,
    Task,
    TaskSpec,
    TmpfsOptions,
    Ulimit,
)

from .conftest import DockerBed, Engine, archive
from .runtime_contract import RuntimeContract, exited, make_task, run, seen
from .wait import until

pytestmark = pytest.mark.engine


@pytest_asyncio.fixture
async def bed(engine: Engine) -> AsyncIterator[DockerBed]:
    bed = DockerBed(engine)
    yield bed
    await bed.close()


class TestDockerRuntime(RuntimeContract):
    pass


async def output(bed: DockerBed, task: Task) -> tuple[int, str]:
    runtime = bed.runtime()
    await run(runtime, task)
    container = await exited(runtime, task.id)
    return container.exit_code, bed.engine.client().logs(container.id).decode()


async def test_the_images_own_program_runs_with_exactly_its_environment(bed: DockerBed) -> None:
    assert await output(bed, make_task("ls", image="ownls:1")) == (0, "own ls: /own/ls\n")
    spec: dict[str, Any] = {"image": "ownls:1", "env": ['a.b=it\'s "x"', "FOO=1", "HOSTNAME=h"]}
    code, text = await output(bed, make_task("/bin/busybox", "env", **spec))
    environment = dict(line.split("=", 1) for line in text.splitlines())
    assert code == 0
    assert environment == {
        "PATH": "/empty:/own", "discovery.type": "single", "PWD": "/elsewhere", "a.b": "it's \"x\"", "FOO": "1", "HOSTNAME": "h",
        "HOME": "/",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "code", "error"),
    [
        (["nosuch"], 127, 'exec: "nosuch": executable file not found in $PATH'),
        (["plain"], 127, 'exec: "plain": executable file not found in $PATH'),
        (["/own/nosuch"], 127, 'exec: "/own/nosuch": stat /own/nosuch: no such file or directory'),
        (["/own/plain"], 126, 'exec: "/own/plain": permission denied'),
        (["/own"], 126, 'exec: "/own": is a directory'),
        (["lost"], 127, 'exec: "/own/lost": no such file or directory'),
    ],
)
async def test_what_cannot_be_executed(bed: DockerBed, argv: list[str], code: int, error: str) -> None:
    runtime, task = bed.runtime(), make_task(*argv, image="ownls:1")
    await run(runtime, task)
    container = await exited(runtime, task.id)
    assert (container.exit_code, container.error) == (code, error)


@pytest.mark.parametrize(
    "spec",
    [
        {"image": "scratch:1", "args": None},
        {"image": "scratch:1", "args": None, "read_only": True, "user": "1234:5678"},
        {"image": "scratch:1", "args": None, "tty": True, "init": True},
        {"user": "nobody", "read_only": True, "tty": True, "open_stdin": True, "init": True},
        {"capability_drop": ["ALL"], "user": "65534", "dir": "/tmp"},
    ],
)
async def test_holds_and_lets_go_whatever_the_image_and_the_user(bed: DockerBed, spec: dict[str, Any]) -> None:
    runtime, task = bed.runtime(), make_task(**spec)
    await runtime.prepare(task, {})
    held = await runtime.start_held(task.id)
    assert held.state == "held"

    def programs() -> list[str]:
        pids = [held.pid, *map(int, _read(f"/proc/{held.pid}/task/{held.pid}/children").split())]
        return [_read(f"/proc/{pid}/cmdline").split("\0")[0] for pid in pids]

    await until(lambda: "/.meshd/busybox" in programs(), "the holder is there")
    assert not any(program.endswith("sleep") for program in programs())
    await runtime.release(task.id)
    await until(lambda: any(program.endswith("/sleep") for program in programs()), f"the application runs: {programs()}")
    if not spec.get("init"):
        assert len(programs()) == 1


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


async def test_names_and_addresses_in_its_files(bed: DockerBed) -> None:
    task = make_task("cat", "/etc/resolv.conf", "/etc/hosts", hosts=["10.9.9.9 db db.local"], hostname="me")
    attachment = NetworkAttachment(network=NetworkReference(id="n"), addresses=["10.0.1.5/24"])
    task = Task(id=task.id, mesh_service_name="web", slot=1, spec=task.spec, networks_attachments=[attachment])
    code, text = await output(bed, task)
    assert code == 0
    assert "nameserver 127.0.0.11\n" in text
    assert "options ndots:0\n" in text
    assert "10.9.9.9\tdb\n" in text
    assert "10.9.9.9\tdb.local\n" in text
    assert "10.0.1.5\tme\n" in text


async def test_secrets_and_configs(bed: DockerBed) -> None:
    script = "cat /run/secrets/password /etc/app/conf; ls -ln /run/secrets/password /etc/app/conf; touch /run/secrets/password"
    task = make_task(
        "sh", "-c", script, user="1234",
        secrets=[SecretReference(file=FileTarget(name="password", uid="1234", mode=0o400), secret_id="s", secret_name="pw")],
        configs=[ConfigReference(file=FileTarget(name="/etc/app/conf", gid="7"), config_id="c", config_name="conf")],
    )  # fmt: skip
    runtime = bed.runtime()
    await runtime.prepare(task, {"s": b"open sesame\n", "c": b"key=1\n"})
    written = bed.engine.files_dir / task.id
    assert stat.S_IMODE(bed.engine.files_dir.stat().st_mode) == 0o700
    assert sorted(path.read_bytes() for path in written.iterdir()) == [b"key=1\n", b"open sesame\n"]
    await runtime.start_held(task.id)
    await runtime.release(task.id)
    container = await exited(runtime, task.id)
    # the log keeps the order within a stream, not between the two
    text = bed.engine.client().logs(container.id, stderr=False).decode()
    assert text.startswith("open sesame\nkey=1\n")
    assert "-r--------    1 1234     0" in text
    assert "-r--r--r--    1 0        7" in text
    assert container.exit_code == 1, "a secret can't be written"
    await runtime.remove(task.id)
    assert not written.exists()
    assert not (bed.engine.directory / "state" / "tasks" / task.id).exists()


async def test_the_whole_spec_reaches_the_engine(bed: DockerBed) -> None:
    volume, second = f"agt-{os.getpid()}", 1_000_000_000
    spec = ContainerSpec(
        image="bb:1", labels={"mine": "1"}, command=["sleep"], args=["5"], hostname="h1", env=["A=1"], dir="/tmp", user="nobody",
        groups=["7"], stop_signal="SIGINT", stop_grace_period=3 * second, tty=True, init=True, read_only=True,
        mounts=[
            Mount(source=volume, target="/v"), Mount(type="bind", source="/etc", target="/e", read_only=True),
            Mount(type="tmpfs", target="/t", tmpfs_options=TmpfsOptions(size_bytes=1 << 20, mode=0o700)),
        ],
        healthcheck=HealthConfig(test=["CMD", "true"], interval=second, retries=2), sysctls={"net.ipv4.ip_unprivileged_port_start": "0"},
        capability_add=["CAP_NET_ADMIN"], capability_drop=["CAP_CHOWN"], ulimits=[Ulimit(name="nofile", soft=100, hard=200)],
        privileges={"NoNewPrivileges": True}, oom_score_adj=7,
    )  # fmt: skip
    resources = ResourceRequirements(
        limits=Limit(nano_cpus=500_000_000, memory_bytes=64 << 20, pids=50), reservations=ResourceObject(memory_bytes=128 << 20)
    )
    task = Task(
        id=make_task().id, service_id="s1", mesh_service_name="web", node_id="n1", spec=TaskSpec(container_spec=spec, resources=resources)
    )
    runtime, client = bed.runtime(), bed.engine.client()
    container = await runtime.prepare(task, {})
    assert container.name == container_name(task) == f"web.n1.{task.id}"
    details = client.inspect_container(container.id)
    config, host = details["Config"], details["HostConfig"]
    assert {name: config[name] for name in ("Hostname", "User", "WorkingDir", "StopSignal", "StopTimeout", "Tty")} == {
        "Hostname": "h1", "User": "nobody", "WorkingDir": "/tmp", "StopSignal": "SIGINT", "StopTimeout": 3, "Tty": True
    }  # fmt: skip
    assert config["Cmd"] == ["sleep", "5"]
    assert config["Healthcheck"] == {"Test": ["CMD", "true"], "Interval": second, "Retries": 2}
    assert config["Labels"]["mine"] == "1"
    assert config["Labels"]["com.docker.swarm.task.id"] == config["Labels"]["io.meshd.task"] == task.id
    assert config["Labels"]["com.docker.swarm.service.name"] == "web"
    assert host["NetworkMode"] == "none"
    assert (host["NanoCpus"], host["Memory"], host["MemoryReservation"], host["PidsLimit"]) == (500_000_000, 64 << 20, 64 << 20, 50)
    assert (host["Init"], host["ReadonlyRootfs"], host["GroupAdd"], host["OomScoreAdj"]) == (True, True, ["7"], 7)
    assert host["CapAdd"] == ["CAP_NET_ADMIN"]
    assert host["CapDrop"] == ["CAP_CHOWN"]
    assert host["Ulimits"] == [{"Name": "nofile", "Soft": 100, "Hard": 200}]
    assert host["SecurityOpt"] == ["no-new-privileges=true"]
    assert {(m["Type"], m["Destination"], m["RW"]) for m in details["Mounts"]} >= {("volume", "/v", True), ("bind", "/e", False)}
    assert await runtime.prepare(task, {}) == container
    held = await runtime.start_held(task.id)
    assert held.health == "starting"
    await runtime.release(task.id)
    for _ in range(100):
        healthy = await seen(runtime, task.id)
        assert healthy is not None
        if healthy.health == "healthy":
            break
        await asyncio.sleep(0.1)
    else:
        pytest.fail("never healthy")
    assert healthy.tcp_ports == (80,)
    await runtime.remove(task.id)
    client.remove_volume(volume)


async def test_options_of_docker_run_reach_the_container(bed: DockerBed) -> None:
    """Seen from inside: the node's processes, a device, more shared memory, no seccomp; beside what services have."""
    script = (
        "cat /proc/1/comm; readlink /proc/self/ns/ipc; test -c /dev/nothing && echo device; df -k /dev/shm | tail -n 1;"
        "ulimit -n; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; id -G; touch /x 2>&1; df -k /t | tail -n 1;"
        "cat /proc/self/oom_score_adj; grep Seccomp: /proc/self/status"
    )
    labels = {
        "pid": "host", "ipc": "private", "devices": "/dev/null:/dev/nothing", "shm-size": "2m", "cpu-shares": "512",
        "security-opt": "seccomp=unconfined", "cgroupns": "private",
    }  # fmt: skip
    task = make_task(
        "sh", "-c", script, labels={f"com.meshd.run.{name}": value for name, value in labels.items()},
        ulimits=[Ulimit(name="nofile", soft=100, hard=200)], sysctls={"net.ipv4.ip_unprivileged_port_start": "7"}, groups=["7"],
        read_only=True, mounts=[Mount(type="tmpfs", target="/t", tmpfs_options=TmpfsOptions(size_bytes=1 << 20))], oom_score_adj=123,
    )  # fmt: skip
    code, text = await output(bed, task)
    lines = text.splitlines()
    assert code == 0, text
    assert lines[0] == Path("/proc/1/comm").read_text().strip(), "the node's first process"
    assert lines[1] != str(Path("/proc/self/ns/ipc").readlink())
    assert lines[2] == "device"
    assert lines[3].split()[1] == "2048"
    assert lines[4:7] == ["100", "7", "0 7"]
    assert "Read-only file system" in lines[7]
    assert lines[8].split()[1] == "1024"
    assert lines[9:] == ["123", "Seccomp:\t0"]


async def test_privileges_and_cards_are_asked_of_the_engine(bed: DockerBed) -> None:
    """Not started: a machine that lacks capabilities itself, or has no card, could not."""
    runtime = bed.runtime()
    labels = {"com.meshd.run.privileged": "true", "com.meshd.run.gpus": "device=0,1", "com.meshd.run.userns": "host"}
    task = make_task("true", labels=labels, privileges={"NoNewPrivileges": True})
    container = await runtime.prepare(task, {})
    config = bed.engine.client().inspect_container(container.id)["HostConfig"]
    assert config["Privileged"] and config["UsernsMode"] == "host" and "no-new-privileges=true" in config["SecurityOpt"]
    assert [(request["DeviceIDs"], request["Capabilities"]) for request in config["DeviceRequests"]] == [(["0", "1"], [["gpu"]])]


@pytest.mark.parametrize(("requests", "devices"), [(True, [["GPU-1", "GPU-2"]]), (False, [])])
def test_cards_given_by_the_scheduler(requests: bool, devices: list[list[str]]) -> None:
    """Whether the Engine knows device requests or not, the environment names the cards."""
    given = [GenericResource(named_resource_spec=NamedGenericResource(kind="NVIDIA-GPU", value=value)) for value in ("GPU-1", "GPU-2")]
    given.append(GenericResource(discrete_resource_spec=DiscreteGenericResource(kind="ssd", value=3)))
    task = msgspec.structs.replace(make_task("true"), generic_resources=given)
    request = create_request(task, ImageConfig(), cluster_id="c1", gate_dir="/g", file_paths={}, gpu_requests=requests)
    assert [found["DeviceIDs"] for found in request["HostConfig"].get("DeviceRequests", [])] == devices
    assert request["Env"] == ["DOCKER_RESOURCE_NVIDIA-GPU=GPU-1,GPU-2", "DOCKER_RESOURCE_SSD=3"]


async def test_a_task_on_the_nodes_network_sees_its_interfaces(bed: DockerBed) -> None:
    task = make_task("sh", "-c", "readlink /proc/self/ns/net")
    networks = [NetworkAttachmentConfig(target="host")]
    task = msgspec.structs.replace(task, spec=msgspec.structs.replace(task.spec, networks=networks))
    _, text = await output(bed, task)
    assert text.strip() == str(Path(f"/proc/{bed.engine.pid}/ns/net").readlink())


async def test_the_engines_logging_drivers_are_used(bed: DockerBed) -> None:
    runtime = bed.runtime()
    task = make_task("echo", "hello")
    driver = Driver(name="json-file", options={"max-size": "10k", "tag": "x"})
    await runtime.prepare(msgspec.structs.replace(task, spec=msgspec.structs.replace(task.spec, log_driver=driver)), {})
    container = bed.engine.client().inspect_container((await seen(runtime, task.id)).id)  # type: ignore[union-attr]
    assert container["HostConfig"]["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10k", "tag": "x"}}


async def test_refusals_are_sentences(bed: DockerBed) -> None:
    runtime = bed.runtime()
    with pytest.raises(TaskError, match="bind source path does not exist: /no/such") as caught:
        await runtime.prepare(make_task(mounts=[Mount(type="bind", source="/no/such", target="/x")]), {})
    assert caught.value.rejected
    with pytest.raises(TaskError, match="invalid reference format"):
        await runtime.prepare(make_task(image="Not A Name"), {})
    bad = make_task(user="nobodyatall")
    await runtime.prepare(bad, {})
    with pytest.raises(TaskError, match=r"^starting container failed: .*nobodyatall") as caught:
        await runtime.start_held(bad.id)
    assert not caught.value.rejected


async def test_only_this_clusters_containers_exist(bed: DockerBed) -> None:
    runtime, client = bed.runtime(), bed.engine.client()
    foreign = client.create_container("bb:1", "sleep 9", labels={"io.meshd.cluster": "other", "io.meshd.task": "x"})
    plain = client.create_container("bb:1", "sleep 9")
    assert await runtime.containers() == []
    await runtime.remove("x")
    assert {c["Id"] for c in client.containers(all=True)} == {foreign["Id"], plain["Id"]}


async def test_stop_waits_for_the_grace_then_kills(bed: DockerBed) -> None:
    runtime = bed.runtime()
    polite = make_task("sh", "-c", "trap 'exit 5' INT; touch /tmp/set; while :; do sleep 0.05; done", stop_signal="SIGINT")
    stubborn = make_task("sh", "-c", "trap '' TERM; touch /tmp/set; while :; do sleep 0.05; done")
    for task in (polite, stubborn):
        trapped = Path(f"/proc/{(await run(runtime, task)).pid}/root/tmp/set")
        await until(trapped.exists, "its traps are set")
    loop = asyncio.get_running_loop()
    began = loop.time()
    await runtime.stop(polite.id, 20, "")
    assert loop.time() - began < 5
    assert (await exited(runtime, polite.id)).exit_code == 5
    began = loop.time()
    await runtime.stop(stubborn.id, 0.5, "")
    assert 0.5 <= loop.time() - began < 5
    assert (await exited(runtime, stubborn.id)).exit_code == 137


async def test_what_a_crash_left_is_swept(bed: DockerBed) -> None:
    left = bed.engine.directory / "state" / "tasks" / "gone" / "gate"
    left.mkdir(parents=True)
    task = make_task()
    runtime = bed.runtime()
    await runtime.prepare(task, {})
    await runtime.containers()
    assert not left.exists()
    assert (bed.engine.directory / "state" / "tasks" / task.id).exists()


async def test_engine_killed_and_started_again(bed: DockerBed) -> None:
    runtime, task = bed.runtime(), make_task()
    heard: list[str] = []

    async def listen() -> None:
        async for event in runtime.events():
            heard.append(event.action)

    listening = asyncio.create_task(listen())
    try:
        running = await run(runtime, task)
        held_task = make_task()
        await runtime.prepare(held_task, {})
        held = await runtime.start_held(held_task.id)
        await until(lambda: "connected" in heard, "connected")
        await asyncio.to_thread(bed.engine.kill)
        with pytest.raises(EngineUnavailable):
            await runtime.containers()
        with pytest.raises(EngineUnavailable):
            await runtime.prepare(make_task(), {})
        heard.clear()
        await asyncio.to_thread(bed.engine.start)
        await until(lambda: "connected" in heard, "connected again", 10)
        assert await seen(runtime, task.id) == running
        assert await seen(runtime, held_task.id) == held
        await runtime.release(held_task.id)
        released = await seen(runtime, held_task.id)
        assert released is not None
        assert (released.state, released.pid) == ("running", held.pid)
        await runtime.stop(task.id, 0.1, "")
        assert (await exited(runtime, task.id)).exit_code == 137
        assert (await run(runtime, make_task())).state == "running"
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


def sockets() -> int:
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(descriptor.readlink()).startswith("socket:")
    return found


async def test_containers_that_come_and_go_leave_no_open_connections(bed: DockerBed) -> None:
    runtime = bed.runtime()
    before = sockets()
    for _ in range(5):
        task = make_task("sleep", "1000")
        await run(runtime, task)
        await runtime.stop(task.id, 0, "")
        await runtime.remove(task.id)
    threads = sum(thread.name.startswith("engine_") for thread in threading.enumerate())
    assert sockets() - before <= threads


@pytest.fixture
def registry(engine: Engine, tmp_path: Path) -> Iterator[str]:
    """Its address for the Engine. It wants "ann" with "s3cret"."""
    layer = tmp_path / "layer.tar"
    layer.write_bytes(archive({"sleep": (find_busybox().read_bytes(), 0o755)}))
    inside = ["nsenter", "-t", str(engine.pid), "-n", "--"]
    subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
    program = [sys.executable, str(Path(__file__).with_name("registry.py")), "5000", "ann", "s3cret", str(layer)]
    process = subprocess.Popen([*inside, *program], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield "127.0.0.1:5000"
    finally:
        process.kill()
        process.wait()


@pytest.mark.root
async def test_an_image_is_pulled_with_the_credentials_of_its_service(bed: DockerBed, registry: str) -> None:
    runtime = bed.runtime()
    image = f"{registry}/private/app:1"

    def header(password: str) -> str:
        return base64.urlsafe_b64encode(json.dumps({"username": "ann", "password": password, "serveraddress": registry}).encode()).decode()

    for wrong in ("", header("guess")):
        with pytest.raises(TaskError, match=rf"^No such image: {image} \(.*(unauthorized|no basic auth credentials)") as caught:
            await runtime.prepare(make_task("/sleep", "1000", image=image), {}, wrong)
        assert caught.value.rejected and "guess" not in str(caught.value)
    task = make_task("1000", image=image, command=["/sleep"])
    assert (await runtime.prepare(task, {}, header("s3cret"))).state == "created"
    await runtime.start_held(task.id)
    await runtime.release(task.id)
    bed.engine.client().remove_container((await seen(runtime, task.id)).id, force=True)  # type: ignore[union-attr]
    bed.engine.client().remove_image(image)
