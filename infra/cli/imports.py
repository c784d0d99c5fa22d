"""``fpso import``: a file of equipment onto a vessel."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

import click

from infra.cli.system import (
    ProblemAnswered,
    checked,
    gateway_client,
    new_console,
    print_rest,
    rows_table,
    with_url,
)

if TYPE_CHECKING:
    import httpx
    from rich.progress import Progress, TaskID

PIECE_BYTES = 64 * 1024
MEDIA_TYPES = {".csv": "text/csv", ".ndjson": "application/x-ndjson", ".jsonl": "application/x-ndjson"}


@click.command("import")
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
    with gateway_client(url) as client:
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
    _print_imported(checked(answer).json(), is_replay="Idempotency-Replayed" in answer.headers)


def _register(client: httpx.Client, vessel: str) -> None:
    try:
        checked(client.post("/v1/vessels", json={"code": vessel}))
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
    with Progress(*columns, console=new_console(sys.stderr)) as progress, file.open("rb") as content:
        task = progress.add_task(f"sending {file.name}", total=file.stat().st_size)
        yield _pieces(content, progress, task)
        progress.update(task, description=f"sent {file.name}")


def _pieces(content: IO[bytes], progress: Progress, task: TaskID) -> Iterator[bytes]:
    while piece := content.read(PIECE_BYTES):
        yield piece
        progress.advance(task, len(piece))
    progress.update(task, description="registering")


def _print_imported(imported: Mapping[str, Any], *, is_replay: bool) -> None:
    console = new_console()
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
        console.print(rows_table(skipped))
        print_rest(console, len(skipped), "skipped")
