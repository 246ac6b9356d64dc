"""A run as one picture: when what went wrong on which node, who led, how many writes were acknowledged, which requests failed.

Pure: returns an SVG file's text that stands alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

_LEFT, _WIDTH, _LANE, _GAP = 96, 1400, 26, 6
_COLOURS = {
    "kill": "#d62728", "stop": "#ff7f0e", "no_quorum": "#8c564b", "full_disk": "#9467bd", "slow_fsync": "#c5b0d5", "clock": "#17becf",
    "partition": "#1f77b4", "one_way": "#6baed6", "loss": "#7fbf7b", "slow_link": "#b8d8a0", "power": "#222222",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that lasted, on a node's lane; an equal start and end: a moment."""

    lane: str
    start_s: float
    end_s: float
    kind: str
    text: str


@dataclass(slots=True)
class Story:
    """Times in seconds since the beginning. leaders: (since, node). failures: (when, what); writes: when each was acknowledged.
    healed_s, converged_s: None if it never came to that."""

    title: str
    nodes: Sequence[str]
    duration_s: float
    bars: list[Bar] = field(default_factory=list)
    leaders: list[tuple[float, str]] = field(default_factory=list)
    writes: list[float] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)
    calm_until_s: float = 0.0
    healed_s: float | None = None
    converged_s: float | None = None
    summary: Sequence[str] = ()


def svg(story: Story) -> str:
    scale = _WIDTH / max(story.duration_s, 1.0)
    tops = {node: 70 + i * (_LANE + _GAP) for i, node in enumerate(story.nodes)}
    bottom = 70 + len(tops) * (_LANE + _GAP)
    parts: list[str] = []

    def x(seconds: float) -> float:
        return _LEFT + seconds * scale

    def rect(start_s: float, end_s: float, top: float, height: float, colour: str, text: str, opacity: float = 1.0) -> None:
        width = max((end_s - start_s) * scale, 2.5)
        parts.append(
            f'<rect x="{x(start_s):.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="1.5" fill="{colour}" '
            f'fill-opacity="{opacity:g}"><title>{escape(text)}</title></rect>'
        )

    def label(left: float, top: float, text: str, *, size: int = 12, anchor: str = "start", colour: str = "#333") -> None:
        parts.append(f'<text x="{left:.1f}" y="{top:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>')

    label(16, 28, story.title, size=18)
    for node, top in tops.items():
        parts.append(f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_LANE}" fill="#f3f3f3"/>')
        label(_LEFT - 8, top + 17, node, anchor="end")
    ends = [*(since for since, _ in story.leaders[1:]), story.duration_s][: len(story.leaders)]
    for (since, node), until in zip(story.leaders, ends, strict=True):
        if node in tops:
            rect(since, until, tops[node], _LANE, "#ffe680", f"{node} leads from {since:.1f} s to {until:.1f} s")
    for bar in story.bars:
        if bar.lane in tops:
            # what goes on at the same time on one node stays visible below what is drawn over it
            row = list(_COLOURS).index(bar.kind) % 4 if bar.kind in _COLOURS else 0
            rect(bar.start_s, bar.end_s, tops[bar.lane] + 2 + row * 5.5, 5.5, _COLOURS.get(bar.kind, "#777"), bar.text)
    top = bottom + 10
    label(_LEFT - 8, top + 34, "writes/s", anchor="end")
    per_second = [0] * (int(story.duration_s) + 1)
    for when in story.writes:
        if 0 <= when <= story.duration_s:
            per_second[int(when)] += 1
    most = max([*per_second, 1])
    for second, count in enumerate(per_second):
        if count:
            height = 44 * count / most
            rect(second, second + 1, top + 44 - height, height, "#2ca02c", f"{count} writes acknowledged in second {second}", 0.8)
    top += 60
    for lane in sorted({what for _, what in story.failures}):
        label(_LEFT - 8, top + 10, f"{lane} failed", anchor="end", colour="#b00")
        for when, what in story.failures:
            if what == lane:
                rect(when, when, top, 12, "#d62728", f"{lane} failed at {when:.1f} s")
        top += 18
    for when, text in ((story.calm_until_s, "network, power, DNS too"), (story.healed_s, "healed"), (story.converged_s, "converged")):
        if when:
            parts.append(f'<line x1="{x(when):.1f}" x2="{x(when):.1f}" y1="58" y2="{top}" stroke="#555" stroke-dasharray="4 3"/>')
            label(x(when) + 3, 62, text, size=11, colour="#555")
    step = next(s for s in (10, 30, 60, 120, 300, 600, 1800) if story.duration_s / s <= 20 or s == 1800)
    for second in range(0, int(story.duration_s) + 1, step):
        label(x(second), top + 16, f"{second} s", size=11, anchor="middle", colour="#777")
    top += 40
    left = float(_LEFT)
    for kind, colour in {"leader": "#ffe680", **_COLOURS}.items():
        parts.append(f'<rect x="{left:.1f}" y="{top - 10}" width="12" height="12" fill="{colour}"/>')
        label(left + 16, top, kind.replace("_", " "))
        left += 34 + 7.2 * len(kind)
    for line in story.summary:
        top += 20
        label(_LEFT, top, line)
    height, width = top + 24, _LEFT + _WIDTH + 24
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0f}" viewBox="0 0 {width} {height:.0f}" '
        f'font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )
