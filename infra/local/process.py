"""Child processes of this machine's system: how one is started, watched and stopped; ports and passwords."""

import errno
import json
import os
import random
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"
# Below the range from which the kernel takes the ports of outgoing connections, so that a server that is
# started again finds its port free.
PORTS = range(20_000, 32_000)
POLL_INTERVAL = 0.05  # seconds
PROBE_TIMEOUT = 3.0  # seconds
LOG_MAX_BYTES = 10 * 1024 * 1024
TAIL_BYTES = 16 * 1024
TAIL_LINES = 20

# The kernel sends the signal of `child.py` when the *thread* that started the child ends, so all are started
# by one thread that ends with this process.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")
_CHILD = Path(__file__).with_name("child.py")


class NotReady(RuntimeError):
    """A process did not come up; the message says which, why, and ends with the end of its log."""


class Unavailable(RuntimeError):
    """Something cannot be run on this machine, or not now; the message is what the user is told."""


@dataclass(frozen=True)
class Account:
    """Whom a process runs as."""

    uid: int
    gid: int


class Startable(ABC):
    """What is started and stopped, also as a context manager: a start that fails leaves nothing behind."""

    @abstractmethod
    def start(self) -> None:
        """Start it and wait until it is ready."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it in good order; also what was started only in part."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # an interrupt, too, must not leave half a system running
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Process:
    """One program: its command, its log, and its life. Never outlives this process."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        account: Account | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self.environment = dict(environment)
        self._account = account
        self._stop_signal = stop_signal
        self._death_signal = death_signal
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._popen is not None, f"{self.name} was never started"
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs or where it never did; negative is the signal that ended it."""
        return None if self._popen is None else self._popen.poll()

    def start(self) -> None:
        """Start it; returns before it is ready."""
        assert not self.is_running, f"{self.name} runs already"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        rotate(self.log)
        _STARTER.submit(self._start).result()

    def _start(self) -> None:
        account = self._account
        uid, gid = (str(account.uid), str(account.gid)) if account else ("-", "-")
        death_signal = str(int(self._death_signal))
        preparation = [sys.executable, "-I", "-S", str(_CHILD), str(os.getpid()), death_signal, uid, gid]
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [*preparation, *self.command],
                env=self.environment,
                cwd="/" if account else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C at the terminal is for this process, which stops the others in order.
                start_new_session=True,
            )

    def send(self, number: signal.Signals) -> None:
        """Send a signal, where there is still somebody to get it."""
        if self._popen is not None:
            self._popen.send_signal(number)

    def terminate(self) -> None:
        """Ask it to end; returns at once."""
        self.send(self._stop_signal)
        self.resume()  # a suspended process would not hear it

    def kill(self) -> None:
        """End it with SIGKILL, and wait until it is gone."""
        self.send(signal.SIGKILL)
        if self._popen is not None:
            self._popen.wait()

    def suspend(self) -> None:
        """SIGSTOP: it keeps its connections and locks, and does nothing."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.send(signal.SIGCONT)

    def wait(self, seconds: float) -> int:
        """The exit code, once it has ended; `subprocess.TimeoutExpired` where that takes too long."""
        assert self._popen is not None, f"{self.name} was never started"
        return self._popen.wait(seconds)

    def stop(self, seconds: float) -> None:
        """Ask it to end, and after ``seconds`` make it."""
        _STARTER.submit(int).result()  # a start that a signal interrupted is over then
        if self._popen is None:
            return
        self.terminate()
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def wait_until(self, is_ready: Callable[[], bool], seconds: float) -> None:
        """Return once ``is_ready``; `NotReady` where the process ends before, or the time does."""
        deadline = time.monotonic() + seconds
        while not is_ready():
            if not self.is_running:
                raise self.not_ready(f"ended while starting ({_outcome(self.exit_code)})")
            if time.monotonic() > deadline:
                raise self.not_ready(f"was not ready within {seconds:g} s")
            time.sleep(POLL_INTERVAL)

    def not_ready(self, cause: str) -> NotReady:
        """The error that says so, with the end of the log."""
        return NotReady(f"{self.name} {cause}. The end of {self.log}:\n{self.tail()}")

    def tail(self) -> str:
        """The last lines of its log."""
        with suppress(FileNotFoundError), self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
            return "\n".join(f"  {line}" for line in lines)
        return "  (no log)"

    def ended(self) -> str:
        """How it ended, in words."""
        return _outcome(self.exit_code)


def _outcome(code: int | None) -> str:
    if code is None:
        return "still running"
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def rotate(log: Path) -> None:
    """Begin ``log`` anew where it has grown large; the old one is kept once."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_MAX_BYTES:
            log.replace(log.with_name(log.name + ".1"))


def environment_without(*prefixes: str) -> dict[str, str]:
    """This process's environment without the variables that begin so."""
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


_taken: set[int] = set()


def free_port(host: str = LOOPBACK) -> int:
    """A port that nobody listens on and that was not given out before."""
    for port in random.sample(PORTS, len(PORTS)):
        if port not in _taken and is_port_free(host, port):
            _taken.add(port)
            return port
    raise Unavailable(f"no free port from {PORTS.start} to {PORTS.stop - 1} on {host}")


def is_port_free(host: str, port: int) -> bool:
    """Whether a server could listen there; `OSError` where the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended do not count
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        return True


def is_listening(port: int, host: str = LOOPBACK) -> bool:
    """Whether somebody accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=PROBE_TIMEOUT):
            return True
    except OSError:
        return False


# For a process that was just started on this machine, whose certificate names where others find it.
_UNVERIFIED = ssl._create_unverified_context()  # noqa: S323


@dataclass(frozen=True)
class Answer:
    """Of an HTTP request, as far as it matters here."""

    status: int
    body: bytes


def answer_of(url: str, method: str = "GET") -> Answer | None:
    """What it gives, or None where there is no answer. Never asks a proxy, nor who it is that answers."""
    parts = urlsplit(url)
    host = parts.hostname or LOOPBACK
    connection = (
        HTTPSConnection(host, parts.port, timeout=PROBE_TIMEOUT, context=_UNVERIFIED)
        if parts.scheme == "https"
        else HTTPConnection(host, parts.port, timeout=PROBE_TIMEOUT)
    )
    try:
        connection.request(method, f"{parts.path}?{parts.query}" if parts.query else parts.path)
        response = connection.getresponse()
        return Answer(response.status, response.read())
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


class Passwords:
    """Passwords that were made up once and stay: a JSON file that nobody else can read."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "passwords"

    def __contains__(self, name: str) -> bool:
        return name in self._read()

    def of(self, name: str) -> str:
        """The password of ``name``; made up at the first call."""
        known = self._read()
        if name not in known:
            known[name] = secrets.token_urlsafe(24)
            write_private(self.file, json.dumps(known, indent=1) + "\n")
        return known[name]

    def _read(self) -> dict[str, str]:
        try:
            content: dict[str, str] = json.loads(self.file.read_text())
        except FileNotFoundError:
            return {}
        return content


def write_private(file: Path, content: str) -> None:
    """Replace ``file`` as a whole, readable by its owner only."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(content)
    new.replace(file)
