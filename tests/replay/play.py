"""All scenarios, played against both sides in step, and compared.

A step that only asks is asked again while the answers differ in what is not accepted: work that a cluster's loops have yet to do is no
difference. A step that changes something is played once, but for the Engine's "update out of sequence": its own loops may write between
the CLI's reading and its writing.

Edge: as its players.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.lab.lab import LabError
from tests.replay import differences, normalise
from tests.replay.differences import Accepted
from tests.replay.normalise import Outcome
from tests.replay.players import SORTED, Side
from tests.replay.scenarios import Scenario

_AGAIN_S = 0.2
_AGREE_S = 20.0
# in all: what differs that often is no haste
_PATIENCE_S = 60.0
_OUT_OF_SEQUENCE = "update out of sequence"
_TRIES = 5
_ASKS = re.compile(
    r"(sorted )?(@\S+ )?(\S+ )?(ls|ps|inspect|info|version|df|logs|events|services|join-token(?! --rotate))\b"
    r"|GET |HEAD |py: (\[.*\]|[^=(]*\.(get|list|inspect\w+|nodes|tasks|ping)\(.*\)([.\[].*)?|\w+\.attrs.*)$"
)
_CHANGES = re.compile(r"\.(update|remove|create|scale|force_update|reload)\(")


def only_asks(line: str) -> bool:
    return _ASKS.match(line) is not None and _CHANGES.search(line) is None


@dataclass(frozen=True, slots=True)
class Step:
    """A line of a scenario and what came of it on both sides, as `normalise.lines`. cli: the program it was played with."""

    cli: Path
    line: str
    engine: Sequence[str]
    mesh: Sequence[str]
    accepted: Sequence[Accepted]

    @property
    def differences(self) -> list[tuple[str, str]]:
        return [(self.line, line) for line in differences.between(self.engine, self.mesh)]

    @property
    def unexplained(self) -> list[tuple[str, str]]:
        return differences.unexplained(self.differences, self.accepted)[0]


def complaints(
    engine: Side, mesh: Side, clis: Sequence[Path], order: Sequence[Scenario], accepted: Sequence[Accepted], *, whole: bool = True
) -> list[str]:
    """What differs and isn't accepted, a line each; where the whole is played, also what is accepted and doesn't differ."""
    steps, told = [], []
    try:
        for step in play(engine, mesh, clis, order, accepted):
            steps.append(step)
            told += [f"not accepted: {line}\n    $ {command}" for command, line in step.unexplained]
    except LabError as error:
        told.append(str(error))
    # with one CLI alone not all is met
    if whole and len(clis) > 1 and not told:
        _, stale = differences.unexplained([found for step in steps for found in step.differences], accepted)
        told += [f"accepted, but not met: {entry.commands} | {entry.line}" for entry in stale]
    return told


def play(engine: Side, mesh: Side, clis: Sequence[Path], order: Sequence[Scenario], accepted: Sequence[Accepted]) -> Iterator[Step]:
    """Every scenario with every CLI, one after the other; those that are played once, with the last. LabError: a poll came to nothing."""
    patience_s = _PATIENCE_S
    with ThreadPoolExecutor(2) as pool:
        for scenario in order:
            for cli in clis[-1:] if scenario.once else clis:
                values = {"cli": str(clis.index(cli) + 1)}
                sides = [replace(side, program=str(cli), values={**side.values, **values}) for side in (engine, mesh)]
                for line in scenario.lines():
                    began_s = time.monotonic()
                    step = _step(pool, cli, line, sides, accepted)
                    while step is not None and step.unexplained and only_asks(line):
                        if time.monotonic() - began_s > min(_AGREE_S, patience_s):
                            patience_s -= _AGREE_S
                            break
                        time.sleep(_AGAIN_S)
                        step = _step(pool, cli, line, sides, accepted)
                    if step is not None:
                        yield step


def _step(pool: Executor, cli: Path, line: str, sides: Sequence[Side], accepted: Sequence[Accepted]) -> Step | None:
    """None: nothing to compare."""
    outcomes = pool.map(_outcome, sides, [line] * len(sides))
    told = [normalise.lines(outcome, side.names) for side, outcome in zip(sides, outcomes, strict=True) if outcome is not None]
    if not told:
        return None
    if line.startswith(SORTED):
        told = [sorted(lines) for lines in told]
    return Step(cli, line, *told, accepted)


def _outcome(side: Side, line: str) -> Outcome | None:
    for _ in range(_TRIES):
        outcome = side.play_line(line).outcome
        if outcome is None or side.name != "engine" or _OUT_OF_SEQUENCE not in outcome.stderr + outcome.stdout:
            break
    return outcome
