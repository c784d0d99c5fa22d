"""What a query costs: one piece of equipment against FastAPI doing nothing, a page against its statement."""

import subprocess
import sys
from collections.abc import Iterator

import psycopg

from benchmarks import wrk
from benchmarks.audit import append_equipment, wait
from benchmarks.figures import ROUNDS, Figure, figure
from benchmarks.load import register_vessel
from benchmarks.served import served
from infra.local.system import System

WARM_UP_SECONDS = 2
SMALL = (5, 200)
MIDDLE = (10, 1_000)
LARGE = (50, 20_000)
"""Vessels, and pieces of equipment on each: a page of a vessel is never its last."""

ONE = "/v1/equipment/%07d-AE"
PAGE = "/v1/vessels/V%02d/equipment?status=active"


def queries(system: System) -> Iterator[Figure]:
    """A query API and PostgreSQL, while everything else is idle."""
    _fill(system, MIDDLE)
    vessels, pieces = MIDDLE
    assert system.query_api.http_url
    url, database_url = system.query_api.http_url, system.url_as("fpso_query")
    ones, nothing, pages, straight = [], [], [], []
    with served("benchmarks.noop") as noop:
        for each in (url, noop):
            wrk.get(each, ONE, vessels * pieces, WARM_UP_SECONDS)
        wrk.get(url, PAGE, vessels, WARM_UP_SECONDS)
        for _ in range(ROUNDS):
            ones.append(wrk.get(url, ONE, vessels * pieces).per_second)
            nothing.append(wrk.get(noop, ONE, vessels * pieces).per_second)
            pages.append(wrk.get(url, PAGE, vessels).per_second)
            straight.append(_straight(database_url, vessels))
    yield figure("get_vs_noop", ones, nothing, goal=0.45, better="higher", unit="requests/s")
    yield figure("list_vs_sql", pages, straight, goal=0.5, better="higher", unit="pages/s")


def growth(small: System, large: System) -> Iterator[Figure]:
    """With 1,000,000 events stored and projected, against 1,000.

    On two systems that take turns, so that neither profits from when it was measured; the one that has not
    its turn is idle.
    """
    _fill(small, SMALL)
    _fill(large, LARGE)
    _one_and_page(small, SMALL, WARM_UP_SECONDS)
    _one_and_page(large, LARGE, WARM_UP_SECONDS)
    rounds = [
        (*_one_and_page(large, LARGE, wrk.SECONDS), *_one_and_page(small, SMALL, wrk.SECONDS))
        for _ in range(ROUNDS)
    ]
    ones, pages, ones_before, pages_before = zip(*rounds, strict=True)
    yield figure("growth_get", ones, ones_before, goal=0.9, better="higher", unit="requests/s")
    yield figure("growth_list", pages, pages_before, goal=0.9, better="higher", unit="pages/s")


def _one_and_page(system: System, size: tuple[int, int], seconds: int) -> tuple[float, float]:
    """Requests a second for one piece of equipment, and for a page of a vessel's."""
    vessels, pieces = size
    url = system.query_api.http_url
    assert url
    return (
        wrk.get(url, ONE, vessels * pieces, seconds).per_second,
        wrk.get(url, PAGE, vessels, seconds).per_second,
    )


def _fill(system: System, size: tuple[int, int]) -> None:
    """Vessels whose equipment came in one import each, and all that is read as it is some time later."""
    vessels, pieces = size
    assert system.command_api.http_url
    with psycopg.connect(system.database_url, autocommit=True) as connection:
        for number in range(vessels):
            vessel = f"V{number:02d}"
            register_vessel(system.command_api.http_url, vessel)
            codes = range(number * pieces, (number + 1) * pieces)
            append_equipment(connection, [f"{code:07d}-AE" for code in codes], vessel)
        wait(system, "SELECT min(position) FROM read_model.checkpoints")
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


def _straight(database_url: str, vessels: int) -> float:
    """Pages a second of `benchmarks.listing`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.listing", database_url, str(vessels), str(wrk.SECONDS)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
