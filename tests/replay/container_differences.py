"""What a cluster says otherwise than one Engine does about containers, images, volumes and an Engine's networks, and why that is meant.

Pure: data, read as `differences.ACCEPTED` is.
"""

from __future__ import annotations

from tests.replay.differences import Accepted

_INSPECTS = r"inspect|GET \S*/json|list\("

ACCEPTED: tuple[Accepted, ...] = (
    # ---- the node is shown ---------------------------------------------------------------------------------------------------
    Accepted(_INSPECTS, r"^mesh: .*\.Node\.", "classic Swarm's object says on which node a container is"),
    Accepted(
        "no-trunc|/containers/json", r"<node(-\d)?>/|^engine: .*(full|one)$", "a second name, with the node, shown when asked for all"
    ),
    Accepted(
        r"inspect alfa vol|volume (inspect|ls)|GET \S*/(volumes|networks|json|df)|format '?(table|\{\{json)|volumes\.get",
        r"Labels(: (null|\{\})|\.com\.meshd\.node)|com\.meshd\.node=|^engine: (full|v1) .*(c=|N/A)$",
        "a label says where it is",
    ),
    Accepted(
        "^info|docker info|GET .*/info",
        "DriverStatus|WARNING|Warnings|balancer|Labels|Swarm|NEventsListener",
        "the cluster and its nodes are told of",
    ),
    Accepted(
        "^info|docker info|GET .*/info|system df|GET .*/df",
        r"Images|Volumes|kept|LayersSize|NCPU|MemTotal|^(engine|mesh): \d \d \d \d \d",
        "each node's are counted",
    ),
    Accepted("^events|docker events", r"^mesh: (create|destroy|tag|untag|volume|image)", "what all nodes do, each of them tells of"),
    Accepted("^network ls|GET /networks\\?", "^mesh: (ingress|<id>)", "the cluster's own network"),
    Accepted("inspect", r"IPAddress: ", "each node's bridge begins at the same address"),
    # ---- errors --------------------------------------------------------------------------------------------------------------
    Accepted("(filters|until|since|limit)=nonsense", "message|exit (400|500)", "Go's decoder's words; a client's mistake is a 400"),
    Accepted(r'(create|connect) (\{bad|\{"Name":5)', "message", "Go's decoder's words; ours say where"),
    Accepted("connect no-such no-such", "no-such", "the network is looked for before the container, which may be on any node"),
    Accepted(
        "run --rm --(link|volumes-from|network) (container:)?no-such",
        "No such container|invalid mode|--help",
        "the first that is looked for is on which node a container is",
    ),
    Accepted(
        "(--platform |platform=)(nonsense|windows)",
        "no suitable node|does not match|message|exit (400|404|409)",
        "no node is such a machine",
    ),
    Accepted("docker load < /dev/null", "docker-import", "each node's own words, with a path of its own"),
    Accepted("volume create -d local 'v/6'", "v/6|node v not found", "a volume's name may begin with its node's"),
    Accepted("run ", "error waiting for container: context canceled", "the CLI's own race with itself, until 23", varies=True),
    # ---- versions ------------------------------------------------------------------------------------------------------------
    Accepted(
        r"GET (/v1.24)?/version|v1.(99|11|23)/",
        "Version|meshd|Components|Platform|client version|message|exit",
        "its own API, of its own versions",
    ),
    Accepted("mac-address|annotation", "API version|exit|Run 'docker", "1.50 is announced; the Engine speaks 1.41"),
    Accepted("GET .*images/json", r"RepoDigests(\[|:)", "a list, as of newer Engines"),
)
