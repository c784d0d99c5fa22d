"""A private RabbitMQ from the machine's own package (3.10 of Debian as well as 4), loopback only.

It has its own node, ports, cookie, configuration and data in ``directory``/rabbitmq, takes nothing from
/etc/rabbitmq, and has its own `epmd` (Erlang's registry of nodes), started here so that it ends with it.
"""

import os
import secrets
import shutil
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from infra.local.process import (
    LOOPBACK,
    PROBE_TIMEOUT,
    Passwords,
    Process,
    Unavailable,
    environment_without,
    free_port,
    is_listening,
    write_private,
)

USER = "fpso"
PASSWORD = "amqp"  # noqa: S105 - its name among the passwords
NODE = "fpso@localhost"  # not the machine's name: the data would be lost with it
START_SECONDS = 90.0
STOP_SECONDS = 30.0
EPMD_SECONDS = 5.0
PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
METHOD_FRAME = b"\x01"

# Debian's /usr/sbin/rabbitmq-server changes to the account and folders of the machine's own broker.
UNWRAPPED = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
# Erlang's schedulers look for work in a loop before they sleep, which costs the others of a small machine.
ERL_ARGS = "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none"


def server_program() -> Path | None:
    """Where this machine has RabbitMQ, if it does."""
    if UNWRAPPED.exists():
        return UNWRAPPED
    found = shutil.which("rabbitmq-server")
    return Path(found) if found else None


class LocalRabbitMQ:
    """One broker with its data in ``directory``/rabbitmq; a context manager, or `start` and `stop`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.home = self.directory / "rabbitmq"
        self.port = free_port()
        self.passwords = Passwords(self.directory)
        self._epmd_port = free_port()
        self._distribution_port = free_port()
        log = self.directory / "logs" / "rabbitmq.log"
        environment = self._environment()
        self.epmd = Process(
            "epmd",
            [_epmd_program(), "-port", str(self._epmd_port), "-address", LOOPBACK],
            log=self.directory / "logs" / "epmd.log",
            environment=environment,
        )
        self.process = Process("rabbitmq", [str(_installed())], log=log, environment=environment)

    @property
    def url(self) -> str:
        """Of the virtual host ``/``."""
        return f"amqp://{USER}:{self.passwords.of(PASSWORD)}@{LOOPBACK}:{self.port}/"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it answers AMQP."""
        self.spawn()
        self.wait_until_ready()

    def spawn(self) -> None:
        """Start it; returns before it is ready, which takes a few seconds."""
        self._configure()
        if not self.epmd.is_running:
            self.epmd.start()
            self.epmd.wait_until(lambda: is_listening(self._epmd_port), EPMD_SECONDS)
        self.process.start()

    def wait_until_ready(self) -> None:
        """Return once it answers AMQP."""
        self.process.wait_until(self._answers, START_SECONDS)

    def stop(self) -> None:
        """Stop the broker in good order, then epmd."""
        self.process.stop(STOP_SECONDS)
        self.epmd.stop(EPMD_SECONDS)

    def kill(self) -> None:
        """End the broker as a crash would; `start` starts it again."""
        self.process.kill()

    def suspend(self) -> None:
        """Freeze the broker: connections stay open and nothing is answered."""
        self.process.suspend()

    def resume(self) -> None:
        """Let it go on."""
        self.process.resume()

    def _answers(self) -> bool:
        """Whether somebody speaks AMQP there: the port alone is open a little earlier."""
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=PROBE_TIMEOUT) as connection:
                connection.sendall(PROTOCOL_HEADER)
                return connection.recv(1) == METHOD_FRAME
        except OSError:
            return False

    def _configure(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (self.home / "data").exists() and PASSWORD not in self.passwords:
            raise Unavailable(f"{self.passwords.file} is gone, and with it the way in: make clean.")
        lines = {
            "default_user": USER,  # made at the first start, instead of guest
            "default_pass": self.passwords.of(PASSWORD),
            "log.file": "false",
            "log.console": "true",
            "log.console.level": "info",
        }
        write_private(
            self.home / "rabbitmq.conf", "".join(f"{key} = {value}\n" for key, value in lines.items())
        )
        (self.home / "enabled_plugins").write_text("[].\n")
        cookie = self.home / ".erlang.cookie"
        if not cookie.exists():
            write_private(cookie, secrets.token_hex(20))
            cookie.chmod(0o400)

    def _environment(self) -> dict[str, str]:
        home = self.home
        return environment_without("RABBITMQ_", "ERL_", "NOTIFY_SOCKET") | {
            "HOME": str(home),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": NODE,
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_CONF_ENV_FILE": str(home / "rabbitmq-env.conf"),  # not the machine's; there is none
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(home / "generated"),
            "RABBITMQ_SCHEMA_DIR": str(home / "schema"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_LOG_BASE": str(self.directory / "logs"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERL_ARGS,
            # The script then becomes the server, instead of waiting for it and passing signals on.
            "RUNNING_UNDER_SYSTEMD": "true",
            "PATH": os.environ.get("PATH", os.defpath),
        }


def _installed() -> Path:
    program = server_program()
    if program is None:
        raise Unavailable("this machine has no rabbitmq-server")
    return program


def _epmd_program() -> str:
    """Beside `erl`, or where its runtime system lies."""
    if found := shutil.which("epmd"):
        return found
    erlang = shutil.which("erl")
    candidates = sorted(Path(erlang).resolve().parent.parent.glob("erts-*/bin/epmd")) if erlang else []
    if not candidates:
        raise Unavailable("this machine has no epmd, which RabbitMQ needs")
    return str(candidates[-1])
