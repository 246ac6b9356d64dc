"""Run the nft tool in the namespace the calling thread is in.

Edge. Source: nft(8). One script is one transaction: all of it happens or nothing.
"""

from __future__ import annotations

import subprocess
from typing import Final

from mesh.errors import KernelError, KernelUnsupported
from mesh.nft import parse
from mesh.table import NftTable

_TIMEOUT_S: Final = 60.0


def load(script: str) -> None:
    done = _nft(["-f", "-"], script)
    if done.returncode:
        raise KernelError("load nft rules", 0, _first_line(done.stderr))


def table(name: str, family: str = "inet") -> NftTable | None:
    """Our table as the kernel has it, None if there is none."""
    done = _nft(["-j", "-n", "list", "table", family, name], None)
    if done.returncode:
        if "No such file or directory" in done.stderr:
            return None
        raise KernelError(f"read nft table {name}", 0, _first_line(done.stderr))
    return parse(done.stdout, name, family)


def has_chain(family: str, table_name: str, chain: str) -> bool:
    return _nft(["list", "chain", family, table_name, chain], None).returncode == 0


def _nft(arguments: list[str], script: str | None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["nft", *arguments],
            input=script,
            stdin=subprocess.DEVNULL if script is None else None,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise KernelUnsupported("run nft", error.errno or 0, "the nft tool is missing: install the package nftables") from error
    except subprocess.TimeoutExpired as error:
        raise KernelError("run nft", 0, f"no answer within {_TIMEOUT_S:.0f} s") from error


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["nft failed without a word"])[0]
