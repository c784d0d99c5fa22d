"""The provable log as the sealer left it: signed checkpoints, verifier keys, proofs, tiles.

It lies beside the event store, where the read model need not be, so it is read through a small pool of its
own. What has been sealed is never changed, only added to: a tile that is read after its checkpoint serves
the tree of that checkpoint all the same, and a proof needs no snapshot over several statements.

Checkpoints: https://c2sp.org/tlog-checkpoint · tiles: https://c2sp.org/tlog-tiles, below ``/v1/audit``
"""

import logging
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, LiteralString

import psycopg
from fastapi import APIRouter, Depends, Path, Query, Request
from psycopg.rows import DictRow
from psycopg_pool import PoolTimeout, TooManyRequests
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.responses import PlainTextResponse, Response

from events.cloudevents import json_of
from events.event import Event
from infra.access.caller import caller_of
from infra.audit.tree import (
    HASH_BYTES,
    TILE_WIDTH,
    Tile,
    TileMissing,
    consistency_proof,
    inclusion_proof,
    tiles_of_consistency,
    tiles_of_inclusion,
)
from infra.database import CONNECT_TIMEOUT, Limit, pool_of
from infra.openapi import problem_responses, requires, response_headers
from infra.problems import Problem, Slug, invalid
from infra.routing import Route
from query_api.event_log import event_of
from query_api.formats import document
from query_api.paging import POSITION_MAX, Digits, Reading
from query_api.read_model import READ_SECONDS, STATEMENT_TIMEOUT, InReadModel, ReadModel

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/audit", tags=["audit"], route_class=Route)

FOR_EVER = "max-age=31536000, immutable"
"""Cache-Control of a full tile: it never changes. Caches on the way give a public one to anybody."""

_SESSION = f"-c default_transaction_read_only=on -c jit=off -c statement_timeout={STATEMENT_TIMEOUT}s"
_LEVEL = re.compile(r"[0-9]|[1-5][0-9]|6[0-3]", re.ASCII)
_NUMBER = re.compile(r"(?:x(?!000)[0-9]{3}/(?:x[0-9]{3}/)*)?[0-9]{3}", re.ASCII)
_WIDTH = re.compile(r"[1-9][0-9]{0,2}", re.ASCII)
_NUMBER_DIGITS_MAX = 18  # of a bigint; no tree comes near it


# --- Reading ----------------------------------------------------------------------------------------------


class AuditLog:
    """Reads the schema ``audit``."""

    def __init__(self, url: str, pool_size: int) -> None:
        self._pool = pool_of(url, pool_size, "query_api audit", options=_SESSION)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator["AuditLog"]:
        """Hold connections for as long as the context lasts. The database may come up later than we do."""
        await self._pool.open(wait=False)
        try:
            yield self
        finally:
            await self._pool.close(timeout=1)

    async def rows(self, statement: LiteralString, parameters: Mapping[str, Any]) -> list[DictRow]:
        """All rows of ``statement``. Raises `unavailable` where the database does not answer in time."""
        try:
            return await self._fetch(statement, parameters)
        except (psycopg.OperationalError, PoolTimeout, TooManyRequests) as error:
            log.warning("audit log not readable", extra={"cause": str(error).strip()})
            raise Problem(
                "unavailable", "The audit log cannot be read now.", headers={"Retry-After": "1"}
            ) from error

    async def row(self, statement: LiteralString, parameters: Mapping[str, Any]) -> DictRow | None:
        """The first row of ``statement``, if there is any."""
        rows = await self.rows(statement, parameters)
        return rows[0] if rows else None

    async def tiles(self, wanted: Collection[Tile]) -> dict[Tile, bytes]:
        """Those of ``wanted`` that are there, perhaps longer by now than they were in an older tree."""
        if not wanted:
            return {}
        parameters = {
            "levels": [tile.level for tile in wanted],
            "numbers": [tile.number for tile in wanted],
        }
        rows = await self.rows(TILES, parameters)
        return {Tile(row["level"], row["number"]): row["hashes"] for row in rows}

    async def check(self) -> str | None:
        """Readiness: the database answers, and its tables are there."""
        try:
            await self._fetch(NEWEST, {})
        except psycopg.errors.UndefinedTable:
            return "the event store has not been migrated"
        return None

    async def _fetch(self, statement: LiteralString, parameters: Mapping[str, Any]) -> list[DictRow]:
        async with self._pool.connection(CONNECT_TIMEOUT) as connection:
            with Limit.of(connection, READ_SECONDS):
                cursor = await connection.execute(statement, parameters)
                return await cursor.fetchall()


async def _of(request: Request) -> AuditLog:  # FastAPI sends what is not async through a thread
    audit_log: AuditLog = request.app.state.audit_log
    return audit_log


InAuditLog = Annotated[AuditLog, Depends(_of)]
"""The audit log as the parameter of a route."""

NEWEST: LiteralString = """
    SELECT tree_size, note FROM audit.checkpoints ORDER BY tree_size DESC, epoch DESC LIMIT 1
"""

OF_SIZE: LiteralString = """
    SELECT tree_size, note FROM audit.checkpoints WHERE tree_size = %(tree_size)s ORDER BY epoch DESC LIMIT 1
"""

KEYS: LiteralString = """
    SELECT verifier_key, is_current FROM audit.keys
    ORDER BY is_current DESC, first_used_at DESC, verifier_key
"""

# The LIMIT keeps each tile a look-up by primary key, however many there are.
TILES: LiteralString = """
    SELECT wanted.level, wanted.number, tile.hashes
    FROM unnest(%(levels)s::smallint[], %(numbers)s::bigint[]) AS wanted (level, number)
    CROSS JOIN LATERAL (
        SELECT hashes FROM audit.tiles
        WHERE tiles.level = wanted.level AND tiles.number = wanted.number
        LIMIT 1
    ) AS tile
"""

# Of the tile that begins last at or before the position, where the position is in it.
LEAF: LiteralString = """
    SELECT newest.position AS sealed_position, newest.tree_size AS sealed_size,
           checkpoint.tree_size, checkpoint.note,
           leaf.number, leaf.place
    FROM (
        SELECT tree_size, position FROM audit.checkpoints ORDER BY tree_size DESC LIMIT 1
    ) AS newest
    LEFT JOIN LATERAL (
        SELECT tree_size, note FROM audit.checkpoints
        WHERE tree_size = coalesce(%(tree_size)s::bigint, newest.tree_size)
        ORDER BY epoch DESC LIMIT 1
    ) AS checkpoint ON true
    LEFT JOIN LATERAL (
        SELECT number, array_position(positions, %(position)s::bigint) AS place
        FROM audit.tiles
        WHERE level = 0 AND first_position <= %(position)s::bigint
        ORDER BY first_position DESC
        LIMIT 1
    ) AS leaf ON true
"""

# It stands on the event log, in the read model.
EVENT: LiteralString = """
    SELECT checkpoints.position, head.position,
           event_log.position, event_log.previous_position, event_log.previous_of_type, event_log.epoch,
           event_log.stream, event_log.version, event_log.type, event_log.occurred_at, event_log.actor,
           event_log.auth_type, event_log.correlation_id, event_log.causation_id, event_log.traceparent,
           event_log.data::text
    FROM checkpoints
    LEFT JOIN head ON true
    LEFT JOIN event_log ON event_log.position = %(position)s
    WHERE checkpoints.name = 'event_log'
"""

# On which vessel what the event is about is now.
VESSEL_OF: LiteralString = """
    SELECT checkpoints.position,
           CASE WHEN event_log.stream LIKE 'vessel/%%' THEN substr(event_log.stream, length('vessel/') + 1)
                ELSE equipment.vessel_code END
    FROM (
        SELECT min(position) AS position FROM checkpoints WHERE name IN ('tables', 'event_log')
    ) AS checkpoints
    LEFT JOIN event_log ON event_log.position = %(position)s
    LEFT JOIN equipment ON event_log.stream LIKE 'equipment/%%'
        AND equipment.code = substr(event_log.stream, length('equipment/') + 1)
"""


# --- Shapes -----------------------------------------------------------------------------------------------

_HASH = "SBNJTRN+FjG7owHVrKtue7eqdM4RhdRWVl71HXN2d7I="
_NOTE = (
    f"fpso.local/audit\n1200\n{_HASH}\n\n"
    "— fpso.local/audit BzzIebeKiUb9IUptXaTowI6caVFJaqdmkF1rWTc0jWPvQMCv8MTRh8yRoYoy8nTNc3HvndKbRld+ZMPs3jn"
    "sfeU0fgE=\n"
)
_KEY = "fpso.local/audit+073cc879+AUQpkwZQBKoeTEj03QFYGUwCNJvMZkzZbkAOommRio1R\n"

Base64 = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]


class Inclusion(BaseModel):
    """An event, and the proof that it is in the tree of a signed checkpoint (RFC 9162 §2.1.3)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "position": 1202,
                    "leaf_index": 1199,
                    "leaf_hash": _HASH,
                    "tree_size": 1200,
                    "proof": [_HASH],
                    "event": {
                        "specversion": "1.0",
                        "id": "equipment/23-KA-9101/2",
                        "source": "/fpso/1",
                        "type": "fpso.equipment.deactivated.v1",
                        "subject": "equipment/23-KA-9101",
                        "time": "2026-03-03T12:00:00.000000Z",
                        "dataschema": "urn:fpso:schema:fpso.equipment.deactivated.v1",
                        "position": 1202,
                        "previousposition": 1201,
                        "previousoftype": 988,
                        "streamversion": 2,
                        "authid": "maintenance-planning",
                        "authtype": "unauthenticated",
                        "correlationid": "work-order-4711",
                        "datacontenttype": "application/json",
                        "data": {"reason": "leaking"},
                    },
                    "checkpoint": _NOTE,
                }
            ]
        }
    )

    position: int
    leaf_index: Annotated[int, Field(description="From 0; positions may jump, leaves do not.")]
    leaf_hash: Annotated[
        Base64,
        Field(description="As the tree has it: SHA-256 over 0x00 and `event` in the form of RFC 8785."),
    ]
    tree_size: Annotated[int, Field(description="Of the tree that `proof` and `checkpoint` are about.")]
    proof: Annotated[list[Base64], Field(description="From the leaf's sibling up to below the root.")]
    event: Annotated[dict[str, Any], Field(description="A CloudEvent in JSON format, as the feed gives it.")]
    checkpoint: Annotated[str, Field(description="The signed note.")]


class Consistency(BaseModel):
    """The proof that one tree is the beginning of another (RFC 9162 §2.1.4)."""

    model_config = ConfigDict(
        populate_by_name=True, json_schema_extra={"examples": [{"from": 1000, "to": 1200, "proof": [_HASH]}]}
    )

    from_: Annotated[int, Field(alias="from")]
    to: int
    proof: Annotated[list[Base64], Field(description="Empty for a tree and itself.")]


class WhichCheckpoint(BaseModel):
    """Which checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tree_size: Annotated[
        Annotated[int, Field(ge=0, le=POSITION_MAX), Digits] | None,
        Field(description="That of a tree of this size; the newest by default.", examples=[1200]),
    ] = None


class WhichLeaf(Reading):
    """Which event, in which tree."""

    position: Annotated[
        int,
        Field(
            ge=0, le=POSITION_MAX, description="Of the event, as `Event-Position` gives it.", examples=[1202]
        ),
        Digits,
    ]
    tree_size: Annotated[
        Annotated[int, Field(ge=0, le=POSITION_MAX), Digits] | None,
        Field(
            description="Of a tree with a signed checkpoint; that of the newest by default.", examples=[1200]
        ),
    ] = None


class WhichTrees(BaseModel):
    """Which trees."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    from_: Annotated[
        int,
        Field(
            alias="from",
            ge=1,
            le=POSITION_MAX,
            description="The size of the older tree, at least 1: every tree continues the empty one, and RFC "
            "9162 has no proof of that.",
            examples=[1000],
        ),
        Digits,
    ]
    to: Annotated[
        int,
        Field(
            ge=1,
            le=POSITION_MAX,
            description="That of the newer tree, at most what is sealed.",
            examples=[1200],
        ),
        Digits,
    ]


def _problems(*slugs: Slug) -> dict[int | str, dict[str, Any]]:
    responses = problem_responses(*slugs, "invalid-request", "unavailable")
    if "position-not-found" in slugs:  # that there is no event is known up to some position
        responses[404]["headers"] |= response_headers("Event-Position")
    return responses


def _described_text(description: str, example: str, *problems: Slug) -> dict[str, Any]:
    """Of a route that answers plain text."""
    content = {"text/plain": {"schema": {"type": "string"}, "example": example}}
    return {
        "response_class": PlainTextResponse,
        "openapi_extra": requires("auditor"),
        "responses": {200: {"description": description, "content": content}, **_problems(*problems)},
    }


# --- Checkpoints and keys ---------------------------------------------------------------------------------


@router.get(
    "/checkpoint",
    **_described_text(
        "A C2SP checkpoint: origin, tree size, root hash, a blank line, signatures.",
        _NOTE,
        "checkpoint-not-found",
    ),
)
async def get_checkpoint(which: Annotated[WhichCheckpoint, Query()], audit_log: InAuditLog) -> Response:
    """The newest signed checkpoint of the log of all events, or an older one."""
    if which.tree_size is None:
        found = await audit_log.row(NEWEST, {})
    else:
        found = await audit_log.row(OF_SIZE, {"tree_size": which.tree_size})
    if found is None:
        raise _checkpoint_not_found(which.tree_size)
    return PlainTextResponse(found["note"])


@router.get(
    "/key",
    **_described_text("A verifier key in the form of C2SP signed-note.", _KEY, "checkpoint-not-found"),
)
async def get_audit_key(audit_log: InAuditLog) -> Response:
    """The verifier key of the newest key that signs checkpoints; pin it where nobody here can change it."""
    found = await audit_log.row(KEYS, {})
    if found is None or not found["is_current"]:
        raise _checkpoint_not_found(None)
    return PlainTextResponse(found["verifier_key"] + "\n")


@router.get(
    "/keys",
    **_described_text("Verifier keys, one a line; none before the first event is sealed.", _KEY),
)
async def list_audit_keys(audit_log: InAuditLog) -> Response:
    """The verifier keys of all keys that ever signed checkpoints, the newest first."""
    rows = await audit_log.rows(KEYS, {})
    return PlainTextResponse("".join(f"{row['verifier_key']}\n" for row in rows))


def _checkpoint_not_found(tree_size: int | None) -> Problem:
    if tree_size is None:
        return Problem("checkpoint-not-found", "Nothing has been sealed yet.")
    return Problem(
        "checkpoint-not-found",
        f"No checkpoint was signed for a tree of size {tree_size}.",
        tree_size=tree_size,
    )


# --- Proofs -----------------------------------------------------------------------------------------------


@router.get(
    "/inclusion",
    response_model=Inclusion,
    openapi_extra=requires("auditor"),
    responses={
        200: {"headers": response_headers("Event-Position")},
        **_problems("checkpoint-not-found", "position-not-found", "not-sealed-yet", "read-model-behind"),
    },
)
async def prove_inclusion(
    which: Annotated[WhichLeaf, Query()], request: Request, audit_log: InAuditLog, read_model: InReadModel
) -> Response:
    """An event, and the proof that it is in the tree of a signed checkpoint.

    An event of a moment ago may not be known here yet: give its position as `min_position` as well.
    """
    caller = caller_of(request.scope)
    if caller.vessels is not None:
        min_position = max(which.position, which.min_position or 0)
        row = await read_model.row(VESSEL_OF, {"position": which.position}, min_position, "both")
        caller.require_vessel(row[1])
    parameters = {"position": which.position, "tree_size": which.tree_size}
    found = await audit_log.row(LEAF, parameters)
    if which.tree_size is not None and (found is None or found["tree_size"] is None):
        raise _checkpoint_not_found(which.tree_size)
    if found is None or found["place"] is None:
        raise await _not_in_tree(read_model, which, found["sealed_position"] if found else 0)
    tree_size: int = found["tree_size"]
    index: int = found["number"] * TILE_WIDTH + found["place"] - 1
    if index >= tree_size:
        raise invalid(
            "/query/tree_size",
            f"position {which.position} is leaf {index}: it is in trees that are larger than {index}, and "
            f"{found['sealed_size']} events are sealed",
        )
    own = Tile(0, index // TILE_WIDTH)
    tiles = await audit_log.tiles({*tiles_of_inclusion(index, tree_size), own})
    checkpoint, event = await _event(read_model, which, index)
    with _whole_tree():
        proof = inclusion_proof(index, tree_size, tiles)
    start = index % TILE_WIDTH * HASH_BYTES
    inclusion = {
        "position": which.position,
        "leaf_index": index,
        "leaf_hash": _base64(tiles[own][start : start + HASH_BYTES]),
        "tree_size": tree_size,
        "proof": [_base64(one) for one in proof],
        "event": json_of(event),
        "checkpoint": found["note"],
    }
    return document(to_json(inclusion), checkpoint)


@router.get(
    "/consistency",
    response_model=Consistency,
    openapi_extra=requires("auditor"),
    responses=_problems(),
)
async def prove_consistency(which: Annotated[WhichTrees, Query()], audit_log: InAuditLog) -> Response:
    """The proof that the older of two trees is the beginning of the newer: nothing in it was rewritten.

    Any size up to what is sealed will do, signed or not.
    """
    if which.from_ > which.to:
        raise invalid("/query/from", "from is larger than to")
    newest = await audit_log.row(NEWEST, {})
    sealed_size = newest["tree_size"] if newest else 0
    if which.to > sealed_size:
        raise invalid("/query/to", f"the tree has not grown so far: {sealed_size} events are sealed")
    tiles = await audit_log.tiles(tiles_of_consistency(which.from_, which.to))
    with _whole_tree():
        proof = consistency_proof(which.from_, which.to, tiles)
    consistency = {"from": which.from_, "to": which.to, "proof": [_base64(one) for one in proof]}
    return Response(to_json(consistency), media_type="application/json")


async def _not_in_tree(read_model: ReadModel, which: WhichLeaf, sealed_position: int) -> Problem:
    """Why there is no proof: the event is not sealed yet, or there is none at this position."""
    if which.position <= sealed_position:
        return _position_not_found(which.position)  # up to there every event is a leaf
    row = await read_model.row(EVENT, {"position": which.position}, which.min_position, "event_log")
    checkpoint, head, *_, data = row
    is_event = data is not None
    is_unknown = checkpoint < which.position <= (head or 0)
    if not is_event and not is_unknown:
        return _position_not_found(which.position, checkpoint)
    return Problem(
        "not-sealed-yet",
        f"Events are sealed up to position {sealed_position}, not yet up to {which.position}.",
        headers={"Retry-After": "1"},
        position=which.position,
        sealed_position=sealed_position,
    )


def _position_not_found(position: int, checkpoint: int | None = None) -> Problem:
    headers = {} if checkpoint is None else {"Event-Position": str(checkpoint)}
    return Problem(
        "position-not-found", f"There is no event at position {position}.", headers=headers, position=position
    )


async def _event(read_model: ReadModel, which: WhichLeaf, index: int) -> tuple[int, Event]:
    """The event log's checkpoint, and the event that is leaf ``index``."""
    min_position = max(which.position, which.min_position or 0)
    row = await read_model.row(EVENT, {"position": which.position}, min_position, "event_log")
    checkpoint, _, *columns = row
    if columns[0] is None:
        log.error("event missing in the event log", extra={"position": which.position, "leaf_index": index})
        raise Problem(
            "internal-error",
            f"Position {which.position} is leaf {index} of the tree, but the read model's event log has no "
            "event there. `fpso audit verify` looks at all of both.",
            position=which.position,
        )
    return checkpoint, event_of(columns)


@contextmanager
def _whole_tree() -> Iterator[None]:
    """A tile that is missing, or too short, is a fault of ours that nobody can ask around."""
    try:
        yield
    except TileMissing as error:
        log.exception("audit tree not whole")
        raise Problem("internal-error", f"The tree is not whole: {error}.") from error


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


# --- Tiles ------------------------------------------------------------------------------------------------


@router.get(
    "/tile/{level}/{number:path}",
    response_class=Response,
    openapi_extra=requires("auditor"),
    responses={
        200: {
            "description": "Hashes of 32 bytes, one after the other. A full tile may be kept for ever.",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        **_problems("not-found"),
    },
)
async def get_audit_tile(
    level: Annotated[str, Path(description="0 to 63; level 0 has the hashes of the leaves.", examples=["0"])],
    number: Annotated[
        str,
        Path(
            description="The number of the tile in groups of three digits, all but the last with an x in "
            "front: `067`, `x001/x234/067`. The slashes stand in the path as they are. `.p/` and a width of "
            "1 to 255 after it: the first so many hashes of a tile.",
            examples=["067", "x001/x234/067", "067.p/12"],
        ),
    ],
    request: Request,
    audit_log: InAuditLog,
) -> Response:
    """256 hashes of one level of the tree, or the first so many of them (C2SP tlog-tiles)."""
    which = _tile_of(level, number)
    if which is None:
        raise Problem("not-found", "No tile has such a path; see https://c2sp.org/tlog-tiles.")
    tile, width = which
    hashes = (await audit_log.tiles([tile])).get(tile, b"")
    if len(hashes) < width * HASH_BYTES:
        held = len(hashes) // HASH_BYTES
        raise Problem("not-found", f"The tree has not grown so far: the tile has {held} hashes.", width=held)
    is_public = caller_of(request.scope).auth_type == "unauthenticated"
    whose = "public" if is_public else "private"
    headers = {"Cache-Control": f"{whose}, {FOR_EVER}"} if width == TILE_WIDTH else {}
    return Response(hashes[: width * HASH_BYTES], headers=headers, media_type="application/octet-stream")


def _tile_of(level: str, number: str) -> tuple[Tile, int] | None:
    """Which tile a path means, and how many of its hashes; None where it means none."""
    digits, partial, width = number.partition(".p/")
    if not _LEVEL.fullmatch(level) or not _NUMBER.fullmatch(digits):
        return None
    if partial and (not _WIDTH.fullmatch(width) or int(width) >= TILE_WIDTH):
        return None
    decimal = digits.replace("x", "").replace("/", "")
    if len(decimal) > _NUMBER_DIGITS_MAX:
        return None
    return Tile(int(level), int(decimal)), int(width) if partial else TILE_WIDTH
