"""The kind of proxy that nimgate takes the place of, as small as it can be written well: FastAPI in front, httpx at
the back, and between them a token bucket and a queue by priority. tests/tools/measure/rivals.py compares nimgate with
it.
"""

import asyncio
import heapq
import itertools
import json
import os
import time
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, Request, Response

PRIORITIES = {"urgent": 0, "high": 1, "normal": 2, "low": 3}
UPSTREAM = os.environ["SIDECAR_UPSTREAM"]
RATE_PER_S = float(os.environ["SIDECAR_RPM"]) / 60
CAPACITY = float(os.environ["SIDECAR_BURST"])
# What belongs to a connection and not to a message, and what httpx sets by itself.
NOT_FORWARDED = {"host", "connection", "content-length", "transfer-encoding", "accept-encoding", "content-encoding"}


class Gate:
    """One token for each request, the highest priority first and in the order of arrival within it."""

    def __init__(self) -> None:
        self._tokens = CAPACITY
        self._filled = time.monotonic()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, priority: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._numbers), turn))
        self._serve()
        await turn

    def _serve(self) -> None:
        now = time.monotonic()
        self._tokens = min(CAPACITY, self._tokens + (now - self._filled) * RATE_PER_S)
        self._filled = now
        while self._waiting and self._tokens >= 1:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                self._tokens -= 1
                turn.set_result(None)
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            wait = (1 - self._tokens) / RATE_PER_S
            self._timer = asyncio.get_running_loop().call_later(wait, self._serve)


@asynccontextmanager
async def lifespan(app: FastAPI):
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=UPSTREAM, limits=limits, timeout=None, trust_env=False) as client:
        app.state.client = client
        app.state.gate = Gate()
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/{path:path}")
async def forward(path: str, request: Request) -> Response:
    body = await request.body()
    if str(json.loads(body).get("model", "")).startswith("nvidia/"):
        priority = PRIORITIES.get(request.headers.get("x-priority", "").strip().lower(), PRIORITIES["normal"])
        await app.state.gate.enter(priority)
    headers = [(name, value) for name, value in request.headers.items() if name not in NOT_FORWARDED]
    answer = await app.state.client.post(f"/{path}", content=body, headers=headers)
    kept = {name: value for name, value in answer.headers.items() if name not in NOT_FORWARDED}
    return Response(answer.content, answer.status_code, kept)
