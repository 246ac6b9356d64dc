"""Follow a packet through the data plane: probes, the captures that see them on every link they pass, and the path they took.

`model` says what a probe and a sighting are, `packets` (scapy) writes and reads them, `filter` keeps other traffic out of the captures,
`expect` says where a packet should go, `path` where it went and why it came no further; `python -m mesh.trace` is the process that sends
and captures. Pure but for that one.
"""

from __future__ import annotations
