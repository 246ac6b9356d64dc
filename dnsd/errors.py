"""Errors of dnsd, named for the caller's next move.

Pure. The text of each is a sentence for the operator.
"""

from __future__ import annotations


class DnsError(Exception):
    """Base of everything dnsd raises on purpose."""


class ConfigError(DnsError):
    """Bad input or environment: tell the operator (exit 2)."""


class WireError(DnsError):
    """A packet that isn't DNS: answer FORMERR, or drop it."""


class RemoteProtocolError(DnsError):
    """The other side of the control socket broke the protocol: drop the connection."""


class DnsUnavailable(DnsError):
    """No dnsd answers on the control socket: try again later. Whether the last request was applied is unknown."""
