"""Nodes' attributes as columns: each attribute coded once for all nodes, each condition on it answered for all of them at once.

Pure: no I/O. A condition is asked of the attribute's distinct values only, and its answers are kept as long as no node's attributes
change.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt

from orchestrator.model import Node

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
V = TypeVar("V", bound=Hashable)

# a cluster has few different conditions; a stream of ever new ones must not fill the memory
_MAX_MASKS = 4096


class Columns:
    """Of nodes in a fixed order."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.count = len(nodes)
        self._nodes = nodes
        self._columns: dict[str, tuple[Ints, dict[Hashable, int]]] = {}
        self._masks: dict[Hashable, Mask] = {}
        self._trees: dict[tuple[str, ...], list[Branches]] = {}

    def where(self, condition: Hashable, attribute: str, value_of: Callable[[Node], V], holds: Callable[[V], bool]) -> Mask:
        """The nodes whose attribute satisfies the condition. `condition` names question and attribute; the answer must not be changed."""
        mask = self._masks.get(condition)
        if mask is None:
            codes, values = self._column(attribute, value_of)
            answers = np.fromiter((holds(cast(V, value)) for value in values), dtype=np.bool_, count=len(values))
            mask = answers[codes] if len(values) else np.zeros(self.count, dtype=np.bool_)
            self.keep(condition, mask)
        return mask

    def equal(self, attribute: str, value_of: Callable[[Node], V], value: V) -> Mask:
        """The nodes whose attribute is `value`; as fast for an attribute that is different on every node."""
        mask = self._masks.get((attribute, value))
        if mask is None:
            codes, values = self._column(attribute, value_of)
            code = values.get(value)
            mask = codes == code if code is not None else np.zeros(self.count, dtype=bool)
            self.keep((attribute, value), mask)
        return mask

    def kept(self, condition: Hashable) -> Mask | None:
        return self._masks.get(condition)

    def keep(self, condition: Hashable, mask: Mask) -> None:
        if len(self._masks) >= _MAX_MASKS:
            self._masks.clear()
        self._masks[condition] = mask

    def branches(self, descriptors: Sequence[str], value_of: Callable[[Node, str], str]) -> list[Branches]:
        """The levels of the tree that nested preferences make of the nodes, root's children first."""
        key = tuple(descriptors)
        levels = self._trees.get(key)
        if levels is None:
            levels = []
            parent_of_node = np.zeros(len(self._nodes), dtype=np.int64)
            for descriptor in descriptors:
                values = [value_of(node, descriptor) for node in self._nodes]
                rank = {value: number for number, value in enumerate(sorted(set(values)))}
                ranks = np.array([rank[value] for value in values], dtype=np.int64)
                paths, of_node = np.unique(parent_of_node * max(len(rank), 1) + ranks, return_inverse=True)
                levels.append(Branches(of_node.astype(np.int64), paths // max(len(rank), 1)))
                parent_of_node = levels[-1].of_node
            self._trees[key] = levels
        return levels

    def _column(self, attribute: str, value_of: Callable[[Node], Hashable]) -> tuple[Ints, dict[Hashable, int]]:
        column = self._columns.get(attribute)
        if column is None:
            codes: dict[Hashable, int] = {}
            numbers = (codes.setdefault(value_of(node), len(codes)) for node in self._nodes)
            coded = np.fromiter(numbers, dtype=np.int64, count=self.count)
            column = self._columns[attribute] = (coded, codes)
        return column


class Branches:
    """One level of a preference tree: `of_node` the branch of each node, `parent` the branch above of each branch; in the values' order."""

    __slots__ = ("of_node", "parent")

    def __init__(self, of_node: Ints, parent: Ints) -> None:
        self.of_node = of_node
        self.parent = parent

    def __len__(self) -> int:
        return len(self.parent)
