"""The composition root of the query API: the one place where its parts are put together."""

import logging
from typing import Literal

import psycopg
from fastapi import FastAPI
from psycopg_pool import PoolTimeout, TooManyRequests
from starlette.requests import Request
from starlette.responses import Response

from infra.access.guard import guarding
from infra.cors import open_to
from infra.problems import Problem, problem_answer
from infra.service import Service
from infra.settings import ApiSettings, PositiveInt
from infra.web import instance_of, new_api
from query_api import audit, compare, documentation, equipment, feed, history, operations, projection, vessels
from query_api.audit import AuditLog
from query_api.following import Feed
from query_api.read_model import ReadModel

log = logging.getLogger(__name__)

AUDIT_POOL_SIZE = 4  # connections

DESCRIPTION = (
    "**Reads** answer from a read model that follows the events: `Event-Position` says how far it had got, "
    "and `min_position` waits until it has got as far as you need. HEAD works wherever GET does. Lists are "
    "paged (`next_cursor`, `Link`) in JSON, and streamed whole as CSV or NDJSON, as `Accept` says."
)


class QuerySettings(ApiSettings):
    """What the query API needs to know."""

    feed_streams_max: PositiveInt = 1000
    """Readers that wait for events, by long poll or by a stream; beyond it 503 `unavailable`."""


def create_app(auth: Literal["off", "on"] = "off") -> FastAPI:
    """The application, described but not connected: `main` gives it the read model and the audit log."""
    modules = (vessels, equipment, history, compare, operations, projection, feed, audit, documentation)
    app = new_api("FPSO System: reads", DESCRIPTION, auth, [module.router for module in modules])
    app.mount(documentation.ASSETS_PATH, documentation.assets, name="assets")
    for error in (psycopg.OperationalError, PoolTimeout, TooManyRequests):
        app.add_exception_handler(error, _answer_unavailable)
    return app


async def _answer_unavailable(request: Request, error: Exception) -> Response:
    """The database is down, or has more to do than it can."""
    log.warning("read model not readable", extra={"cause": str(error).strip()})
    problem = Problem("unavailable", "The read model cannot be read now.", headers={"Retry-After": "1"})
    return problem_answer(problem, instance_of(request.scope))


async def main(settings: QuerySettings) -> None:
    """Answer queries until SIGTERM, then finish what is in flight."""
    service = Service("query_api", settings, settings.drain_lead_seconds)
    app = create_app(settings.auth)
    async with (
        ReadModel(settings.read_model_url, settings.pool_size).connected() as read_model,
        Feed(read_model, settings.feed_streams_max).running(service.stopping) as events,
        AuditLog(settings.database_url, AUDIT_POOL_SIZE).connected() as audit_log,
        guarding(settings) as guard,
        service.running(),
    ):
        app.state.read_model = read_model
        app.state.feed = events
        app.state.audit_log = audit_log
        app.state.guard = guard
        if guard is not None:
            service.checks["access"] = guard.check
        service.checks["read model"] = read_model.check
        if settings.read_model_url == settings.database_url:
            # Elsewhere reads go on while the event store is away: that must not take us out of service.
            service.checks["audit log"] = audit_log.check
        await service.serve(open_to(app, settings.cors_origins), settings.http_host, settings.http_port)
