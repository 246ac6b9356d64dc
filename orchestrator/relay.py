"""An Engine's answer passed on to whoever asked for it, as it comes.

Edge: aiohttp in, aiohttp out. Nothing is held but one chunk: a slow reader slows the Engine down.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from orchestrator.engine_http import Answer

log = logging.getLogger(__name__)

_EMPTY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


def whole(answer: Answer) -> web.Response:
    """One that was read already."""
    headers = {"Content-Type": answer.headers.get("Content-Type", "application/json")}
    return web.Response(status=answer.status, body=answer.body, headers=headers)


async def relay(
    request: web.Request,
    answer: aiohttp.ClientResponse,
    headers: CIMultiDict[str],
    last_words: Callable[[bytes], bytes | None] = lambda beginning: None,
) -> web.StreamResponse:
    """last_words: what to end an answer with that broke off, given its first bytes; None: only a broken body says so."""
    if request.method == "HEAD" or answer.status in _EMPTY:
        bare = web.Response(status=answer.status, reason=answer.reason)
        bare.headers.extend(headers)
        return bare
    response = web.StreamResponse(status=answer.status, reason=answer.reason)
    response.headers.extend(headers)
    if "Content-Type" not in answer.headers:
        # aiohttp would announce application/octet-stream; the Engine announced nothing.
        response.headers.popall("Content-Type", None)
    # `docker run` waits for the head of /wait before it starts the container: it goes out before any of the body is there.
    await response.prepare(request)
    beginning = b""
    try:
        while chunk := await answer.content.readany():
            beginning = beginning or chunk[:16]
            await response.write(chunk)
    except aiohttp.ClientError as error:
        log.warning("answer cut short path=%s error=%s", request.path, error)
        words = last_words(beginning)
        if words is None:
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write(words)
    await response.write_eof()
    return response
