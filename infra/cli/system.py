"""How the commands of ``fpso`` find the system and talk to it, and how they say that it refused."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import click

from infra.secret_files import read_secrets

if TYPE_CHECKING:
    import httpx
    from rich.console import Console

ENV_FILE = Path(".fpso/env")
"""Where `make run` says how the running system is reached."""
DEFAULT_PORT = "8088"

CONNECT_TIMEOUT = 5.0  # seconds
ANSWER_TIMEOUT = 300.0  # seconds; an import of 100,000 rows is one commit
ROWS_SHOWN = 50
"""As many rows of a long table are printed."""
CREDENTIAL = "FPSO_TOKEN"
"""Its name only: a token is in no argument, which other users of the machine would see, and in no message."""
NO_TOKEN = f"{CREDENTIAL} is not set: it takes an API key (`fpso keys create`) or a token of the issuer."
NOT_RUNNING = "Is the system running? `make run` starts it; --url or FPSO_GATEWAY_URL says where it is."

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 §2.1

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

        console = new_console(file or sys.stderr)
        console.print(Text(self.message, style="bold red"), Text(f"({self.slug})", style="dim"))
        if detail := self.problem.get("detail"):
            console.print(Text(str(detail)))
        if self.slug == "unauthenticated":
            console.print(f"{CREDENTIAL} is not accepted." if settings().get(CREDENTIAL) else NO_TOKEN)
        errors = self.problem.get("errors") or []
        if errors and "line" in errors[0]:
            total = int(self.problem.get("total", len(errors)))
            console.print(rows_table(errors))
            print_rest(console, total, "faulty")
            return
        for error in errors:
            console.print(Text(f"  {error.get('pointer') or '(body)'}: {error.get('detail')}"))


def settings() -> Mapping[str, str]:
    """FPSO_* variables: of `.fpso/env`, overridden by the environment's."""
    read_secrets()
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


def become(module: str, environment: Mapping[str, str], *arguments: str) -> NoReturn:
    """Turn into ``python -m module``: signals and the exit code are its own."""
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)  # noqa: S606 - no shell is wanted


def authorization() -> Mapping[str, str]:
    """The header that says who asks, where FPSO_TOKEN is set."""
    token = settings().get(CREDENTIAL, "").strip()
    if not token:
        return {}
    if not _TOKEN.fullmatch(token):
        raise click.UsageError(f"{CREDENTIAL} is not a token: it has characters that no token has")
    return {"Authorization": f"Bearer {token}"}


@contextmanager
def gateway_client(url: str | None) -> Iterator[httpx.Client]:
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
    headers = authorization()
    if headers and parts.scheme != "https" and not is_loopback(parts.hostname):
        raise click.UsageError(f"{CREDENTIAL} leaves this machine over https:// only, not for {gateway}")
    try:
        with httpx.Client(base_url=gateway, timeout=timeout, trust_env=trust_env, headers=headers) as client:
            yield client
    except httpx.ConnectError as error:
        raise Unreachable(f"Nothing answers at {gateway} ({error}). {NOT_RUNNING}") from None
    except httpx.TimeoutException:
        raise Unreachable(f"{gateway} did not answer in time. {NOT_RUNNING}") from None
    except httpx.TransportError as error:
        raise Unreachable(f"The connection to {gateway} failed: {error}") from None


def checked(answer: httpx.Response) -> httpx.Response:
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


def write_whole(file: Path, text: str, mode: int) -> None:
    """Write beside, then rename: what stands under the name is the old or the new, as a whole."""
    try:
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        beside = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as content:
                content.write(text)
                content.flush()
                os.fsync(content.fileno())
            beside.chmod(mode)
            beside.replace(file)
        except BaseException:  # a signal too leaves nothing behind
            with suppress(FileNotFoundError):
                beside.unlink()
            raise
    except OSError as error:
        raise Refused(f"cannot write {file}: {error.strerror}") from None


def printable(text: str) -> str:
    """``text`` that somebody else has chosen, with nothing in it that would steer a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def new_console(file: IO[Any] | None = None) -> Console:
    """A console that writes to ``file``, by default to standard output; in colour where a person reads it."""
    from rich.console import Console

    return Console(file=file, highlight=False)


def rows_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The first of ``rows`` of a file, with what is wrong with each."""
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


def print_rest(console: Console, total: int, kind: str) -> None:
    """Say how many rows there are, where not all of them were printed."""
    if total > ROWS_SHOWN:
        console.print(f"… the first {ROWS_SHOWN} of {total:,} {kind} rows", style="dim")
