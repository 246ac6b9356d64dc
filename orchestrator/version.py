"""The version of meshd. Pure: read from the installed package."""

from __future__ import annotations

from importlib.metadata import version

VERSION = version("meshd")
