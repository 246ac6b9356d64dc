"""What a dnsd that was killed does first: it reads what it served and opens those sockets again.

Edge. Nothing else of the program is loaded yet, which takes longer than this; what is asked meanwhile waits in the sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from dnsd import state_file
from dnsd.errors import ConfigError
from dnsd.places import Place, places_of
from dnsd.sockets import Opened, Request, open_sockets


class Reopened(msgspec.Struct, frozen=True):
    """loaded: what was served; None: nothing. opened: what could be opened of it."""

    loaded: state_file.Loaded | None = None
    opened: Mapping[Place, Opened] = msgspec.field(default_factory=dict)


def reopen(state_path: Path) -> Reopened:
    loaded = state_file.load(state_path)
    if loaded is None:
        return Reopened()
    opened = {}
    for place, want in places_of(loaded.scopes)[0].items():
        try:
            opened[place] = open_sockets(Request(want.scope.netns, want.listen, loaded.identities.get(want.scope.id, "")))
        except ConfigError:
            # The server tries again, and says why it can't.
            continue
    return Reopened(loaded, opened)
