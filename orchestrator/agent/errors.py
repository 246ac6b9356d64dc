"""Errors of the agent, named for what its loop does next.

Pure.
"""

from __future__ import annotations

from orchestrator.errors import MeshdError


class EngineUnavailable(MeshdError):
    """The Engine doesn't answer: nothing is known, nothing is concluded; ask again later."""


class NetworkUnavailable(MeshdError):
    """The data plane or dnsd doesn't take a state just now: keep what is there, try again."""
