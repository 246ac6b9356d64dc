"""The differences from a real Engine in swarm mode that are meant, each with its reason.

Pure: data. A difference that no entry explains fails the replay, and so does an entry that explains none.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accepted:
    """`commands` and `line` are regular expressions, searched for; `line` in "engine: ..." or "mesh: ...": what only that one says.

    varies: by the machine, or by chance: need not be met.
    """

    commands: str
    line: str
    reason: str
    varies: bool = False

    def explains(self, command: str, line: str) -> bool:
        return re.search(self.commands, command) is not None and re.search(self.line, line) is not None


def between(engine: Sequence[str], mesh: Sequence[str]) -> Iterator[str]:
    """The lines that only one of the two said, in order."""
    for line in difflib.ndiff(engine, mesh):
        if line.startswith("- "):
            yield f"engine: {line[2:]}"
        elif line.startswith("+ "):
            yield f"mesh: {line[2:]}"


def unexplained(found: Sequence[tuple[str, str]], accepted: Sequence[Accepted]) -> tuple[list[tuple[str, str]], list[Accepted]]:
    """Of (command, line): those that no entry explains; and the entries that explain none."""
    left = [(command, line) for command, line in found if not any(entry.explains(command, line) for entry in accepted)]
    stale = [entry for entry in accepted if not entry.varies and not any(entry.explains(command, line) for command, line in found)]
    return left, stale


# What one accepts and the other refuses differs in the answer, the exit code, and in what is removed afterwards.
_REFUSED = r"^engine: (exit (0|20[01])|\.ID: |<id>|[\w-]+$)|^mesh: (exit (1|400|404)|stderr: )"

ACCEPTED: tuple[Accepted, ...] = (
    # ---- the cluster ---------------------------------------------------------------------------------------------------------
    Accepted("cert-expiry 10m|heartbeat=-1s", "minimum certificate expiry|heartbeat time period", "refused before anything is founded"),
    Accepted(
        "swarm leave --force",
        r"^engine: (Node left|exit 0)|^mesh: (stderr: .*not part of a swarm|exit 1)",
        "a refused init leaves no swarm behind",
    ),
    Accepted(
        "address}:noport", "docker swarm join --token", "a port that is none is replaced by the usual one, instead of being advertised"
    ),
    Accepted(
        r"advertise-addr 203\.0\.113\.77",
        "is not an address of this node|exit|Swarm initialized|To add a|docker swarm join",
        "etcd listens where it is advertised, so the address must be the node's own",
    ),
    Accepted(
        "json .Swarm|inspect_swarm|GET /swarm$|^info$|GET /info",
        "DefaultAddrPool|Default Address Pool",
        "the pool in use is shown, also the default",
    ),
    Accepted(
        "json .Swarm|inspect_swarm|GET /swarm$|^info$|GET /info",
        "SubnetSize",
        "subnets are /20 unless a pool is given: 250 addresses are too few",
    ),
    Accepted("filter membership=(accepted|pending)", "<node", "the Engine makes a node pending when its labels or availability change"),
    Accepted("@node-2 info.*RemoteManagers", "RemoteManagers|NodeID", "a worker remembers its managers by their addresses"),
    Accepted("@node-2 network ls --filter scope=swarm", "^engine: ingress$", "the Engine shows its local copy"),
    # ---- networks ------------------------------------------------------------------------------------------------------------
    Accepted(
        "inspect|services.get|GET /networks/x",
        r"""(Gateway|Subnet|Addr|IPv4Address|EndpointIP|VIP)(\\?"?: )?\\?"10\.0\.\d+\.\d+""",
        "other subnets: /20, and therefore every sixteenth /24",
    ),
    Accepted("network inspect|GET /networks/x", "mesh: .*EnableIPv4: true", "shown since API 1.48; the Engine is older"),
    Accepted("network inspect ov4", "AuxiliaryAddresses", "auxiliary addresses are honoured; the Engine forgets them on overlays"),
    Accepted(
        "network inspect (-v )?(ingress|ov1)",
        r"Peers\[\d\]|Containers\.(ingress-sbox|lb-ov1)|ov1-endpoint",
        "balancers are no containers, nodes no gossip peers here",
    ),
    Accepted(
        "network inspect (-v )?(ingress|ov1)", r"Labels: (\{\}|null)$", "the Engine shows its local copy, which has an empty map of labels"
    ),
    Accepted("network inspect ingress", r"mesh: .*Containers: null", "no task is attached; the Engine lists its balancer"),
    Accepted(
        "network create -d overlay ''$", "invalid name:|already exists", "the Engine looks for what is called so and finds any network"
    ),
    Accepted(
        "--subnet 10.55.0.128/25 over-lap|network rm over-lap",
        _REFUSED,
        "overlapping subnets are refused; the Engine makes a network that never works",
    ),
    Accepted(r"--subnet (10\.57\.0\.0/99|nonsense) bad", "nvalid subnet", "worded as newer Engines do"),
    Accepted("-d macvlan m-v|network rm m-v", _REFUSED, "cluster-wide networks are overlays"),
    Accepted("--scope nonsense|network rm o-d", _REFUSED, "the Engine takes any scope but local for swarm"),
    Accepted("--config-from no-such|network rm c-f", _REFUSED, "no configuration networks; this Engine doesn't look whether there is one"),
    Accepted(
        r"network ls --filter name=(ov|v2) ", "^mesh: ov", "part of a name matches, as documented; the Engine wants overlays' whole names"
    ),
    # ---- secrets and configs -------------------------------------------------------------------------------------------------
    Accepted("template-driver no-such|rm [sc]-t$", _REFUSED, "an unknown template driver is refused at once, not when a task starts"),
    # ---- services ------------------------------------------------------------------------------------------------------------
    Accepted(
        "constraint-add", "code = (Unknown|InvalidArgument) desc = constraint expected", "a bad constraint is the client's fault: 400"
    ),
    Accepted(
        "spread=nonsense|source=relative|rollback-failure-action rollback|stop-grace-period=-1s|n-9 |n-9$|n-17",
        _REFUSED,
        "what can never work is refused at once, not when tasks fail",
    ),
    Accepted("isolation hyperv|credential-spec|rm n-21", _REFUSED, "Windows' only"),
    Accepted("Upper/case", "Upper/case|soft|exit", "a registry's name may have capitals: newer Engines agree"),
    Accepted("n-2 |n-2$", _REFUSED, "services are on overlays or on the node's own network, not on its bridge"),
    Accepted("inspect web", r"Endpoint\.Spec", "an endpoint whose ports and networks are gone is empty; the Engine shows its last mode"),
    Accepted("inspect web", r"PreviousSpec.TaskTemplate.LogDriver", "an update that changes nothing is none: the previous spec stays"),
    # ---- tasks ---------------------------------------------------------------------------------------------------------------
    Accepted("service ps .*(there|spread)", "no suitable node", "says which constraint, and how many nodes have as many as they may"),
    Accepted("ps toobig", "insufficient resources", "says what is lacking"),
    Accepted(
        "ps done|node ps|name=done", r"(done-\d|<id>)\.(<id>|2)", "slots of jobs begin at 1: Engines before 25 name slot 0 by its node"
    ),
    # ---- the machine's -------------------------------------------------------------------------------------------------------
    Accepted("^version$", "API version|Server:|meshd|Version: +0", "its own API, its own version"),
    Accepted("^info$|GET /info", "Labels|meshd", "versions and balancer are told as labels"),
    Accepted("^info$|GET /info", "[Ll]ive ?[Rr]estore", "needed beside meshd, impossible in swarm mode"),
    Accepted("^info$|GET /info", r"WARNING|IPv4 ?[Ff]orwarding|Warnings: null", "the machine's: forwarding, ip_vs", varies=True),
    Accepted(
        "^info$|GET /info",
        r"^mesh: ( +(Nodes|<node>|Status|Containers|CPUs|Memory|Server Version): |\.DriverStatus)",
        "the cluster's nodes are told where classic Swarm told them",
    ),
    Accepted("volume inspect vol1", "Labels", "a label says on which node it is"),
    Accepted("network connect no-such no-such", "no-such", "the network is looked for before the container, which may be on any node"),
    # ---- requests ------------------------------------------------------------------------------------------------------------
    Accepted("GET /v(9.99|1.0)/", "client version", "another range of versions; always JSON"),
    Accepted(r"filters=(\{bad|\[\]|\{\"name\":(\"x\"|5))", "message", "Go's decoder's words; ours say what was expected"),
    Accepted(
        r" (\{bad|\[\]|\{\"Name\":5\})|create$|ForceUpdate\":-1|Subnet\":5|Data\":(5|\"!)",
        "message",
        "Go's decoder's words; ours say where",
    ),
    Accepted("desired-state|rollback=nonsense|registryAuthFrom=nonsense|since=x", "exit (500|400)|message", "a client's mistake is a 400"),
    Accepted("proto-x", r"^engine: (exit 20[01]|\.ID)|^mesh: (exit (400|404)|\.message)", "no such protocol: the Engine takes it for tcp"),
    Accepted("POST .*/services/create|services/bare/update", r"mesh: \.Warnings: null", "shown since API 1.44; the Engine is older"),
)
