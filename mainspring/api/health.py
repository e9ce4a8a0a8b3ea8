"""Alive, ready, metrics."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from mainspring.api.call import Call
from mainspring.api.routes import Route
from mainspring.gateway.identity import Permission
from mainspring.gateway.models import Models
from mainspring.telemetry.metrics import CONTENT_TYPE, Metrics

__all__ = ["Health"]


class Health:
    """`unready` is the server's own reason (starting, shutting down), or None."""

    def __init__(self, models: Models, metrics: Metrics, unready: Callable[[], str | None]) -> None:
        self._models = models
        self._metrics = metrics
        self._unready = unready

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/health/live", Permission.PUBLIC, self.live),
            Route("GET", "/health/ready", Permission.PUBLIC, self.ready),
            Route("GET", "/metrics", Permission.METRICS, self.metrics),
        ]

    async def live(self, call: Call, _: str) -> None:
        """An answer is the proof: the event loop turns."""
        await call.answer(200, msgspec.json.encode({"status": "live"}))

    async def ready(self, call: Call, _: str) -> None:
        """200 when every model makes forward progress; else 503 with the reasons.

        A model that an operator loads or unloads takes no traffic away from the others.
        """
        reasons = self._models.stuck()
        if reason := self._unready():
            reasons = {**self._models.unready(), "server": reason}
        if reasons:
            body = {"status": "not ready", "reasons": reasons}
            await call.answer(503, msgspec.json.encode(body))
        else:
            await call.answer(200, msgspec.json.encode({"status": "ready"}))

    async def metrics(self, call: Call, _: str) -> None:
        await call.answer(200, self._metrics.expose(), CONTENT_TYPE.encode())
