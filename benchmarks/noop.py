"""``python -m benchmarks.noop PORT``: FastAPI doing nothing, the most that an API of ours could reach.

The routes, the body's model and the size of what is read are ours; there is nothing behind them.
"""

import sys

from fastapi import FastAPI
from pydantic_core import to_json
from starlette.responses import Response

from benchmarks.served import serve_on
from command_api.routes.equipment import RegisterEquipmentBody

EQUIPMENT = {
    "code": "0000001-AE",
    "vessel_code": "BENCH",
    "name": "PH 1ST STAGE SCRUBBER INLET",
    "location": "23-1ST STAGE COMPRESSION",
    "attributes": {"parent_code": "23-VG-9101"},
    "status": "active",
    "version": 1,
    "position": 1_000_000,
}
"""As `benchmarks.audit.append_equipment` leaves it."""

app = FastAPI()
_found = Response(to_json(EQUIPMENT), media_type="application/json")


@app.post("/v1/vessels/{code}/equipment")
async def register_equipment(code: str, body: RegisterEquipmentBody) -> Response:  # noqa: ARG001
    """Register nothing."""
    return Response(status_code=201)


@app.get("/v1/equipment/{code}")
async def equipment(code: str) -> Response:  # noqa: ARG001
    """Answer what was made before."""
    return _found


if __name__ == "__main__":
    serve_on(int(sys.argv[1]), app)
