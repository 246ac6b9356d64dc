"""How many tasks go where: seats dealt out to nodes by a strategy, below a tree of placement preferences.

Pure: arrays in, arrays out. What a heap does task by task (the branch, then the node, with the fewest tasks of the service so far) is
done here level by level: all branches fill like vessels with water, so the cost depends on the number of nodes, not of tasks. The order in
which seats come out is the order in which the heap would have dealt them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from orchestrator.control.columns import Branches, Ints
from orchestrator.control.placement_labels import Strategy

_NO_BRANCHES: Sequence[Branches] = ()


@dataclass(frozen=True, slots=True)
class Candidates:
    """The nodes that can take a group's tasks, and what strategies look at; arrays in the order of `nodes`.

    nodes: their indexes, ascending. room: how many tasks each can take. replicas: tasks of the service it has. active: tasks it has at
    all. fullness: how full it would be with one more. all_replicas: of every node of the cluster, for the branches' counts.
    """

    nodes: Ints
    room: Ints
    replicas: Ints
    active: Ints
    fullness: Ints
    all_replicas: Ints


def fill(count: int, candidates: Candidates, strategy: Strategy, tree: Sequence[Branches] = _NO_BRANCHES, seed: int = 0) -> Ints:
    """The nodes of up to `count` tasks, in the order in which tasks take them; shorter if there is no more room."""
    count = min(count, int(candidates.room.sum()))
    if count <= 0:
        return np.zeros(0, dtype=np.int64)
    room = np.minimum(candidates.room, count)
    seats_of_branch = np.array([count], dtype=np.int64)
    counts: list[Ints] = []
    for branches in tree:
        had = _summed(branches.of_node, candidates.all_replicas, len(branches))
        branch_room = np.minimum(_summed(branches.of_node[candidates.nodes], room, len(branches)), count)
        seats_of_branch = level(seats_of_branch, branches.parent, had, branch_room, had)
        counts.append(had)
    branch = tree[-1].of_node[candidates.nodes] if tree else np.zeros(len(candidates.nodes), dtype=np.int64)
    if strategy == "spread":
        node, place = _spread(seats_of_branch, branch, room, candidates)
    elif strategy == "binpack":
        node, place = _binpack(seats_of_branch, branch, room, candidates)
    else:
        node, place = _random(seats_of_branch, branch, room, seed)
    # from the leaves up: each branch's seats are merged with its siblings' by the count that the branch has reached
    seat_branch = branch[node]
    for branches, had in zip(reversed(tree), reversed(counts), strict=True):
        parent = branches.parent[seat_branch]
        order = np.lexsort((seat_branch, had[seat_branch] + place, parent))
        place = np.empty_like(place)
        place[order] = _ranks(parent[order])
        seat_branch = parent
    seats = np.empty(count, dtype=np.int64)
    seats[place] = candidates.nodes[node]
    return seats


def level(amounts: Ints, group: Ints, counts: Ints, room: Ints, ties: Ints) -> Ints:
    """What each member gets when every group's amount is dealt out one by one, always to the member with the smallest count (then
    `ties` + what it got, then the first) that has room. The room must suffice."""
    groups = len(amounts)

    def given(levels: Ints) -> Ints:
        return cast(Ints, np.minimum(np.maximum(levels[group] - counts, 0), room))

    # gallop, then halve: the highest level whose filling doesn't take more than the amount
    low = np.full(groups, counts.min(), dtype=np.int64)
    top = np.maximum(int((counts + room).max()), low + amounts) + 1
    step, high = 1, low + 1
    rising = _summed(group, given(high), groups) <= amounts
    while rising.any():
        low = np.where(rising, high, low)
        step *= 2
        high = np.where(rising, np.minimum(high + step, top), high)
        rising &= (high < top) & (_summed(group, given(high), groups) <= amounts)
    while (gap := high - low > 1).any():
        middle = (low + high) // 2
        fits = gap & (_summed(group, given(middle), groups) <= amounts)
        low, high = np.where(fits, middle, low), np.where(gap & ~fits, middle, high)
    got = given(low) if (low > counts.min()).any() else np.zeros(len(counts), dtype=np.int64)
    rest = amounts - _summed(group, got, groups)
    if rest.any():
        at_level = np.flatnonzero((counts + got == low[group]) & (got < room) & (rest[group] > 0))
        tie = ties[at_level] + got[at_level]
        tie -= tie.min()
        # one number to sort by holds group, tie and place: sorting numbers is many times faster than sorting by three keys
        numbers = np.sort((group[at_level] * (int(tie.max()) + 1) + tie) * len(counts) + at_level)
        chosen = numbers % len(counts)
        got[chosen[_ranks(group[chosen]) < rest[group[chosen]]]] += 1
    return got


def _spread(seats_of_branch: Ints, branch: Ints, room: Ints, candidates: Candidates) -> tuple[Ints, Ints]:
    """(node of each seat as an index into the candidates, the seat's place within its branch)."""
    got = level(seats_of_branch, branch, candidates.replicas, room, candidates.active)
    node, nth = _seats(got)
    order = np.lexsort((node, candidates.active[node] + nth, candidates.replicas[node] + nth, branch[node]))
    return _placed(node, order, branch)


def _binpack(seats_of_branch: Ints, branch: Ints, room: Ints, candidates: Candidates) -> tuple[Ints, Ints]:
    """The fullest node until it is full, then the next: a task that it gets makes it only fuller."""
    order = np.lexsort((-candidates.active, -candidates.fullness, branch))
    sorted_room = room[order]
    before = np.cumsum(sorted_room) - sorted_room
    first = np.searchsorted(branch[order], np.arange(len(seats_of_branch)))
    base = before[np.minimum(first, len(before) - 1)]
    got = np.clip(seats_of_branch[branch[order]] - (before - base[branch[order]]), 0, sorted_room)
    node = np.repeat(order, got)
    return node, _ranks(branch[node])


def _random(seats_of_branch: Ints, branch: Ints, room: Ints, seed: int) -> tuple[Ints, Ints]:
    """Every seat on any node of its branch that has room, with equal chances."""
    generator = np.random.default_rng(seed)
    seat_branch = np.repeat(np.arange(len(seats_of_branch)), seats_of_branch)
    node = np.full(len(seat_branch), -1, dtype=np.int64)
    left = room.copy()
    while len(open_seats := np.flatnonzero(node < 0)):
        usable = np.flatnonzero(left > 0)
        usable = usable[np.argsort(branch[usable], kind="stable")]
        first = np.searchsorted(branch[usable], np.arange(len(seats_of_branch)))
        size = np.bincount(branch[usable], minlength=len(seats_of_branch))
        wanted = seat_branch[open_seats]
        picked = usable[first[wanted] + (generator.random(len(open_seats)) * size[wanted]).astype(np.int64)]
        # of several seats that picked one node, the first ones get it; the others pick again
        order = np.argsort(picked, kind="stable")
        accepted = order[_ranks(picked[order]) < left[picked[order]]]
        node[open_seats[accepted]] = picked[accepted]
        left -= np.bincount(picked[accepted], minlength=len(left))
    return node, _ranks(seat_branch)


def _seats(got: Ints) -> tuple[Ints, Ints]:
    """(member, its how many-th) for each of the seats that the members got."""
    member = np.repeat(np.arange(len(got)), got)
    first = np.cumsum(got) - got
    return member, np.arange(len(member)) - first[member]


def _placed(node: Ints, order: Ints, branch: Ints) -> tuple[Ints, Ints]:
    node = node[order]
    return node, _ranks(branch[node])


def _ranks(groups: Ints) -> Ints:
    """0, 1, 2, ... within each run of equal values."""
    positions = np.arange(len(groups))
    if len(groups) == 0:
        return positions
    starts = np.concatenate(([0], np.flatnonzero(groups[1:] != groups[:-1]) + 1))
    lengths = np.diff(np.concatenate((starts, [len(groups)])))
    return cast(Ints, positions - np.repeat(starts, lengths))


def _summed(group: Ints, values: Ints, groups: int) -> Ints:
    if groups == 1:
        return np.array([values.sum()], dtype=np.int64)
    return np.bincount(group, weights=values, minlength=groups).astype(np.int64)
