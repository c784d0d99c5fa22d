"""Every problem that an API answers: one catalogue of slugs, answered as RFC 9457 problem details."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import to_json
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"

Slug = Literal[
    "body-too-large",
    "checkpoint-not-found",
    "equipment-already-registered",
    "equipment-not-found",
    "forbidden",
    "idempotency-key-in-use",
    "idempotency-key-reused",
    "if-match-not-applicable",
    "import-rejected",
    "internal-error",
    "invalid-request",
    "method-not-allowed",
    "not-found",
    "not-sealed-yet",
    "operation-not-found",
    "outcome-unknown",
    "overloaded",
    "position-not-found",
    "read-model-behind",
    "unauthenticated",
    "unavailable",
    "unsupported-media-type",
    "version-mismatch",
    "vessel-already-registered",
    "vessel-decommissioned",
    "vessel-not-found",
]


@dataclass(frozen=True, slots=True)
class Kind:
    """What stays the same about a problem from one occurrence to the next."""

    status: int
    title: str
    help: str
    """What it means and what to do about it; the text of its page."""


CATALOGUE: Mapping[Slug, Kind] = {
    "body-too-large": Kind(
        413,
        "The request body is too large",
        "JSON bodies may have 1 MiB, imports 64 MiB. Split the request; nothing was changed.",
    ),
    "checkpoint-not-found": Kind(
        404,
        "There is no such checkpoint",
        "Nothing has been sealed yet, or no checkpoint was signed for a tree of this size. "
        "/v1/audit/checkpoint gives the newest.",
    ),
    "equipment-already-registered": Kind(
        409,
        "The equipment is already registered",
        "An equipment code is unique across the fleet, on every vessel. Choose another code, or update or "
        "transfer the equipment that has it. Nothing was changed.",
    ),
    "equipment-not-found": Kind(
        404,
        "There is no such equipment",
        "No equipment has this code. Codes are case-sensitive. Where a list was sent, `unknown` names the "
        "codes that do not exist, and nothing was changed.",
    ),
    "forbidden": Kind(
        403,
        "The request is not allowed",
        "With access control the caller has not the role that this takes (`role` names it), or a grant that "
        "is limited to vessels, and what was asked for is on none of them. Whether it exists is not said. "
        "Without access control the API answers this machine only: the Host must be localhost or a loopback "
        "address, and commands must not come from the page of another site (Origin, Sec-Fetch-Site).",
    ),
    "idempotency-key-in-use": Kind(
        409,
        "The first request with this idempotency key is still being worked on",
        "Repeat the request with the same key a little later: it gets the first answer.",
    ),
    "idempotency-key-reused": Kind(
        422,
        "The idempotency key was used for another request",
        "A key belongs to one request of one actor: the same method, path, query, content type, If-Match and "
        "body. Use a new key for a new request.",
    ),
    "if-match-not-applicable": Kind(
        422,
        "If-Match does not apply here",
        "Creations, lists and imports do not change one existing resource, so there is no version to match. "
        "Leave the header out.",
    ),
    "import-rejected": Kind(
        422,
        "The import was rejected as a whole",
        "`errors` names the first 1,000 rows that cannot be registered, by physical line, and `total` counts "
        "them. Nothing was registered. Mend the rows, or send the file with `?on_error=skip` to register the "
        "good ones.",
    ),
    "internal-error": Kind(
        500,
        "Something went wrong on our side",
        "The request was not at fault. If it was a command, repeat it with the same Idempotency-Key; the "
        "correlation id helps the operator to find the cause in the logs.",
    ),
    "invalid-request": Kind(
        422,
        "The request is not valid",
        "`errors` names each fault by JSON Pointer: into the body, or under /query, /path or /header. "
        "Nothing was changed.",
    ),
    "method-not-allowed": Kind(
        405, "The method is not allowed here", "The Allow header names the methods that this path has."
    ),
    "not-found": Kind(404, "There is nothing at this path", "See /docs for the paths that exist."),
    "not-sealed-yet": Kind(
        503,
        "The event has not been sealed yet",
        "An event is in the tree within about a second of its commit. Repeat after the seconds that "
        "Retry-After names.",
    ),
    "operation-not-found": Kind(
        404,
        "There is no such operation",
        "No operation has this id, or it was recorded on other equipment.",
    ),
    "outcome-unknown": Kind(
        503,
        "It is not known whether the command was carried out",
        "The event store stopped answering while the command was being committed. Repeat it with the same "
        "Idempotency-Key: it is carried out once, whatever happened to the first.",
    ),
    "overloaded": Kind(
        503,
        "The service takes no more commands at the moment",
        "The command was not carried out. Repeat it after the seconds that Retry-After names.",
    ),
    "position-not-found": Kind(
        404,
        "There is no event at this position",
        "Positions may jump: a rolled-back append burns some. `Event-Position` and the events name "
        "those that exist.",
    ),
    "read-model-behind": Kind(
        503,
        "The read model has not got that far yet",
        "It had not reached the position, or passed the moment, that was asked for when the time to wait ran "
        "out. The event itself is safe. Repeat after the seconds that Retry-After names.",
    ),
    "unauthenticated": Kind(
        401,
        "Who asks is not known",
        "Every request but the documentation's takes `Authorization: Bearer` with an API key that is not "
        "revoked or a valid token of the OpenID Connect issuer. Nothing was done.",
    ),
    "unavailable": Kind(
        503,
        "The service cannot answer at the moment",
        "A database that is needed for the answer, or the issuer that vouches for a token, does not answer "
        "or has as much to do as it can. Repeat after the seconds that Retry-After names.",
    ),
    "unsupported-media-type": Kind(
        415,
        "The content type is not supported here",
        "Commands take application/json, PATCH also application/merge-patch+json, imports text/csv or "
        "application/x-ndjson.",
    ),
    "version-mismatch": Kind(
        412,
        "The resource has another version than If-Match says",
        "Somebody changed it in the meantime; `version` is the current one. Read it again and decide anew. "
        "Weak tags never match.",
    ),
    "vessel-already-registered": Kind(
        409,
        "The vessel is already registered",
        "A vessel code is unique. Choose another code. Nothing was changed.",
    ),
    "vessel-decommissioned": Kind(
        409,
        "The vessel is decommissioned",
        "A decommissioned vessel takes no new or transferred equipment and no new name. Recommission it "
        "first. Nothing was changed.",
    ),
    "vessel-not-found": Kind(
        404, "There is no such vessel", "No vessel has this code. Codes are case-sensitive."
    ),
}


@dataclass(frozen=True)
class Fault:
    """One thing to mend in a request."""

    pointer: str
    """JSON Pointer (RFC 6901) into the body, or under ``/query``, ``/path`` or ``/header``."""
    detail: str


class Problem(Exception):
    """A request is answered with a problem. ``members`` name the offender."""

    def __init__(
        self, slug: Slug, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(slug, detail)
        self.slug: Slug = slug
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members


class InvalidRequest(Problem):
    """The request is not valid; every fault of it is named."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(
            "invalid-request",
            "; ".join(
                f"{fault.pointer}: {fault.detail}" if fault.pointer else fault.detail for fault in faults[:3]
            ),
            errors=[{"pointer": fault.pointer, "detail": fault.detail} for fault in faults],
        )


def invalid(pointer: str, detail: str) -> InvalidRequest:
    """A request with one fault."""
    return InvalidRequest([Fault(pointer, detail)])


def problem_answer(problem: Problem, instance: str) -> Response:
    """``problem`` as an HTTP answer; ``instance`` is the path of the request."""
    kind = CATALOGUE[problem.slug]
    body = {
        "type": f"/problems/{problem.slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": problem.detail,
        "instance": instance,
        **problem.members,
    }
    return Response(to_json(body), kind.status, problem.headers, MEDIA_TYPE)


def pointer_of(location: Sequence[str | int]) -> str:
    """A path of member names and indexes as a JSON Pointer (RFC 6901)."""
    return "".join("/" + str(name).replace("~", "~0").replace("/", "~1") for name in location)
