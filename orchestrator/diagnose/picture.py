"""A trace as people read it: who was asked, what the tables say, and for each way the probes took one line a namespace.

Pure: a report in, lines of rich markup out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mesh.trace.model import HOST, NETWORK, Packet
from mesh.trace.path import Hop, Path
from orchestrator.diagnose.report import TraceReport

_STYLE = {"answered": "green", "delivered": "green", "refused": "red", "lost": "red"}


def picture(report: TraceReport) -> RenderableType:
    lines: list[RenderableType] = [Text.from_markup(_asked(report)), Text.from_markup(_tables(report))]
    lines += [Text.from_markup(f"[yellow]!![/] {escape(problem)}") for problem in report.problems]
    for _, same in groupby(sorted(report.paths, key=_kind), key=_kind):
        lines += _way(report, list(same))
    return Group(*lines)


def _asked(report: TraceReport) -> str:
    port = f" port {report.port}/{report.protocol}" if report.port else f" {report.protocol}"
    what = f"[bold]{escape(report.service)}[/]: " if report.service else ""
    kind = f"{report.kind} " if report.kind not in ("", "unknown", "address", "published port", "host port") else ""
    client = _place(report, report.client_node, report.client_place)
    at = f" of {report.nodes[report.entry]}" if report.kind in ("published port", "host port") else f" on network {report.network}"
    return f"{what}{kind}{report.destination}{port}{escape(at)}, asked from {escape(client)} ({report.source})"


def _tables(report: TraceReport) -> str:
    entry = report.nodes[report.entry]
    balancer = report.balancers.get(report.entry, "")
    if not report.expected:
        return f"[dim]{escape(entry)}'s tables lead to no backend[/]" if report.kind else "[dim]answered by the node itself[/]"
    ways = []
    for route in report.expected:
        name = report.names.get(route.endpoint.partition("-")[0], route.address or route.endpoint)
        where = report.nodes.get(route.node, "an unknown node")
        ways.append(f"{name} on {where}" + (f" through {route.vtep}" if route.vtep else ""))
    with_balancer = f" ({balancer})" if balancer and report.kind in ("VIP", "published port") else ""
    return f"[dim]{escape(entry)}'s tables{with_balancer} lead to {escape('; '.join(ways))}[/]"


def _kind(path: Path) -> tuple[str, str, str, str]:
    return path.outcome, path.backend_node, path.backend, path.verdict


def _way(report: TraceReport, paths: Sequence[Path]) -> Iterable[RenderableType]:
    """All of `paths` came to the same end; the first is shown."""
    path = paths[0]
    numbers = ", ".join(str(p.number + 1) for p in paths)
    probes = "probe" if len(paths) == 1 else "probes"
    yield Text.from_markup(f"\n[bold]{probes} {numbers}:[/] [{_STYLE[path.outcome]}]{escape(path.verdict)}[/]")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(5):
        table.add_column(no_wrap=True)
    for arrow, hops in (("→", path.there), ("←", path.back)):
        for index, group in enumerate(_by_place(hops)):
            first = f"[cyan]{arrow}[/] " + (group[0].sighting.packet.kind if index == 0 else "")
            node, place = group[0].node, group[0].sighting.place
            where = {HOST: "underlay" if any(h.sighting.packet.capsule for h in group) else "host", NETWORK: report.network}.get(
                place, report.names.get(place.removeprefix("task:"), place)
            )
            table.add_row(first, escape(report.nodes[node]), escape(where), escape(_links(group, report.links)), escape(_addresses(group)))
    yield table
    if path.advice:
        yield Text.from_markup(f"[yellow]?[/]  {escape(path.advice)}")
    for surprise in path.surprises:
        yield Text.from_markup(f"[yellow]!![/] {escape(surprise)}")


def _by_place(hops: Sequence[Hop]) -> list[list[Hop]]:
    def key(hop: Hop) -> tuple[str, str, bool]:
        # what is in a capsule and what is not are two layers of the same namespace
        return hop.node, hop.sighting.place, hop.sighting.packet.capsule is not None

    return [list(group) for _, group in groupby(hops, key=key)]


def _links(group: Sequence[Hop], behind: Mapping[str, str]) -> str:
    """In the order the packet passed them; the port of a task by the task's name."""
    links = [f"to {behind[link]}" if link in behind else link for link, _ in groupby(hop.sighting.link for hop in group)]
    return " > ".join(links)


def _addresses(group: Sequence[Hop]) -> str:
    capsule = group[0].sighting.packet.capsule
    if capsule is not None:
        return f"VXLAN {capsule.vni}: {capsule.source} > {capsule.destination}"
    first, last = group[0].sighting.packet, group[-1].sighting.packet
    shown = _flow(first)
    return shown if _flow(last) == shown else f"{shown}, becomes {_flow(last)}"


def _flow(packet: Packet) -> str:
    return f"{_end(packet.source, packet.source_port)} > {_end(packet.destination, packet.destination_port)}"


def _end(address: str, port: int) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _place(report: TraceReport, node: str, place: str) -> str:
    if place == HOST:
        return report.nodes[node]
    return f"{report.names.get(place.removeprefix('task:'), place)} on {report.nodes[node]}"
