"""What is played against both, a line a step, in scenarios that leave nothing behind: the files beside this one.

    network ls                      the docker CLI's command line; `<< text`: its standard input
    @node-2 swarm leave             ... at another node than the first
    sorted service ps web           ... its lines have no order
    poll PATTERN :: service ls      ... asked until its output matches; not compared
    GET /v1.24/nodes                a request; the rest of the line is its body
    sh: docker ps | wc -l           a line of bash in a directory of the side's own: `docker` is the CLI, $SOCKET its daemon's socket
    tty: run -it ... :: expect # :: type exit 3\\n :: resize 40x120
                                    the CLI on a terminal; what it is told to expect must come, its exit code is compared
    py: api.services()              a call of docker-py's: `client` is a DockerClient, `api` its APIClient; `name = ...` keeps the result

`{image}`, `{node}`, `{node-2}` (hostnames), `{address}`, `{address-2}`, `{nowhere}` (a constraint no node meets), `{cli}` (1: the first),
`{token ROLE}`, `{began}` (when the scenario did), `{task SERVICE}` (its id), `{id KIND NAME}` (what `docker KIND inspect` calls it),
`{prefix KIND NAME}` (that id's beginning) and `{version KINDS NAME}` (its version's index) are filled in per side. A backslash at
its end: the line goes on. `#`: a comment.

A name that nothing has contains a hyphen: what isn't found by its name is looked for as the beginning of an id, of letters and digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Scenario:
    """once: nothing in it depends on which CLI plays it. quick: played also where there is a minute only."""

    name: str
    once: bool = False
    quick: bool = False

    def lines(self) -> list[str]:
        return list(lines((Path(__file__).parent / f"{self.name}.txt").read_text()))


def lines(text: str) -> Iterator[str]:
    """Its steps: without comments, those that go on in the next line joined with it."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip()


# from no cluster to one of one node, to one of three, and back
ORDER = (
    Scenario("no_cluster", once=True),
    Scenario("founding", once=True),
    Scenario("the_machine"),
    Scenario("joining", once=True),
    Scenario("nodes"),
    Scenario("networks"),
    Scenario("secrets_and_configs"),
    Scenario("services_of_no_replicas"),
    Scenario("tasks"),
    Scenario("changes", once=True),
    Scenario("stacks"),
    Scenario("events"),
    Scenario("requests", once=True),
    Scenario("docker_py", once=True),
    Scenario("roles", once=True),
    Scenario("leaving", once=True),
)

# of containers, images, volumes and an Engine's own networks: one Engine beside a cluster
CONTAINERS = (
    Scenario("containers/nothing_there", quick=True),
    Scenario("containers/run"),
    Scenario("containers/life"),
    Scenario("containers/logs"),
    Scenario("containers/exec"),
    Scenario("containers/terminals", quick=True),
    Scenario("containers/attached"),
    Scenario("containers/copies"),
    Scenario("containers/inspections", quick=True),
    Scenario("containers/shared"),
    Scenario("containers/images"),
    Scenario("containers/builds"),
    Scenario("containers/volumes", quick=True),
    Scenario("containers/networks"),
    Scenario("containers/published"),
    Scenario("containers/events"),
    Scenario("containers/the_machine"),
    Scenario("containers/requests", once=True, quick=True),
    Scenario("containers/docker_py", once=True),
)
