"""``python -m benchmarks.library PORT DATABASE_URL``: registering equipment with the `eventsourcing` library.

Used as its documentation shows: aggregates with `@event`, ids made of names, an `Application` with the
PostgreSQL module and a cache of aggregates, a synchronous route, so a thread and a transaction per command.
Its tables, its lock and its settings are its own; the body's model, the answer and the server are ours.
"""

import sys
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, UUID, uuid5

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from fastapi import FastAPI
from pydantic_core import to_json
from starlette.responses import Response

from benchmarks.served import serve_on
from command_api.routes.equipment import RegisterEquipmentBody


class Vessel(Aggregate):
    """A vessel in service."""

    @event("Registered")
    def __init__(self, code: str) -> None:
        self.code = code

    @staticmethod
    def create_id(code: str) -> UUID:
        """The id of the vessel of that code."""
        return uuid5(NAMESPACE_URL, f"/vessel/{code}")


class Equipment(Aggregate):
    """One piece of equipment; active, as all that is new."""

    @event("Registered")
    def __init__(
        self, code: str, vessel_code: str, name: str, location: str, attributes: dict[str, str]
    ) -> None:
        self.code = code
        self.vessel_code = vessel_code
        self.name = name
        self.location = location
        self.attributes = attributes

    @staticmethod
    def create_id(code: str) -> UUID:
        """The id of the equipment of that code: saving a second one of it is an `IntegrityError`."""
        return uuid5(NAMESPACE_URL, f"/equipment/{code}")


class Fleet(Application[UUID]):
    """Vessels and their equipment."""

    def register_vessel(self, code: str) -> None:
        """Register a vessel."""
        self.save(Vessel(code))

    def register_equipment(self, vessel_code: str, body: RegisterEquipmentBody) -> tuple[Equipment, int]:
        """Register equipment on a vessel; where it stands in the store, too."""
        vessel: Vessel = self.repository.get(Vessel.create_id(vessel_code))
        equipment = Equipment(body.code, vessel.code, body.name, body.location, body.attributes)
        (recording,) = self.save(equipment)
        return equipment, recording.notification.id


def create_app(fleet: Fleet) -> FastAPI:
    """The route."""
    app = FastAPI()

    @app.post("/v1/vessels/{code}/equipment")
    def register_equipment(code: str, body: RegisterEquipmentBody) -> Response:
        equipment, position = fleet.register_equipment(code, body)
        answer = {
            "code": equipment.code,
            "vessel_code": equipment.vessel_code,
            "name": equipment.name,
            "location": equipment.location,
            "attributes": equipment.attributes,
            "status": "active",
            "version": equipment.version,
            "position": position,
        }
        headers = {
            "Event-Position": str(position),
            "ETag": f'"{equipment.version}"',
            "Location": f"/v1/equipment/{equipment.code}",
        }
        return Response(to_json(answer), 201, headers, "application/json")

    return app


def environment(database_url: str) -> dict[str, str]:
    """The library's settings: its PostgreSQL module and a cache, and what it has by default."""
    url = urlsplit(database_url)
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": url.path.lstrip("/"),
        "POSTGRES_HOST": url.hostname or "",
        "POSTGRES_PORT": str(url.port or 5432),
        "POSTGRES_USER": url.username or "",
        "POSTGRES_PASSWORD": url.password or "",
        "AGGREGATE_CACHE_MAXSIZE": "1000",
    }


if __name__ == "__main__":
    with Fleet(environment(sys.argv[2])) as fleet:
        fleet.register_vessel("BENCH")
        serve_on(int(sys.argv[1]), create_app(fleet))
