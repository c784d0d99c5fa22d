"""``python -m infra.local.supervisor``, which `make run` and ``fpso up`` are: the whole system until Ctrl-C.

A process that dies is started again: at once, but after longer and longer pauses while it goes on dying.
Ctrl-C, SIGTERM and SIGHUP stop everything in good order; a second one makes it quick.
"""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

from infra.local.process import LOOPBACK, NotReady, Process, Unavailable
from infra.local.system import Options, System
from infra.settings import data_directory
from infra.traefik.tls import Certificate

PORT = 8088
PAUSE = 0.5  # seconds before the second start in a row; doubled from one to the next, up to
PAUSE_MAX = 30.0  # seconds
STEADY_SECONDS = 60.0  # a process that has run for so long has recovered
KEYS_NEEDED = "by API key or token: `fpso keys create` makes the first"
WATCH_INTERVAL = 5.0  # seconds; the signal that a process has ended wakes earlier


def main() -> None:
    """Run the system that the environment describes."""
    try:
        options = options_from(os.environ)
    except ValueError as error:
        sys.exit(f"cannot start: {error}")
    sys.exit(Supervisor(System(data_directory(), options, report=_note)).run())


def options_from(environment: Mapping[str, str]) -> Options:
    """What FPSO_* variables ask for; servers that they name are used instead of private ones."""
    port = environment.get("FPSO_PORT") or str(PORT)
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"FPSO_PORT must be a number from 1 to 65535, not {port!r}")
    database_url = environment.get("FPSO_DATABASE_URL") or None
    if database_url and not database_url.startswith(("postgresql://", "postgres://")):
        raise ValueError("FPSO_DATABASE_URL must begin with postgresql://")
    return Options(
        bind=environment.get("FPSO_BIND") or LOOPBACK,
        port=int(port),
        database_url=database_url,
        read_database_url=environment.get("FPSO_READ_DATABASE_URL") or None,
        amqp_url=environment.get("FPSO_AMQP_URL") or None,
        certificate=_certificate_from(environment),
    )


def _certificate_from(environment: Mapping[str, str]) -> Certificate | None:
    names = ("FPSO_TLS_CERT_FILE", "FPSO_TLS_KEY_FILE")
    files = [environment.get(name, "") for name in names]
    if not any(files):
        return None
    for name, file in zip(names, files, strict=True):
        if not Path(file).is_file():  # Traefik would make up a certificate of its own
            raise ValueError(f"{name} must name a file, and {file!r} is none")
    return Certificate(*(str(Path(file).absolute()) for file in files))


class Supervisor:
    """Starts a system, keeps it running, and stops it when it is told to."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._signals = 0
        self._is_starting = False
        self._restarts: dict[Process, Restart] = {}

    def run(self) -> int:
        """The exit code: 0 where it ran until it was told to stop."""
        woken = self._catch_signals()
        started = time.monotonic()
        _print(f"FPSO System: starting in {_shown(self.system.directory)} (Ctrl-C stops it)")
        try:
            self._is_starting = True
            self.system.start()
            self._is_starting = False
            self._print_ready(time.monotonic() - started)
            while not self._signals:
                self._watch(woken)
        except (NotReady, Unavailable) as error:
            _print(f"\n{error}")
            return 1
        except KeyboardInterrupt:
            return 0
        finally:
            self._is_starting = False
            self._stop_system()
        return 0

    def _stop_system(self) -> None:
        if self.system.processes:
            _print("stopping…")
        self.system.stop()
        if self.system.processes:
            _print("stopped")

    def _catch_signals(self) -> socket.socket:
        """What becomes readable when a signal has come, the end of a child included."""
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._stop)
        return reader

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            self.system.hurry()
        elif self._is_starting:
            raise KeyboardInterrupt

    def _watch(self, woken: socket.socket) -> None:
        """Start again what has ended and whose pause is over; then wait until there is something to do."""
        for process in self.system.processes:
            self._restarts.setdefault(process, Restart(process))
        pauses = [restart.attend(time.monotonic()) for restart in self._restarts.values()]
        select.select([woken], [], [], min(pauses, default=WATCH_INTERVAL))
        with suppress(BlockingIOError):
            woken.recv(4096)

    def _print_ready(self, seconds: float) -> None:
        gateway = self.system.gateway_url
        _print(
            f"""
FPSO System is ready after {seconds:.1f} s.

  API            {gateway}/v1/vessels
  Documentation  {gateway}/docs
  Broker         {"RabbitMQ" if self.system.amqp_url else "none: readers follow the event store"}
  Access         {KEYS_NEEDED if os.environ.get("FPSO_AUTH") == "on" else "open, to this machine only"}
  Logs           {_shown(self.system.logs)}/
  URLs for tools {_shown(self.system.directory / "env")}
"""
        )


class Restart:
    """When a process that ended is started again."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.pause = 0.0
        self._due_at: float | None = None
        self.started_at = time.monotonic()

    def attend(self, now: float) -> float:
        """Start the process where it is to be started; gives the seconds until the next look at it."""
        if self._process.is_running:
            return WATCH_INTERVAL
        if self._due_at is None:
            self._due_at = now + self._next_pause(now)
            when = f"in {self.pause:g} s" if self.pause else "at once"
            _print(
                f"{self._process.name} ended ({self._process.ended()}) and is started again {when}; "
                f"its log: {_shown(self._process.log)}"
            )
        if now < self._due_at:
            return self._due_at - now
        self._due_at = None
        self.started_at = now
        try:
            self._process.start()
        except (OSError, NotReady) as error:
            _print(f"{self._process.name} could not be started: {error}")
            return 0.0
        return WATCH_INTERVAL

    def _next_pause(self, now: float) -> float:
        if now - self.started_at > STEADY_SECONDS:
            self.pause = 0.0
        else:
            self.pause = min(max(self.pause * 2, PAUSE), PAUSE_MAX)
        return self.pause


def _note(fact: str) -> None:
    _print(f"  {fact}")


def _print(text: str) -> None:
    """Say it on the terminal, if that is still there."""
    with suppress(OSError):
        print(text, flush=True)


def _shown(path: Path) -> Path:
    """As short as it can be said from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


if __name__ == "__main__":
    main()
