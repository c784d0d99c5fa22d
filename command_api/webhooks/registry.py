"""The table ``delivery.webhooks``: who is told of what, how far, and what became of the last attempt.

A checkpoint moves by compare-and-set on the position that it was read with: whoever else moved it meanwhile,
or removed the webhook, is not overwritten.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, LiteralString, cast

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from command_api.webhooks.endpoint import Failure, Permission
from infra.database import Pool

CHANNEL = "webhooks"
"""NOTIFY says here that a webhook has changed: to the process when somebody has made, paused or resumed one,
to whoever waits when a handshake has had its outcome."""
GIVE_UP_DAYS = 3
"""After so long without success the next failure parks a webhook."""

State = Literal["unconfirmed", "active", "paused", "parked"]


@dataclass(frozen=True, slots=True)
class Webhook:
    """One row, as it was when it was read."""

    id: int
    name: str
    url: str
    types: Sequence[str]
    state: State
    position: int
    """Its checkpoint: what lies up to there has been delivered or passed over."""
    secrets: Sequence[str]
    """Those that sign now, newest first."""
    permitted_per_minute: int | None
    attempts: int
    """That failed, of what comes next."""
    due_in_seconds: float
    """0 where the next attempt may be made now."""

    @property
    def is_deliverable(self) -> bool:
        """Whether there is anything to be done for it."""
        return self.state in ("unconfirmed", "active")

    def takes(self, type_: str) -> bool:
        """Whether it is about events of this type."""
        return any(matches(pattern, type_) for pattern in self.types)


def matches(pattern: str, type_: str) -> bool:
    """Whether ``pattern``, which may end in ``*``, is about ``type_``."""
    return type_.startswith(pattern[:-1]) if pattern.endswith("*") else type_ == pattern


class Registry:
    """Reads and moves webhooks. Raises what psycopg raises where that cannot be done.

    What changes a webhook returns it as it is afterwards; None where it is gone, or has been moved meanwhile.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def all(self) -> list[Webhook]:
        """Every webhook, in the order in which they were made."""
        async with self._pool.connection() as connection:
            return await _select(connection, None)

    async def delivered(self, webhook: Webhook, position: int, status: int) -> Webhook | None:
        """The event at ``position`` was taken."""
        return await self._change(
            webhook,
            """
            UPDATE delivery.webhooks SET
                position = %(position)s, attempts = 0, failing_since = NULL, last_error = NULL,
                last_status = %(status)s, last_attempt_at = now(), delivered_at = now()
            WHERE id = %(id)s AND position = %(from)s
            """,
            {"position": position, "status": status},
        )

    async def passed_over(self, webhook: Webhook, position: int) -> Webhook | None:
        """Up to ``position`` there is nothing that it is about."""
        return await self._change(
            webhook,
            "UPDATE delivery.webhooks SET position = %(position)s WHERE id = %(id)s AND position = %(from)s",
            {"position": position},
        )

    async def permitted(self, webhook: Webhook, permission: Permission) -> Webhook | None:
        """The handshake succeeded."""
        return await self._change(
            webhook,
            """
            UPDATE delivery.webhooks SET
                state = CASE state WHEN 'unconfirmed' THEN 'active' ELSE state END,
                permitted_at = now(), permitted_per_minute = %(per_minute)s,
                attempts = 0, failing_since = NULL, last_error = NULL, last_attempt_at = now()
            WHERE id = %(id)s AND position = %(from)s
            """,
            {"per_minute": permission.per_minute},
        )

    async def failed(self, webhook: Webhook, failure: Failure, pause_seconds: float) -> Webhook | None:
        """An attempt failed; the next is made after the pause, or none where that was the last."""
        return await self._change(
            webhook,
            """
            UPDATE delivery.webhooks SET
                state = CASE
                    WHEN state IN ('unconfirmed', 'active')
                        AND (%(is_gone)s OR failing_since < now() - make_interval(days => %(give_up_days)s))
                    THEN 'parked' ELSE state
                END,
                attempts = attempts + 1, failing_since = coalesce(failing_since, now()),
                next_attempt_at = now() + make_interval(secs => %(pause_seconds)s),
                last_error = %(cause)s, last_status = %(status)s, last_attempt_at = now()
            WHERE id = %(id)s AND position = %(from)s
            """,
            {
                "is_gone": failure.is_gone,
                "give_up_days": GIVE_UP_DAYS,
                "pause_seconds": pause_seconds,
                "cause": failure.cause,
                "status": failure.status,
            },
        )

    async def _change(
        self, webhook: Webhook, statement: LiteralString, parameters: dict[str, Any]
    ) -> Webhook | None:
        parameters = {**parameters, "id": webhook.id, "from": webhook.position}
        async with self._pool.connection() as connection:
            cursor = await connection.execute(statement, parameters)
            if not cursor.rowcount:
                return None
            if webhook.state == "unconfirmed":
                await connection.execute("SELECT pg_notify(%s, %s)", [CHANNEL, webhook.name])
            found = await _select(connection, webhook.id)
        return found[0] if found else None


async def _select(connection: AsyncConnection[DictRow], id_: int | None) -> list[Webhook]:
    """One webhook, or every one."""
    cursor = await connection.execute(
        """
        SELECT id, name, url, types, state, position, permitted_per_minute, attempts,
            CASE
                WHEN previous_secret_until > now() THEN ARRAY[secret, previous_secret] ELSE ARRAY[secret]
            END AS secrets,
            greatest(0, extract(epoch FROM next_attempt_at - now()))::double precision AS due_in_seconds
        FROM delivery.webhooks WHERE %(id)s::bigint IS NULL OR id = %(id)s ORDER BY id
        """,
        {"id": id_},
    )
    return [Webhook(**cast(Any, row)) for row in await cursor.fetchall()]
