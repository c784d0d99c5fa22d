"""``fpso``, the command line: over HTTP where it can, else ``python -m`` of the module that does the work.

The settings are FPSO_* variables of the environment, else those that ``make run`` left in ``.fpso/env`` of
the current folder. Exit codes: 0 done, 1 refused, 2 wrong usage, 3 the system cannot be reached. Libraries
are imported by the command that needs them, so that ``fpso --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import quote, urlsplit

import click

if TYPE_CHECKING:
    import asyncio

    import httpx
    from aio_pika.abc import AbstractConnection, AbstractIncomingMessage
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from events.event import Event

ENV_FILE = Path(".fpso/env")
"""Where `make run` says how the running system is reached."""
DEFAULT_PORT = "8088"

CONNECT_TIMEOUT = 5.0  # seconds
ANSWER_TIMEOUT = 300.0  # seconds; an import of 100,000 rows is one commit
PIECE_BYTES = 64 * 1024
ROWS_SHOWN = 50
"""As many rows of a long table are printed."""
PREFETCH = 500  # messages

MEDIA_TYPES = {".csv": "text/csv", ".ndjson": "application/x-ndjson", ".jsonl": "application/x-ndjson"}
NOT_RUNNING = "Is the system running? `make run` starts it; --url or FPSO_GATEWAY_URL says where it is."

Function = TypeVar("Function", bound=Callable[..., Any])


class Refused(click.ClickException):
    """The system answered, and the answer was no."""

    exit_code = 1


class Unreachable(click.ClickException):
    """Nothing that belongs to the system answered."""

    exit_code = 3


class ProblemAnswered(Refused):
    """The answer is a problem (RFC 9457); it is shown as a person would want to read it."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        super().__init__(str(problem.get("title", "The request was refused")))
        self.problem = problem

    @property
    def slug(self) -> str:
        """Which problem it is."""
        return str(self.problem.get("type", "")).rpartition("/")[2]

    def show(self, file: IO[Any] | None = None) -> None:
        """Print title, detail and what is wrong where."""
        from rich.text import Text

        console = _console(file or sys.stderr)
        console.print(Text(self.message, style="bold red"), Text(f"({self.slug})", style="dim"))
        if detail := self.problem.get("detail"):
            console.print(Text(str(detail)))
        errors = self.problem.get("errors") or []
        if errors and "line" in errors[0]:
            total = int(self.problem.get("total", len(errors)))
            console.print(_rows_table(errors))
            _print_rest(console, total, "faulty")
            return
        for error in errors:
            console.print(Text(f"  {error.get('pointer') or '(body)'}: {error.get('detail')}"))


def settings() -> Mapping[str, str]:
    """FPSO_* variables: of `.fpso/env`, overridden by the environment's."""
    lines = ENV_FILE.read_text().splitlines() if ENV_FILE.is_file() else []
    pairs = (
        line.removeprefix("export ").partition("=") for line in lines if line.startswith(("FPSO_", "export "))
    )
    found = {name.strip(): value.strip().strip("'\"") for name, _, value in pairs}
    return found | {name: value for name, value in os.environ.items() if name.startswith("FPSO_")}


def gateway_url(url: str | None) -> str:
    """Where the gateway is: ``--url``, FPSO_GATEWAY_URL, or this machine at FPSO_PORT."""
    known = settings()
    port = known.get("FPSO_PORT") or DEFAULT_PORT
    return (url or known.get("FPSO_GATEWAY_URL") or f"http://127.0.0.1:{port}").rstrip("/")


def with_url(command: Function) -> Function:
    """The option that says which system a command talks to."""
    return click.option("--url", metavar="URL", help="The gateway; default FPSO_GATEWAY_URL.")(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fpso-system", prog_name="fpso")
def main() -> None:
    """FPSO System: vessels, their equipment, and every event that made them what they are.

    Reads .fpso/env of the current folder, which `make run` writes; FPSO_* environment variables win over it.
    """


@main.command()
def up() -> None:
    """Run the whole system on this machine until Ctrl-C (what `make run` does)."""
    _become("infra.local.supervisor", os.environ)


@main.command()
def migrate() -> None:
    """Bring the databases up to date, as their owner (FPSO_DATABASE_URL)."""
    _become("infra.migrations", {**os.environ, **settings()})


def _become(module: str, environment: Mapping[str, str]) -> NoReturn:
    """Turn into ``python -m module``: signals and the exit code are its own."""
    os.execve(sys.executable, [sys.executable, "-m", module], environment)  # noqa: S606 - no shell is wanted


# --- import -----------------------------------------------------------------------------------------------


@main.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--vessel", required=True, metavar="CODE", help="The vessel that the equipment belongs to.")
@click.option(
    "--on-error",
    type=click.Choice(["reject", "skip"]),
    default="reject",
    show_default=True,
    help="What a faulty row does: the whole file is rejected, or the row is skipped.",
)
@click.option("--register", is_flag=True, help="Register the vessel first, where it is not there yet.")
@with_url
def import_file(file: Path, vessel: str, on_error: str, register: bool, url: str | None) -> None:
    """Register the equipment of FILE (.csv or .ndjson) on a vessel: all of it, or nothing.

    Repeating the same import is safe: it is carried out once, and the first answer is shown again.
    """
    media_type = MEDIA_TYPES.get(file.suffix.lower())
    if media_type is None:
        raise click.UsageError(f"{file}: the name must end in {', '.join(MEDIA_TYPES)}")
    with _client(url) as client:
        if register:
            _register(client, vessel)
        headers = {
            "Content-Type": media_type,
            "Content-Length": str(file.stat().st_size),
            "Idempotency-Key": _idempotency_key(file, vessel, on_error),
        }
        with _sent(file) as pieces:
            answer = client.post(
                f"/v1/vessels/{quote(vessel, safe='')}/equipment/import",
                params={"on_error": "skip"} if on_error == "skip" else None,
                headers=headers,
                content=pieces,
            )
    _print_imported(_checked(answer).json(), is_replay="Idempotency-Replayed" in answer.headers)


def _register(client: httpx.Client, vessel: str) -> None:
    try:
        _checked(client.post("/v1/vessels", json={"code": vessel}))
    except ProblemAnswered as answered:
        if answered.slug != "vessel-already-registered":
            raise


def _idempotency_key(file: Path, vessel: str, on_error: str) -> str:
    """The same for the same content, vessel and choice: the same import."""
    digest = sha256(f"{vessel}\n{on_error}\n".encode())
    with file.open("rb") as content:
        while piece := content.read(PIECE_BYTES):
            digest.update(piece)
    return f"import-{digest.hexdigest()}"


@contextmanager
def _sent(file: Path) -> Iterator[Iterator[bytes]]:
    """The pieces of ``file``, with a progress bar that moves as they are sent."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console(sys.stderr)) as progress, file.open("rb") as content:
        task = progress.add_task(f"sending {file.name}", total=file.stat().st_size)
        yield _pieces(content, progress, task)
        progress.update(task, description=f"sent {file.name}")


def _pieces(content: IO[bytes], progress: Progress, task: TaskID) -> Iterator[bytes]:
    while piece := content.read(PIECE_BYTES):
        yield piece
        progress.advance(task, len(piece))
    progress.update(task, description="registering")


def _print_imported(imported: Mapping[str, Any], *, is_replay: bool) -> None:
    console = _console()
    if is_replay:
        console.print("[yellow]This file was imported before; the first answer was:[/]")
    skipped = imported["skipped"]
    for name, count in (
        ("registered", imported["registered"]),
        ("deactivated", imported["deactivated"]),
        ("skipped", len(skipped)),
        ("position", imported["position"]),
    ):
        console.print(f"{name:<12} [bold]{count:>9,}[/]")
    if skipped:
        console.print(_rows_table(skipped))
        _print_rest(console, len(skipped), "skipped")


def _rows_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("line", justify="right")
    table.add_column("code")
    table.add_column("problem")
    table.add_column("detail", overflow="fold")
    for row in rows[:ROWS_SHOWN]:
        cells = (row.get("code"), row.get("problem"), row.get("detail"))
        table.add_row(
            Text(str(row["line"]), style="bold"), *(Text("" if cell is None else str(cell)) for cell in cells)
        )
    return table


def _print_rest(console: Console, total: int, kind: str) -> None:
    if total > ROWS_SHOWN:
        console.print(f"… the first {ROWS_SHOWN} of {total:,} {kind} rows", style="dim")


# --- projection -------------------------------------------------------------------------------------------


@main.group()
def projection() -> None:
    """The read model: how far it has got."""


@projection.command()
@click.option("--json", "as_json", is_flag=True, help="Print the answer of GET /v1/projection as it is.")
@with_url
def status(as_json: bool, url: str | None) -> None:
    """How far the read model is behind the event store."""
    with _client(url) as client:
        answer = _checked(client.get("/v1/projection"))
    if as_json:
        click.echo(answer.text)
        return
    _print_projection(answer.json())


def _print_projection(found: Mapping[str, Any]) -> None:
    console = _console()
    colour = {"following": "green", "catching-up": "yellow"}.get(found["state"], "red")
    lines = {
        "state": f"[bold {colour}]{found['state']}[/]",
        "checkpoint": f"{found['checkpoint']:,}",
        "head": f"{found['head']:,} (observed {found['head_observed_at']})",
        "lag": f"{found['lag_events']:,} events, {found['lag_seconds']:g} s",
        "epoch": f"{found['epoch']}",
    }
    if stopped := found.get("stopped_at"):
        lines["stopped at"] = f"{stopped['position']:,} {stopped['type']}: {stopped['cause']}"
    if rebuild := found.get("rebuild"):
        lines["rebuild"] = f"{rebuild['percent']:g} % ({rebuild['position']:,} of {rebuild['target']:,})"
    for name, value in lines.items():
        console.print(f"{name:<12} {value}")


# --- tail -------------------------------------------------------------------------------------------------


class _NobodyReads(Exception):
    """Standard output is a pipe whose reader has gone."""


@main.command()
@click.option(
    "--type",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Only events of this type; it may end in *. Several may be given.",
)
@click.option(
    "--from",
    "from_position",
    type=click.IntRange(min=1),
    metavar="POSITION",
    help="Begin with what happened at this position or later, not with what happens now.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@click.option("--json", "as_json", is_flag=True, help="One CloudEvent in JSON format a line.")
def tail(patterns: tuple[str, ...], from_position: int | None, count: int | None, as_json: bool) -> None:
    """Show events as they happen, until Ctrl-C."""
    import asyncio
    import logging

    if any("*" in pattern[:-1] for pattern in patterns):
        raise click.UsageError("--type: a * stands at the end only, as in 'fpso.equipment.*'")
    amqp_url = settings().get("FPSO_AMQP_URL")
    if not amqp_url:
        raise Unreachable(
            "There is no broker to follow: FPSO_AMQP_URL is empty. Where the system runs without RabbitMQ, "
            "events are in the read model all the same."
        )
    for library in ("aio_pika", "aiormq"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # what they would log is said in one line below
    try:
        asyncio.run(_tail(amqp_url, patterns, from_position, count, as_json=as_json))
    except KeyboardInterrupt:
        return  # the way to end it
    except _NobodyReads:
        # `fpso tail | head` has what it wanted; Python would flush into the closed pipe once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _tail(
    amqp_url: str, patterns: Sequence[str], from_position: int | None, count: int | None, *, as_json: bool
) -> None:
    from aio_pika.exceptions import ChannelNotFoundEntity

    from infra import broker

    shown, last = 0, (from_position or 1) - 1
    try:
        async with broker.connected(amqp_url, "fpso tail") as connection, broker.refusals():
            delivered = await _streamed(connection, is_from_first=from_position is not None)
            while (message := await delivered.get()) is not None:
                await message.ack()
                event = _event_of(message)
                # What was published twice after a failure of the broker is shown once.
                if event is None or event.position <= last:
                    continue
                last = event.position
                if patterns and not any(_matches(event.type, pattern) for pattern in patterns):
                    continue
                _print_event(event, as_json=as_json)
                shown += 1
                if shown == count:
                    return
        raise Unreachable("The broker closed the connection.")
    except broker.BrokerUnavailable as error:
        if isinstance(error.__cause__, ChannelNotFoundEntity):
            raise Unreachable(f"The broker has no {broker.STREAM_QUEUE} yet: does the relay run?") from None
        raise Unreachable(f"The broker at {_address(amqp_url)} cannot be followed: {error}") from None


async def _streamed(
    connection: AbstractConnection, *, is_from_first: bool
) -> asyncio.Queue[AbstractIncomingMessage | None]:
    """What the stream delivers until the connection is closed, and None where the broker ends it.

    aio-pika's iterator of a queue is not used: when it ends, it refuses (``basic.nack``) what it has not
    given out, which a stream answers by closing the connection.
    """
    import asyncio

    from infra import broker

    # As many as may be out unacknowledged, and the end.
    delivered: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue(PREFETCH + 1)

    def end(*_: object) -> None:
        if not delivered.full():
            delivered.put_nowait(None)

    channel = await connection.channel()
    channel.close_callbacks.add(end)
    (await channel.get_underlay_channel()).on_consumer_cancel_callbacks.add(end)
    await channel.set_qos(prefetch_count=PREFETCH)
    stream = await channel.get_queue(broker.STREAM_QUEUE, ensure=True)
    # A consumer of a stream says where to begin; `next` is what comes from now on.
    await stream.consume(delivered.put, arguments={"x-stream-offset": "first" if is_from_first else "next"})
    return delivered


def _event_of(message: AbstractIncomingMessage) -> Event | None:
    """The event of ``message``; one that is not ours is only mentioned."""
    from events.catalogue import Undecodable
    from events.cloudevents import event_of_message

    try:
        return event_of_message(message.headers, message.body)
    except Undecodable as error:
        click.echo(str(error), err=True)
        return None


def _matches(event_type: str, pattern: str) -> bool:
    return event_type.startswith(pattern[:-1]) if pattern.endswith("*") else event_type == pattern


def _print_event(event: Event, *, as_json: bool) -> None:
    from pydantic_core import to_json
    from rich.text import Text

    from events.cloudevents import json_of
    from events.values import time_text

    if as_json:
        _write_line(to_json(json_of(event)).decode())
        return
    colour = "cyan" if event.type.startswith("fpso.vessel.") else "green"
    line = Text.assemble(
        (f"{event.position:>8}", "bold"),
        " ",
        (time_text(event.occurred_at), "dim"),
        " ",
        (event.type, colour),
        " ",
        (f"{event.stream}/{event.version}", "bold"),
        " ",
        to_json(event.data).decode(),
        " ",
        (event.metadata.actor, "dim"),
    )
    console = _console()
    with console.capture() as captured:
        console.print(line, soft_wrap=True, end="")
    _write_line(captured.get())


def _write_line(line: str) -> None:
    try:
        click.echo(line)
    except BrokenPipeError:
        raise _NobodyReads from None


def _address(url: str) -> str:
    """Host and port of ``url``, without the password that it has."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 5672}"


# --- talking to the gateway -------------------------------------------------------------------------------


@contextmanager
def _client(url: str | None) -> Iterator[httpx.Client]:
    """A client of the gateway. That nothing answers there is said as what it is."""
    import httpx

    from infra.settings import is_loopback

    gateway = gateway_url(url)
    parts = urlsplit(gateway)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise click.UsageError(f"the gateway is an http:// or https:// URL, not {gateway}")
    timeout = httpx.Timeout(ANSWER_TIMEOUT, connect=CONNECT_TIMEOUT)
    # A proxy that the environment names never stands between this machine and itself.
    trust_env = not is_loopback(parts.hostname)
    try:
        with httpx.Client(base_url=gateway, timeout=timeout, trust_env=trust_env) as client:
            yield client
    except httpx.ConnectError as error:
        raise Unreachable(f"Nothing answers at {gateway} ({error}). {NOT_RUNNING}") from None
    except httpx.TimeoutException:
        raise Unreachable(f"{gateway} did not answer in time. {NOT_RUNNING}") from None
    except httpx.TransportError as error:
        raise Unreachable(f"The connection to {gateway} failed: {error}") from None


def _checked(answer: httpx.Response) -> httpx.Response:
    """``answer`` where it is a success, else its problem."""
    if answer.is_success:
        return answer
    if answer.headers.get("content-type", "").startswith("application/problem+json"):
        raise ProblemAnswered(answer.json())
    if answer.status_code in (502, 503, 504):
        raise Unreachable(f"The gateway runs, but no service behind it answered ({answer.status_code}).")
    raise Refused(
        f"{answer.request.url} answered {answer.status_code}: is this the gateway of an FPSO system?"
    )


def _console(file: IO[Any] | None = None) -> Console:
    """A console that writes to ``file``, by default to standard output; in colour where a person reads it."""
    from rich.console import Console

    return Console(file=file, highlight=False)


if __name__ == "__main__":
    main(prog_name="fpso")
