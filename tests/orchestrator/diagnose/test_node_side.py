"""The process that sends and answers probes, when there is none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvloop

from orchestrator.diagnose.node_side import ask_child


def test_a_child_that_ended_before_it_had_its_orders_is_an_answer_not_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    start = asyncio.create_subprocess_exec

    async def start_and_end(*command: str, **options: Any) -> asyncio.subprocess.Process:
        child = await start(*command, **options)
        child.kill()
        await child.wait()
        assert child.stdin is not None
        while not child.stdin.transport.is_closing():
            await asyncio.sleep(0.01)
        return child

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_and_end)
    answer = uvloop.run(ask_child("echo", {}, 20.0))
    assert answer == {"error": "the process that should echo ended at once: see the log of meshd"}
