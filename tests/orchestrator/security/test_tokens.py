from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model import JoinTokens
from orchestrator.security import ca, tokens

from .clusters import CLUSTER_ID, now

ROOT = ca.new_root(CLUSTER_ID, now())
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def test_a_token_names_its_root_and_reads_back() -> None:
    token = tokens.make(ROOT.certificate)
    parsed = tokens.parse(token)
    assert parsed.digest == ca.digest(ROOT.certificate)
    assert token == f"SWMTKN-1-{parsed.digest}-{parsed.secret}"
    assert (len(parsed.digest), len(parsed.secret)) == (50, 25)
    assert parsed.secret not in repr(parsed)


def test_tokens_are_all_different() -> None:
    made = {tokens.make(ROOT.certificate) for _ in range(200)}
    assert len(made) == 200


def test_the_digest_does_not_depend_on_how_the_pem_is_wrapped() -> None:
    body = "".join(ROOT.certificate.split("\n")[1:-2])
    rewrapped = (
        "-----BEGIN CERTIFICATE-----\r\n" + "\r\n".join(body[i : i + 60] for i in range(0, len(body), 60)) + "\r\n-----END CERTIFICATE-----"
    )
    assert rewrapped != ROOT.certificate
    assert ca.digest(rewrapped) == ca.digest(ROOT.certificate)
    assert ca.digest(ca.new_root(CLUSTER_ID, now()).certificate) != ca.digest(ROOT.certificate)


GOOD = tokens.make(ROOT.certificate)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "SWMTKN-1-bad-bad", GOOD + "0", GOOD[:-1], " " + GOOD, GOOD + "\n", GOOD.upper(), GOOD.replace("SWMTKN-1", "SWMTKN-2"),
        GOOD.replace("-", "_"), f"SWMTKN-1-{'z' * 50}-{'0' * 25}", f"SWMTKN-1-{'0' * 50}-{'z' * 25}", f"SWMTKN-1-{'０' * 50}-{'0' * 25}",
    ],
)  # fmt: skip
def test_anything_else_is_dockers_error(text: str) -> None:
    with pytest.raises(tokens.InvalidToken, match=r"^invalid join token$"):
        tokens.parse(text)


@given(st.text() | st.text(alphabet=DIGITS + "-SWMTKN1", max_size=90))
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        parsed = tokens.parse(text)
    except tokens.InvalidToken:
        return
    assert text == f"SWMTKN-1-{parsed.digest}-{parsed.secret}"


@given(st.integers(0, len(GOOD) - 1), st.sampled_from(DIGITS))
def test_one_changed_character_gives_no_role(at: int, digit: str) -> None:
    both = JoinTokens(worker=GOOD, manager=tokens.make(ROOT.certificate))
    changed = GOOD[:at] + digit + GOOD[at + 1 :]
    assert tokens.role_of(changed, both) == ("worker" if changed == GOOD else None)


def test_roles_and_rotation() -> None:
    both = tokens.make_both(ROOT.certificate)
    assert tokens.role_of(both.worker, both) == "worker"
    assert tokens.role_of(both.manager, both) == "manager"
    assert tokens.role_of("", JoinTokens()) is None
    assert tokens.role_of("\udcff", both) is None
    after = tokens.rotated(both, "worker", ROOT.certificate)
    assert tokens.role_of(both.worker, after) is None
    assert tokens.role_of(after.worker, after) == "worker"
    assert after.manager == both.manager
    assert tokens.rotated(both, "manager", ROOT.certificate).worker == both.worker
