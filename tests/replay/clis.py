"""The docker CLIs that scenarios are played with.

Edge: unpacks a package of Debian's into a cache.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from tests import debian

# of the package docker.io, whatever else is called docker here
DEBIANS_CLI = Path("/usr/bin/docker")


def clis() -> list[Path]:
    """The one of this Debian; and the newest, if it can be had."""
    try:
        debian.fetch(["docker-cli"])
        return [DEBIANS_CLI, debian.program("docker-cli", "usr/bin/docker")]
    except debian.Missing as error:
        warnings.warn(str(error), stacklevel=2)
        return [DEBIANS_CLI]
