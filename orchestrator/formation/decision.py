"""Who begins the cluster, and who waits for whom: so that machines that were all told the same become one cluster, never two.

Pure. The first of the peers founds it, once every other peer has promised to follow this very machine. A promise is on disk before it
is said and is kept until the machine is in a cluster, whatever becomes of its process; it binds hand-made inits and joins, too. Whoever
is in a cluster says so to all who ask, and they join. So a second cluster would need a founder whom a peer follows that is in the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
from msgspec.structs import replace

from orchestrator.formation.order import Order

RECORD_FILE = "formation.json"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What outlives the process. machine: drawn once, so one that lost its disk is another. follows: the machine, at the address `founder`,
    whose cluster this one waits for. cluster: the one it came into; from then on it does nothing of its own accord."""

    machine: str
    follows: str = ""
    founder: str = ""
    cluster: str = ""

    @property
    def promised(self) -> bool:
        return bool(self.follows) and not self.cluster


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """own: which of the peers asks, "" = none. plan: its Order's digest. founds: it would found the cluster; follow it?"""

    machine: str
    own: str
    plan: str
    founds: bool


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """follows: the machine this one has promised to. cluster, managers: where it is a member; token: to join with, from managers only.
    refusal: why it doesn't follow."""

    follows: str = ""
    cluster: str = ""
    managers: tuple[str, ...] = ()
    token: str = ""
    refusal: str = ""

    def __repr__(self) -> str:
        return f"Answer(follows={self.follows!r}, cluster={self.cluster!r}, managers={self.managers!r}, refusal={self.refusal!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Membership:
    """Of a cluster. tokens: by role, on managers only; they are why there is no `repr`."""

    cluster: str
    managers: tuple[str, ...] = ()
    tokens: Mapping[Literal["worker", "manager"], str] | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """This node. own: which of the peers it is, "" = none. busy: an init or join by hand is under way."""

    record: Record
    order: Order
    own: str
    member: Membership | None = None
    busy: bool = False

    @property
    def question(self) -> Question:
        founds = bool(self.own) and self.own == self.order.founder
        return Question(machine=self.record.machine, own=self.own, plan=self.order.digest, founds=founds)


@dataclass(frozen=True, slots=True)
class Found:
    """Begin the cluster."""


@dataclass(frozen=True, slots=True)
class Join:
    managers: tuple[str, ...]
    token: str


@dataclass(frozen=True, slots=True)
class Wait:
    """why: a sentence, for the log and `docker info`."""

    why: str


Step = Found | Join | Wait


def answer(me: Standing, question: Question) -> tuple[Record, Answer]:
    """What is said, and the record that has to be on disk before it is."""
    record, order = me.record, me.order
    if me.member is not None:
        role: Literal["worker", "manager"] = "manager" if question.own in order.peers else "worker"
        token = me.member.tokens[role] if me.member.tokens else ""
        return record, Answer(cluster=me.member.cluster, managers=me.member.managers, token=token)
    if record.cluster:
        return record, Answer(refusal="it was in a cluster and left it")
    if not question.founds:
        return record, Answer(follows=record.follows)
    if question.plan != order.digest or question.own != order.founder:
        return record, Answer(refusal="its --bootstrap-expect and --retry-join are not the same")
    if me.busy:
        return record, Answer(refusal="it is being initialized or joined by hand")
    if record.follows not in ("", question.machine):
        return record, Answer(
            refusal=f"it waits for the machine that was {question.own} before: if that has no cluster, {forget(question.own)}"
        )
    return replace(record, follows=question.machine, founder=question.own), Answer(follows=question.machine)


def decide(me: Standing, answers: Mapping[str, Answer | str]) -> Step:
    """What to do next, not being a member. answers: by endpoint; text: why there was none."""
    given = {endpoint: said for endpoint, said in sorted(answers.items()) if isinstance(said, Answer)}
    clusters = {said.cluster: endpoint for endpoint, said in given.items() if said.cluster}
    if len(clusters) > 1:
        named = ", ".join(f"{endpoint} is in {cluster}" for cluster, endpoint in sorted(clusters.items()))
        return Wait(f"there is more than one cluster, none is joined: {named}")
    tokens = [(endpoint, said) for endpoint, said in given.items() if said.token]
    if tokens:
        endpoint, said = tokens[0]
        return Join((endpoint, *(manager for manager in said.managers if manager != endpoint)), said.token)
    if clusters:
        return Wait("there is a cluster, but none of its managers answers: " + _reasons(me, answers))
    if not me.question.founds:
        who = f"{me.order.founder} begins one when all {me.order.expect} are there" if me.order.expect else "it is waited for"
        return Wait(f"there is no cluster yet, {who}: {_reasons(me, answers)}")
    followers = {endpoint for endpoint, said in given.items() if said.follows == me.record.machine}
    missing = [peer for peer in me.order.peers if peer != me.own and peer not in followers]
    if missing:
        return Wait(f"a cluster begins when all {me.order.expect} are there: {_reasons(me, answers, missing)}")
    return Found()


def managers_to_ask(answers: Mapping[str, Answer | str]) -> tuple[str, ...]:
    """Members were found, but no manager: these."""
    given = [said for said in answers.values() if isinstance(said, Answer) and said.cluster]
    if any(said.token for said in given):
        return ()
    return tuple(sorted({manager for said in given for manager in said.managers} - answers.keys()))


def promise_kept(record: Record) -> str:
    """Why this node can't be initialized or joined by hand; "" = it can."""
    if not record.promised:
        return ""
    return f"this node has promised to join the cluster that {record.founder} founds; if that is never to be, {forget(record.founder)}"


def forget(founder: str) -> str:
    return f"stop meshd on the machines that wait for {founder}, remove {RECORD_FILE} from their state directories and start it again"


def _reasons(me: Standing, answers: Mapping[str, Answer | str], of: list[str] | None = None) -> str:
    asked = of if of is not None else sorted(answers)
    texts = []
    for endpoint in asked:
        said = answers.get(endpoint, "not asked yet")
        texts.append(f"{endpoint}: {said if isinstance(said, str) else said.refusal or 'waits, too'}")
    return "; ".join(texts) or "no other machine is named"
