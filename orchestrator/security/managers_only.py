"""Which managers may use this node just now: its Engine, its networks.

Pure, but for `cut`, which ends a connection. A certificate says what a node was when it was issued; who is a manager now, the managers tell
every node over its session. Until they have told, nobody is one: a manager that was demoted while this node was away gets nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from orchestrator.security.peer import Peer

NOT_A_MANAGER = "only managers may use the Engine of a node, or look into its networks"
NOT_TOLD = "this node has not heard yet who its managers are: try again"


class ManagersOnly:
    def __init__(self) -> None:
        self._managers: frozenset[str] | None = None
        self._uses: dict[object, tuple[str, Callable[[], None]]] = {}

    def told(self, managers: tuple[str, ...]) -> None:
        """What others have under way ends."""
        self._managers = frozenset(managers)
        for node_id, cut in [*self._uses.values()]:
            if node_id not in self._managers:
                cut()

    def refusal(self, peer: Peer) -> str:
        """Why not, "" = it may."""
        if peer.role != "manager":
            return NOT_A_MANAGER
        if self._managers is None:
            return NOT_TOLD
        return "" if peer.node_id in self._managers else NOT_A_MANAGER

    @contextlib.contextmanager
    def using(self, peer: Peer, cut: Callable[[], None]) -> Iterator[None]:
        """cut(): called when the peer is no manager any more."""
        use = object()
        self._uses[use] = (peer.node_id, cut)
        try:
            yield
        finally:
            del self._uses[use]
