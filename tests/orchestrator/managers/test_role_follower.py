"""The newest word counts, a failure is tried again, one change at a time."""

from __future__ import annotations

import asyncio

from orchestrator.errors import ConfigError
from orchestrator.managers.role_follower import RoleFollower


async def until(condition: object) -> None:
    async with asyncio.timeout(5):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.002)


async def test_what_is_told_is_done_and_done_again_after_a_failure() -> None:
    done: list[str] = []
    failures = 2

    async def change(role: str) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise ConfigError("no etcd here")
        done.append(role)

    follower = RoleFollower(change, retry_first_s=0.001)
    follower.start()
    follower.told("")
    follower.told("manager")
    await until(lambda: done == ["manager"])
    assert failures == 0
    follower.stop()


async def test_a_newer_word_overtakes_a_failing_older_one() -> None:
    done: list[str] = []
    asked: list[str] = []

    async def change(role: str) -> None:
        asked.append(role)
        if role == "manager":
            raise ConfigError("never")
        done.append(role)

    follower = RoleFollower(change, retry_first_s=3600)
    follower.start()
    follower.told("manager")
    await until(lambda: asked == ["manager"])
    follower.told("worker")
    await until(lambda: done == ["worker"])
    follower.stop()


async def test_again_looks_at_the_last_word_once_more_and_at_none_if_there_was_none() -> None:
    done: list[str] = []

    async def change(role: str) -> None:
        done.append(role)

    follower = RoleFollower(change)
    follower.start()
    follower.again()
    await asyncio.sleep(0)
    follower.told("manager")
    await until(lambda: done == ["manager"])
    follower.again()
    await until(lambda: done == ["manager", "manager"])
    follower.stop()
