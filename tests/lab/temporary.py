"""Labs that tests make for themselves.

Edge: a directory, and whatever was started in the lab; all of it is gone in the end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.lab import processes
from orchestrator.lab.lab import Lab
from orchestrator.lab.layout import NodeLayout

SUBNET = "198.51.100.0/24"


@contextmanager
def temporary_lab(
    name: str, *, daemon_options: Sequence[str] = (), environment: Callable[[NodeLayout], Mapping[str, str]] = lambda node: {}
) -> Iterator[Lab]:
    """Not up yet."""
    # pytest's own temporary directories have too long names for sockets
    with tempfile.TemporaryDirectory(prefix="lab-") as directory:
        lab = Lab(Path(directory) / name, SUBNET, daemon_options=daemon_options, environment=environment)
        try:
            yield lab
        finally:
            lab.down()
            assert processes.marked(lab.layout.marker) == []
