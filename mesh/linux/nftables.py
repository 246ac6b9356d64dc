"""nft tables of the namespace the calling thread is in: structure by the nft tool, elements by nfnetlink.

Edge. Source: nft(8). One script is one transaction: all of it happens or nothing. Every transaction in a namespace, whoever made it,
raises its generation by one: as long as that is the number our own last look or change left, the tables are what they were then, and
need not be read. (No element of ours comes or goes by itself.) A fresh process has seen nothing and reads all.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar, cast

from mesh.errors import KernelError, KernelUnsupported
from mesh.linux import elements
from mesh.linux.netlink import NETLINK_NETFILTER, Netlink
from mesh.nft import MapChange, parse
from mesh.table import NftMap, NftTable

T = TypeVar("T")

_TIMEOUT_S: Final = 60.0
_READ_ATTEMPTS: Final = 5


@dataclass(slots=True)
class _Seen:
    """Of one namespace in this generation: our tables, by family and name, and what else was asked, by a name of its own."""

    generation: int
    tables: dict[tuple[str, str], NftTable | None] = field(default_factory=dict)
    answers: dict[str, object] = field(default_factory=dict)


class Nft:
    """Remembers what was seen, by namespace. Not for use by two threads."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        self._met: set[int] = set()

    def table(self, name: str, family: str = "inet") -> NftTable | None:
        """Our table as the kernel has it, None if there is none."""
        with Netlink(NETLINK_NETFILTER) as netlink:
            cookie, generation = netlink.namespace_cookie, elements.generation(netlink)
            if cookie is not None:
                self._met.add(cookie)
                seen = self._seen.get(cookie)
                if seen is not None and seen.generation == generation and (family, name) in seen.tables:
                    return seen.tables[family, name]
            for _ in range(_READ_ATTEMPTS):
                found = read_table(netlink, name, family)
                before, generation = generation, elements.generation(netlink)
                if before == generation:
                    self._keep(cookie, generation, name, family, found)
                    break
            return found

    def recall(self, question: str, ask: Callable[[], T]) -> T:
        """The answer to a question about the rule set of the namespace, asked again in every generation only."""
        with Netlink(NETLINK_NETFILTER) as netlink:
            cookie, generation = netlink.namespace_cookie, elements.generation(netlink)
        seen = self._seen.get(cookie) if cookie is not None else None
        if seen is not None and seen.generation == generation:
            if question not in seen.answers:
                seen.answers[question] = ask()
            return cast("T", seen.answers[question])
        return ask()

    def load(self, script: str, name: str, family: str, outcome: NftTable | None) -> None:
        """Run the script, which makes the table `outcome`."""
        load(script)
        self._after_change(name, family, outcome)

    def change(self, changes: Iterable[MapChange], name: str, family: str, outcome: NftTable) -> None:
        elements.change(family, name, changes)
        self._after_change(name, family, outcome)

    def _after_change(self, name: str, family: str, outcome: NftTable | None) -> None:
        with Netlink(NETLINK_NETFILTER) as netlink:
            cookie, generation = netlink.namespace_cookie, elements.generation(netlink)
        seen = self._seen.get(cookie) if cookie is not None else None
        # more than one step: somebody else changed something, too
        if seen is not None and generation == seen.generation + 1:
            seen.generation = generation
            seen.tables[family, name] = outcome
            seen.answers.clear()

    def _keep(self, cookie: int | None, generation: int, name: str, family: str, found: NftTable | None) -> None:
        if cookie is None:
            return
        seen = self._seen.get(cookie)
        if seen is None or seen.generation != generation:
            seen = self._seen[cookie] = _Seen(generation)
        seen.tables[family, name] = found

    def forget_unmet(self) -> None:
        """Drop what was seen in namespaces that no `table` was asked of since the last call: they are gone."""
        self._seen = {cookie: seen for cookie, seen in self._seen.items() if cookie in self._met}
        self._met = set()


def load(script: str) -> None:
    done = _nft(["-f", "-"], script)
    if done.returncode:
        raise KernelError("load nft rules", 0, _first_line(done.stderr))


def read_table(netlink: Netlink, name: str, family: str) -> NftTable | None:
    """From the kernel, whatever was seen before."""
    done = _nft(["-j", "-n", "-t", "list", "table", family, name], None)
    if done.returncode:
        if "No such file or directory" in done.stderr:
            return None
        raise KernelError(f"read nft table {name}", 0, _first_line(done.stderr))
    table = replace(parse(done.stdout, name, family), dormant=elements.is_dormant(netlink, family, name))
    if not all(m.value_type and elements.supported(m.key_type, m.value_type) for m in table.maps.values()):
        # somebody's set or map in our table: the tool knows every type
        return parse(_nft(["-j", "-n", "list", "table", family, name], None).stdout, name, family)
    maps = {
        n: NftMap(m.key_type, m.value_type, elements.read(netlink, family, name, n, m.key_type, m.value_type))
        for n, m in table.maps.items()
    }
    return replace(table, maps=maps)


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
