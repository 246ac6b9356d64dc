"""Diagnosis over the API, beyond Docker's: `POST /mesh/v1/trace` sends probes through the cluster and tells the way they took,
`GET /mesh/v1/doctor` says what a running node finds wrong; and what our own API is.

Edge: routes. Only managers trace, for they alone may look into other nodes.
"""

from __future__ import annotations

from aiohttp import web

from orchestrator.api import access
from orchestrator.diagnose.itinerary import TraceRequest
from orchestrator.diagnose.trace import trace
from orchestrator.mesh_api import OPENAPI_PATH, openapi


async def post_trace(request: web.Request) -> web.Response:
    store = access.store_of(request)
    backend = access.backend_of(request)
    asked = await access.body_as(request, TraceRequest)
    return access.answer(await trace(backend, store.snapshot(), asked, backend.node_id))


async def get_doctor(request: web.Request) -> web.Response:
    return access.answer(await access.backend_of(request).examine())


async def get_openapi(request: web.Request) -> web.Response:
    """Everything below `/mesh/v1`, for those who make clients."""
    return access.answer(openapi())


ROUTES = [
    web.get("/mesh/v1/doctor", get_doctor),
    web.post("/mesh/v1/trace", post_trace),
    web.get(OPENAPI_PATH, get_openapi),
]
