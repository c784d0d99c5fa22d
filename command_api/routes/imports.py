"""The import of a file of equipment: HTTP -> rows -> command -> answer."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from command_api.bodies import FILES, IMPORT_MAX_BYTES, check_content_type, content_type_of, pieces_of
from command_api.commands import ImportEquipment
from command_api.dispatcher import RETRY_AFTER, Dispatcher
from command_api.headers import check_no_if_match, command_headers
from command_api.idempotency import Fingerprint
from command_api.resources import ImportedResource, imported_answer
from command_api.routes.documentation import changes_many
from command_api.rows import READERS, Rows, decoded_lines
from infra.access.admission import require_admitted
from infra.problems import Problem, invalid, pointer_of
from infra.routing import Route
from infra.web import PathCode

IMPORTS_MAX = 2
"""As many imports a process works on at a time, to their answer; each takes the memory of its rows."""
PIECE_TIMEOUT = 30.0  # seconds
BODY_TIMEOUT = 300.0  # seconds; 64 MiB at 2 Mbit/s

router = APIRouter(prefix="/v1/vessels", tags=["equipment"], route_class=Route)

_CSV_EXAMPLE = (
    "code,name,location,manufacturer,active\n23-KA-9101,Compressor,23-1ST STAGE COMPRESSION-PH,ACME,true\n"
)
_NDJSON_EXAMPLE = '{"code": "23-KA-9101", "name": "Compressor", "location": "23-1ST STAGE", "active": true}\n'
_DOCUMENTED = changes_many(ImportedResource, "vessel-not-found", "vessel-decommissioned", "import-rejected")
_DOCUMENTED["openapi_extra"]["requestBody"] = {
    "required": True,
    "description": "Columns other than code, name, location and active become attributes; active = false "
    "registers and deactivates. A file with exactly the members of a downloaded equipment is read as one: "
    "attributes from their JSON, active from the status. Up to 100,000 rows and 64 MiB, UTF-8.",
    "content": {
        "text/csv": {"schema": {"type": "string"}, "example": _CSV_EXAMPLE},
        "application/x-ndjson": {"schema": {"type": "string"}, "example": _NDJSON_EXAMPLE},
    },
}


@router.post("/{code}/equipment/import", **_DOCUMENTED)
async def import_equipment(
    code: PathCode, request: Request, on_error: Literal["reject", "skip"] = "reject"
) -> Response:
    """Register a file of equipment on a vessel: all of it, or with `on_error=skip` the good rows."""
    for name in request.query_params.keys() - {"on_error"}:
        raise invalid(pointer_of(("query", name)), "there is no such parameter")
    check_content_type(request, FILES)
    content_type = content_type_of(request)
    if content_type not in READERS:
        raise invalid("", "a file is required, as text/csv or application/x-ndjson")
    headers = command_headers(request)
    check_no_if_match(headers)
    headers.caller.require_vessel(code)  # before a file is read that nothing would be done with
    slots: asyncio.Semaphore = request.app.state.import_slots
    if slots.locked():
        raise Problem("overloaded", "other imports are under way; nothing was changed", headers=RETRY_AFTER)
    async with slots:
        fingerprint = Fingerprint(request)
        rows, problems = await _read(request, fingerprint, content_type, code)
        command = ImportEquipment(code, rows, problems, skips_problems=on_error == "skip")
        require = partial(require_admitted, request.scope)
        dispatcher = Dispatcher(request.app.state.commands, headers, fingerprint.digest, require)
        return await dispatcher.execute(command, imported_answer)


async def _read(request: Request, fingerprint: Fingerprint, content_type: str, vessel_code: str) -> Rows:
    """The rows of the file, read while it arrives."""
    threads: ThreadPoolExecutor = request.app.state.import_threads
    async with _in_time():
        pieces = pieces_of(request, IMPORT_MAX_BYTES)
        lines = decoded_lines(_from_thread(pieces, fingerprint))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(threads, READERS[content_type], lines, vessel_code)


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    """A slow sender must not keep the others from importing."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            yield
    except TimeoutError:
        raise invalid("", f"the body was not whole within {BODY_TIMEOUT:g} s") from None


def _from_thread(pieces: AsyncIterator[bytes], fingerprint: Fingerprint) -> Callable[[], bytes]:
    """A function that a thread calls for the next piece of the body; the event loop receives it."""
    loop = asyncio.get_running_loop()

    async def receive() -> bytes:
        try:
            async with asyncio.timeout(PIECE_TIMEOUT):
                piece = await anext(pieces, b"")
        except TimeoutError:
            raise invalid("", f"nothing of the body came for {PIECE_TIMEOUT:g} s") from None
        fingerprint.add(piece)
        return piece

    return lambda: asyncio.run_coroutine_threadsafe(receive(), loop).result()
