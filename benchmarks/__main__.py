"""``python -m benchmarks``, which is `make bench`: measure, print a table, write results.json and a picture.

All of it, or only what is named, as in ``make bench ARGS="relay feed"``; see ``MEASUREMENTS``.

Ours and the reference take turns in one run, on one PostgreSQL with fsync on, so a machine whose speed drifts
does not favour either; the medians of all rounds are compared.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from benchmarks import (
    audit,
    commands,
    feed,
    imports,
    load_generator,
    overload,
    picture,
    projection,
    publishing,
    queries,
    readable,
)
from benchmarks.figures import HEADING, Figure, row
from infra.local import clean
from infra.local.process import Unavailable
from infra.local.system import Options, System

RESULTS = Path(__file__).parent / "results.json"
COMMANDS_ALONE = {"relay": 0, "projector": 0, "query_api": 0}


def main(chosen: Sequence[str]) -> None:
    """Measure everything, or what is named; what is not measured now keeps its last result."""
    if unknown := [name for name in chosen if name not in MEASUREMENTS]:
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(MEASUREMENTS)}")
    results = {one["name"]: one for one in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    print(HEADING, flush=True)
    for name in chosen or MEASUREMENTS:
        try:
            for one in MEASUREMENTS[name]():
                results[one.name] = asdict(one)
                # Each at once: a run that is interrupted keeps what it has.
                RESULTS.write_text(json.dumps(list(results.values()), indent=2) + "\n")
                print(row(one), flush=True)
        except Unavailable as error:
            print(f"{name:<30} not measured: {error}", flush=True)
    picture.PICTURE.write_text(picture.draw([Figure(**one) for one in results.values()]))


def _import() -> Iterator[Figure]:
    with _system(COMMANDS_ALONE) as system:
        yield imports.import_vs_copy(system)


def _memory_import() -> Iterator[Figure]:
    with _system(COMMANDS_ALONE) as system:
        yield imports.memory_import(system)


def _relay() -> Iterator[Figure]:
    with _system({"projector": 0, "query_api": 0}, with_broker=True) as system:
        yield publishing.relay_vs_bare_publish(system)


def _projection() -> Iterator[Figure]:
    with _system({"relay": 0, "query_api": 0}) as system:
        yield from projection.catching_up_and_rebuilding(system)


def _memory_rebuild() -> Iterator[Figure]:
    with _system({"relay": 0, "query_api": 0}) as system:
        yield projection.memory_rebuild(system)


def _feed() -> Iterator[Figure]:
    with _system({}, with_broker=True) as system:
        yield feed.fan_out(system)


def _audit() -> Iterator[Figure]:
    with _system({"projector": 0, "query_api": 0}) as system:
        yield audit.sealing_beside_commands(system)
    with _system({}) as system:
        yield from audit.proofs_and_verification(system)


def _load_generator() -> Iterator[Figure]:
    yield load_generator.load_generator()


def _commands() -> Iterator[Figure]:
    with _system(COMMANDS_ALONE) as system:
        yield from commands.one_process(system)


def _whole_system() -> Iterator[Figure]:
    with _system({}, with_broker=True) as system:
        yield commands.whole_system(system)


def _growth_append() -> Iterator[Figure]:
    with _system(COMMANDS_ALONE) as small, _system(COMMANDS_ALONE) as large:
        yield commands.growth_append(small, large)


def _readable() -> Iterator[Figure]:
    with _system({}, with_broker=True) as system:
        yield from readable.readable(system)


def _queries() -> Iterator[Figure]:
    with _system({"relay": 0}) as system:
        yield from queries.queries(system)


def _growth() -> Iterator[Figure]:
    with _system({"relay": 0}) as small, _system({"relay": 0}) as large:
        yield from queries.growth(small, large)


def _overload() -> Iterator[Figure]:
    overload.allow_sockets()
    with _system(COMMANDS_ALONE) as system:
        yield overload.overload(system)


MEASUREMENTS = {
    "load_generator": _load_generator,
    "commands": _commands,
    "whole_system": _whole_system,
    "growth_append": _growth_append,
    "queries": _queries,
    "growth": _growth,
    "readable": _readable,
    "overload": _overload,
    "import": _import,
    "memory_import": _memory_import,
    "relay": _relay,
    "projection": _projection,
    "memory_rebuild": _memory_rebuild,
    "feed": _feed,
    "audit": _audit,
}


@contextmanager
def _system(replicas: Mapping[str, int], *, with_broker: bool = False) -> Iterator[System]:
    """A fresh system, by default without a broker."""
    directory = Path(tempfile.mkdtemp(prefix="fpso-benchmarks-"))
    try:
        options = Options(with_broker=with_broker, replicas={"delivery": 0, **replicas})
        with System(directory, options) as system:
            if with_broker and not system.amqp_url:
                raise Unavailable("RabbitMQ is not installed")
            yield system
    finally:
        clean.remove(directory)


if __name__ == "__main__":
    main(sys.argv[1:])
