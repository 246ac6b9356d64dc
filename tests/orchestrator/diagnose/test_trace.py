"""A trace when nobody can be reached: a sentence, not a group of exceptions."""

from __future__ import annotations

import aiohttp
import pytest

from orchestrator.diagnose.itinerary import TraceRequest
from orchestrator.diagnose.trace import trace
from orchestrator.errors import ApiError
from tests.orchestrator.diagnose.test_itinerary import SNAPSHOT


class Unreachable:
    async def node_session(self, node_id: str) -> tuple[aiohttp.ClientSession, str]:
        raise ApiError(500, f"node {node_id} is not known to this cluster any more")


async def test_a_client_node_that_cant_be_reached_is_a_sentence() -> None:
    with pytest.raises(ApiError) as refused:
        await trace(Unreachable(), SNAPSHOT, TraceRequest(target="web"), "n1")
    assert refused.value.message == "node n2 is not known to this cluster any more"
