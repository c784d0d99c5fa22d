"""Two command APIs at once: one code is registered once, and a decommissioned vessel gains nothing."""

import asyncio
from secrets import token_hex
from urllib.parse import quote

import httpx

from infra.local.system import System
from tests.system.client import Client


async def test_one_code_registered_200_times_at_once_is_registered_once(
    system: System, fpso: Client, vessel: str
) -> None:
    code = f"RACE {token_hex(4)}"
    body = {"code": code, "name": "n", "location": "l"}
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        answers = await asyncio.gather(
            *(
                client.post(f"{api.http_url}/v1/vessels/{quote(vessel)}/equipment", json=body)
                for _ in range(100)
                for api in system.services["command_api"]
            )
        )
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(201) == 1
    assert statuses.count(409) == 199
    (created,) = [answer for answer in answers if answer.status_code == 201]
    listed = fpso.get(
        f"/v1/vessels/{quote(vessel)}/equipment", min_position=created.headers["Event-Position"]
    )
    assert listed.json()["items"] == [created.json()]


async def test_a_vessel_that_is_decommissioned_gains_nothing_afterwards(system: System, vessel: str) -> None:
    one, other = system.services["command_api"]
    mark = token_hex(4)
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:

        async def register(number: int) -> httpx.Response:
            body = {"code": f"{mark}-{number}", "name": "n", "location": "l"}
            return await client.post(f"{other.http_url}/v1/vessels/{quote(vessel)}/equipment", json=body)

        async def decommission() -> httpx.Response:
            return await client.post(f"{one.http_url}/v1/vessels/{quote(vessel)}/decommission")

        await register(0)  # the other API remembers the vessel as it was
        registering = [asyncio.create_task(register(number)) for number in range(1, 51)]
        done = await decommission()
        registering += [asyncio.create_task(register(number)) for number in range(51, 60)]
        answers = await asyncio.gather(*registering)
    assert done.status_code == 200
    last = int(done.headers["Event-Position"])
    for answer in answers:
        if answer.status_code == 201:
            assert int(answer.headers["Event-Position"]) < last
        else:
            assert answer.json()["type"] == "/problems/vessel-decommissioned"
    assert answers[-1].status_code == 409
