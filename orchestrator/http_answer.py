"""The body of an HTTP answer of somebody who is not trusted with this process's memory.

Edge: reads the connection.
"""

from __future__ import annotations

import aiohttp

from orchestrator.errors import RemoteProtocolError


async def read_whole(response: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    """RemoteProtocolError: it is longer. Whatever aiohttp raises when the connection ends."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > most_bytes:
            raise RemoteProtocolError("its answer is too long")
    return bytes(body)
