"""What schemathesis is told of this API that its document cannot say. Loaded by schemathesis, not by pytest."""

import re
from secrets import token_hex
from typing import Any

import schemathesis
from schemathesis.core.failures import Failure

SEEDED = 40
"""A position that the system has reached before it is tried."""
WAITS = (("min_position", 2**63 - 1, SEEDED), ("wait", 30, 0))
"""Parameters that may ask for patience, up to which value, and for how much it is asked here."""

# Rules that hold between two values, or between a value and what there is.
BEYOND_SCHEMA = re.compile(
    "the cursor is not one that this list, with these filters, has given"
    "|as_of and version both name a moment|from is larger than to|is earlier than|is in the future"
    "|the tree has not grown so far|an amount has at most|a currency is an ISO 4217 code|a list of entity tags"
    "|a code never contains the (invisible )?character|control characters such as"
    r"|a pattern has|patterns$|a \* stands|a code has at (least|most)|a code is not|there is no such time"
    "|at least 1 character"
)
_KEY = re.compile("(?=.{1,255}$)[!-~]([ -~]*[!-~])?")


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Ask for no more patience than there is, and let no two requests be one by their key."""
    for name, most, instead in WAITS:
        given = str(case.query.get(name, ""))
        if given.isdecimal() and instead < int(given) <= most:
            case.query[name] = instead
    key = str(case.headers.get("Idempotency-Key", ""))
    if _KEY.fullmatch(key):
        case.headers["Idempotency-Key"] = key[:239] + token_hex(8)


@schemathesis.hook
def filter_failure(context: Any, failure: Failure, case: Any, response: Any) -> bool:
    """Whether a failure is one."""
    if response.status_code == 503:  # declared wherever it is answered, or it would be an undeclared status
        return "retry-after" not in response.headers
    is_file = case.path.endswith("/import")  # what one has to have, no schema says
    if failure.title == "Schema-valid request rejected":
        if response.status_code == 412 or is_file:  # the version is another one
            return False
        faults = response.json().get("errors", [])
        return not faults or not all(BEYOND_SCHEMA.search(fault["detail"]) for fault in faults)
    if failure.title == "Schema-violating request accepted":
        return not is_file and "`X-Actor`" not in failure.message  # with access control that is ignored
    # A piece of equipment may be called `activate`, and its path has the methods of equipment then.
    return not (failure.title == "Allow header mismatch" and case.path.endswith("activate"))


@schemathesis.serializer("application/x-ndjson")
def ndjson(context: Any, value: Any) -> bytes:
    """A file is sent as it is."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
