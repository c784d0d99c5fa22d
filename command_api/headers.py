"""The headers that every command takes: who asks, in what course, under which conditions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from secrets import token_hex

from starlette.requests import Request

from infra import logs
from infra.access.caller import Caller, caller_of
from infra.problems import Problem, invalid

WAIT_MAX_SECONDS = 10
_TAKEN = frozenset({b"if-match", b"traceparent", b"x-actor", b"idempotency-key", b"prefer"})
_VISIBLE = re.compile(r"[\x21-\x7e]{1,128}")
_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_ENTITY_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e]*)"')
# A vessel's tag also has the position of its last change, which may be that of its equipment.
_VERSION_TAG = re.compile(r"(\d{1,18})(?:-\d{1,19})?", re.ASCII)
_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,9})\"?", re.ASCII | re.IGNORECASE)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class CommandHeaders:
    """What the headers of a command say."""

    caller: Caller
    actor: str
    """The caller, or whoever a caller that is not known says to be."""
    correlation_id: str
    causation_id: str
    idempotency_key: str | None
    if_match: Sequence[int] | None
    """The versions that the client allows; None where it does not say, or allows any."""
    has_if_match: bool
    wait_seconds: int
    """How long the client would like to wait for the read model; 0 not at all."""
    traceparent: str | None

    @property
    def key_owner(self) -> str:
        """Whose idempotency keys these are. A user and a key of one name are two; X-Actor has no spaces."""
        if self.caller.auth_type == "unauthenticated":
            return self.actor
        return f"{self.caller.auth_type} {self.actor}"

    def metadata(self, append_id: str) -> Mapping[str, str]:
        """What is stored with every event of the command."""
        metadata = {
            "actor": self.actor,
            "auth_type": self.caller.auth_type,
            "correlation_id": self.correlation_id,
            "causation_id": self.causation_id,
            "append_id": append_id,
        }
        if self.idempotency_key is not None:
            metadata["idempotency_key"] = self.idempotency_key
        if self.traceparent is not None:
            metadata["traceparent"] = self.traceparent
        return metadata


def command_headers(request: Request) -> CommandHeaders:
    """The headers of ``request``, or a problem that names the one that is not valid."""
    given = _given(request)
    caller = caller_of(request.scope)
    is_known = caller.auth_type != "unauthenticated"
    if_match = _if_match(given)
    traceparent = ", ".join(given.get(b"traceparent", []))
    return CommandHeaders(
        caller=caller,
        actor=caller.actor if is_known else _actor(given.get(b"x-actor", [])),
        correlation_id=logs.correlation_id.get() or token_hex(16),
        causation_id=token_hex(16),
        idempotency_key=_idempotency_key(given.get(b"idempotency-key", [])),
        if_match=None if if_match is None else _versions(if_match),
        has_if_match=if_match is not None,
        wait_seconds=_wait_seconds(given.get(b"prefer", [])),
        # W3C Trace Context: a traceparent that cannot be read is ignored, and so are two.
        traceparent=traceparent if _TRACEPARENT.fullmatch(traceparent) else None,
    )


def _given(request: Request) -> Mapping[bytes, Sequence[str]]:
    """The lines of the headers that a command takes, in one pass: most requests have few of them."""
    given: dict[bytes, list[str]] = {}
    for name, value in request.scope["headers"]:
        if name in _TAKEN:
            given.setdefault(name, []).append(value.decode("latin-1"))
    return given


def if_match_of(request: Request) -> str | None:
    """The If-Match of ``request``; several header lines are one list (RFC 9110 §5.3)."""
    return _if_match(_given(request))


def _if_match(given: Mapping[bytes, Sequence[str]]) -> str | None:
    lines = given.get(b"if-match")
    return ", ".join(lines) if lines else None


def check_no_if_match(headers: CommandHeaders) -> None:
    """Creations, lists and imports have no one version to match."""
    if headers.has_if_match:
        raise Problem("if-match-not-applicable", "This request does not change one existing resource.")


def _actor(headers: Sequence[str]) -> str:
    if not headers or list(headers) == [""]:
        return "anonymous"
    if len(headers) > 1 or _VISIBLE.fullmatch(headers[0]) is None:
        raise invalid("/header/X-Actor", "one opaque subject of 1 to 128 visible ASCII characters")
    return headers[0]


def _idempotency_key(headers: Sequence[str]) -> str | None:
    if not headers:
        return None
    if len(headers) > 1 or _KEY.fullmatch(headers[0]) is None:
        raise invalid("/header/Idempotency-Key", "one key of 1 to 255 ASCII characters")
    return headers[0]


def _versions(if_match: str) -> Sequence[int] | None:
    """RFC 9110 §13.1.1: strong comparison, so that a weak tag never matches."""
    if if_match.strip() == "*":
        return None
    versions = []
    for part in if_match.split(","):
        tag = _ENTITY_TAG.fullmatch(part.strip())
        if tag is None:
            raise invalid("/header/If-Match", 'a list of entity tags such as "3", or *')
        version = _VERSION_TAG.fullmatch(tag[2])
        if version and not tag[1]:
            versions.append(int(version[1]))
    return versions


def _wait_seconds(headers: Sequence[str]) -> int:
    """RFC 7240: a preference that is not understood is ignored."""
    for preference in ",".join(headers).split(",") if headers else ():
        if wait := _WAIT.fullmatch(preference.partition(";")[0].strip()):
            return min(int(wait[1]), WAIT_MAX_SECONDS)
    return 0
