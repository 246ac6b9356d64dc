"""What the Engine says of a container in two answers that don't agree, because something happened between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import docker

from orchestrator.agent.container_spec import LABEL_ATTACHMENT, LABEL_CLUSTER
from orchestrator.agent.engine import DockerRuntime

LABELS = {LABEL_CLUSTER: "c", LABEL_ATTACHMENT: "a"}


class Client:
    """States as the list and as the details have them."""

    def __init__(self) -> None:
        self.listed = self.state = "running"
        self.pid = 0
        self.inspected = 0

    def containers(self, **_: Any) -> list[dict[str, Any]]:
        return [{"Id": "x", "State": self.listed, "Status": "Up 3 seconds", "Labels": LABELS}]

    def inspect_container(self, id: str) -> dict[str, Any]:
        self.inspected += 1
        return {
            "Id": id,
            "Name": "/db",
            "State": {"Status": self.state, "Pid": self.pid, "ExitCode": 0, "Error": "", "StartedAt": "2030-01-01T00:00:00Z"},
            "Config": {"Labels": LABELS},
            "HostConfig": {"NetworkMode": "none"},
        }


async def test_one_that_was_stopped_between_list_and_details_and_started_again_is_looked_at_again(tmp_path: Path) -> None:
    runtime = DockerRuntime(engine_url="unix:///nowhere", cluster_id="c", state_dir=tmp_path, files_dir=tmp_path, busybox=Path("/bin/true"))
    fake = Client()
    client = cast(docker.APIClient, fake)

    def look() -> tuple[str, int]:
        entries = runtime._read_all(client)
        runtime._seen = {entry.container.id: entry for entry in entries}
        return entries[0].container.state, entries[0].container.pid

    try:
        fake.pid = 100
        assert (look(), look(), fake.inspected) == (("running", 100), ("running", 100), 1)
        # the list is a moment older than the details
        runtime._seen.clear()
        fake.state, fake.pid = "exited", 0
        assert look() == ("exited", 0)
        # started again: the list reads as it did before
        fake.state, fake.pid = "running", 200
        assert look() == ("running", 200)
    finally:
        await runtime.close()
