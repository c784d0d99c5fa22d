"""The whole system on one machine: its servers, its services, and the one place where they are put together.

`System` is what `make run` runs, and what tests stand on: every process is at hand, to be killed, suspended
or started again. Whoever wants processes that come back by themselves runs `infra.local.supervisor`.
"""

import fcntl
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from subprocess import TimeoutExpired
from typing import IO
from urllib.parse import urlsplit

from infra import broker_users
from infra.local.postgres import LocalPostgres
from infra.local.process import (
    LOOPBACK,
    NotReady,
    Passwords,
    Process,
    Startable,
    Unavailable,
    answer_of,
    environment_without,
    free_port,
    is_port_free,
    write_private,
)
from infra.local.rabbitmq import LocalRabbitMQ, server_program
from infra.local.traefik import LocalTraefik
from infra.migrations import ROLES
from infra.traefik.routes import Backend
from infra.traefik.tls import Certificate

MIGRATION_SECONDS = 120.0
OWN_VARIABLES = (
    "FPSO_DATABASE_URL",
    "FPSO_READ_DATABASE_URL",
    "FPSO_AMQP_URL",
    "FPSO_ROLE_PASSWORDS",
    "FPSO_HTTP_",
    "FPSO_OPS_",
)
"""What each service has of its own."""
READY_SECONDS = 60.0
DRAIN_SECONDS = 25.0  # a little longer than a service takes for it by itself
DRAIN_LEAD_SECONDS = 3.0
"""Of one of several replicas: longer than the gateway takes to see that it is not ready any more."""
GATEWAY_LEAD_SECONDS = 2.0  # in which the gateway finishes what it has begun, before the APIs drain
AUDIT_KEY = "audit.key"
NO_BROKER = "no RabbitMQ on this machine: running without a broker, readers follow the event store"


@dataclass(frozen=True)
class Kind:
    """One of the services: how it is started, and as whom."""

    name: str
    module: str
    role: str
    serves_http: bool = False
    broker_user: str | None = None
    """As whom it connects to a broker of ours; None: not at all."""
    seals: bool = False


KINDS = (
    Kind("command_api", "command_api", "fpso_command", serves_http=True),
    Kind("query_api", "query_api", "fpso_query", serves_http=True),
    Kind("relay", "command_api.relay", "fpso_relay", broker_user=broker_users.RELAY, seals=True),
    Kind("projector", "projector", "fpso_projector", broker_user=broker_users.PROJECTOR),
    Kind("delivery", "command_api.delivery", "fpso_delivery"),
)


@dataclass(frozen=True)
class Options:
    """What a system is made of."""

    bind: str = LOOPBACK
    port: int | None = None
    """Of the gateway; None takes a free one."""
    replicas: Mapping[str, int] = field(default_factory=dict)
    """How many of each service, by its name; one where it is not said, and 0 leaves it out."""
    with_broker: bool = True
    database_url: str | None = None
    """The owner's, of a server that runs already; None starts a private one."""
    read_database_url: str | None = None
    amqp_url: str | None = None
    """Of a broker that runs already, for operators and services alike; None starts a private one, where the
    machine has RabbitMQ."""
    certificate: Certificate | None = None
    """Of the gateway, which then speaks TLS only."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """More FPSO_* variables for every service."""


class ServiceProcess(Process):
    """One replica of a service."""

    def __init__(
        self, kind: Kind, name: str, log: Path, environment: Mapping[str, str], host: str = LOOPBACK
    ) -> None:
        self.kind = kind
        self.ops_url = f"http://{host}:{free_port(host)}"
        self.http_url = f"http://{host}:{free_port(host)}" if kind.serves_http else None
        ports = {"FPSO_OPS_HOST": host, "FPSO_OPS_PORT": str(urlsplit(self.ops_url).port)}
        if self.http_url:
            ports |= {"FPSO_HTTP_HOST": host, "FPSO_HTTP_PORT": str(urlsplit(self.http_url).port)}
        super().__init__(
            name, [sys.executable, "-m", kind.module], log=log, environment={**environment, **ports}
        )

    @property
    def is_ready(self) -> bool:
        """Whether /readyz says so."""
        answer = answer_of(f"{self.ops_url}/readyz")
        return answer is not None and answer.status == 200

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> None:
        """Return once it is ready."""
        self.wait_until(lambda: self.is_ready, seconds)

    def restart(self) -> None:
        """Stop it, start it, and wait until it is ready."""
        self.stop(DRAIN_SECONDS)
        self.start()
        self.wait_until_ready()

    def not_ready(self, cause: str) -> NotReady:
        """Names the checks that do not pass, too."""
        answer = answer_of(f"{self.ops_url}/readyz")
        return super().not_ready(f"{cause}: {answer.body.decode()}" if answer else cause)


class System(Startable):
    """The servers and services in one directory; a context manager, or `start` and `stop`."""

    def __init__(
        self, directory: Path, options: Options | None = None, report: Callable[[str], None] = lambda _: None
    ) -> None:
        self.directory = directory.absolute()
        self.options = options or Options()
        self.postgres: LocalPostgres | None = None
        self.broker: LocalRabbitMQ | None = None
        self.traefik: LocalTraefik | None = None
        self.services: dict[str, list[ServiceProcess]] = {}
        """By the name of their kind."""
        self._passwords = Passwords(self.directory)
        self._report = report
        self._lock: IO[str] | None = None

    # --- where things are ----------------------------------------------------------------------------------

    @property
    def logs(self) -> Path:
        """Where every process writes what it has to say."""
        return self.directory / "logs"

    @property
    def gateway_url(self) -> str:
        """Where clients go."""
        assert self.traefik is not None, "the system was never started"
        return self.traefik.url

    @property
    def database_url(self) -> str:
        """Of the event store, as its owner."""
        if self.options.database_url:
            return self.options.database_url
        assert self.postgres is not None, "the system was never started"
        return self.postgres.url

    @property
    def amqp_url(self) -> str:
        """Of the broker; empty without one."""
        if self.broker is not None:
            return self.broker.url
        return self.options.amqp_url or ""

    def url_as(self, role: str) -> str:
        """Of the event store, as one of the services' roles."""
        return as_role(self.database_url, role, self._passwords.of(role))

    @property
    def command_api(self) -> ServiceProcess:
        """The first, like the properties below."""
        return self.services["command_api"][0]

    @property
    def query_api(self) -> ServiceProcess:
        """See `command_api`."""
        return self.services["query_api"][0]

    @property
    def relay(self) -> ServiceProcess:
        """See `command_api`."""
        return self.services["relay"][0]

    @property
    def projector(self) -> ServiceProcess:
        """See `command_api`."""
        return self.services["projector"][0]

    @property
    def processes(self) -> list[Process]:
        """All that are meant to run, in the order of their start."""
        broker = [self.broker.epmd, self.broker.process] if self.broker else []
        postgres = [self.postgres.process] if self.postgres and self.postgres.was_started else []
        gateway = [self.traefik.process] if self.traefik else []
        return [*broker, *postgres, *self._all_services(), *gateway]

    def _all_services(self) -> list[ServiceProcess]:
        return [one for replicas in self.services.values() for one in replicas]

    # --- starting ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything and wait until it is ready; `NotReady` or `Unavailable` says why it is not."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        self._refuse_taken_port()
        self._start_servers()
        self._migrate()
        self._start_services()
        self._start_gateway()
        self._write_environment()

    def _take_lock(self) -> None:
        lock = (self.directory / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise Unavailable(f"A system is already running in {self.directory}.") from None
        self._lock = lock
        self._environment_file.unlink(missing_ok=True)  # of one that was killed

    def _refuse_taken_port(self) -> None:
        bind, port = self.options.bind, self.options.port
        try:
            is_free = port is None or is_port_free(bind, port)
        except OSError as error:
            raise Unavailable(
                f"Cannot listen on {bind}:{port} ({error}): see FPSO_BIND and FPSO_PORT."
            ) from None
        if not is_free:
            raise Unavailable(f"Port {port} of {bind} is taken: choose another, as in FPSO_PORT=8089.")

    def _start_servers(self) -> None:
        """PostgreSQL is ready afterwards; RabbitMQ, which takes longer, is on its way."""
        if self.options.with_broker and not self.options.amqp_url:
            if server_program() is None:
                self._report(NO_BROKER)
            else:
                self.broker = LocalRabbitMQ(self.directory)
                self.broker.spawn()
        if not self.options.database_url:
            self.postgres = LocalPostgres(self.directory)
            self.postgres.start()
            self._report("postgres ready")

    def _migrate(self) -> None:
        passwords = ",".join(f"{role}={self._passwords.of(role)}" for role in ROLES)
        environment = self._environment() | {
            "FPSO_DATABASE_URL": self.database_url,
            "FPSO_READ_DATABASE_URL": self.options.read_database_url or "",
            "FPSO_ROLE_PASSWORDS": passwords,
        }
        migration = Process(
            "migrate",
            [sys.executable, "-m", "infra.migrations"],
            log=self.logs / "migrate.log",
            environment=environment,
        )
        migration.start()
        try:
            if migration.wait(MIGRATION_SECONDS) != 0:
                raise migration.not_ready(f"failed ({migration.ended()})")
        except TimeoutExpired:
            raise migration.not_ready(f"was not done within {MIGRATION_SECONDS:g} s") from None
        finally:
            migration.kill()
        self._report("databases up to date")

    def _start_services(self) -> None:
        for kind in KINDS:
            self.services[kind.name] = [
                self._service(kind, number)
                for number in range(1, self.options.replicas.get(kind.name, 1) + 1)
            ]
        # The APIs need no broker, and come up beside it.
        for service in self._all_services():
            if service.kind.serves_http:
                service.start()
        if self.broker is not None:
            self.broker.wait_until_ready()
            self._report("rabbitmq ready")
        for service in self._all_services():
            if not service.kind.serves_http:
                service.start()
        for service in self._all_services():
            service.wait_until_ready()
            self._report(f"{service.name} ready")

    def _service(self, kind: Kind, number: int) -> ServiceProcess:
        name = kind.name if number == 1 else f"{kind.name}-{number}"
        environment = self._environment() | {
            "FPSO_DATABASE_URL": self.url_as(kind.role),
            "FPSO_BIND": self.options.bind,
        }
        if kind.broker_user:
            environment["FPSO_AMQP_URL"] = (
                self.broker.url_of(kind.broker_user) if self.broker else self.amqp_url
            )
        if self.options.read_database_url:
            environment["FPSO_READ_DATABASE_URL"] = as_role(
                self.options.read_database_url, kind.role, self._passwords.of(kind.role)
            )
        if kind.serves_http and self.options.replicas.get(kind.name, 1) > 1:
            environment.setdefault("FPSO_DRAIN_LEAD_SECONDS", f"{DRAIN_LEAD_SECONDS:g}")
        if kind.seals:
            environment.setdefault("FPSO_AUDIT_KEY_FILE", str(self.directory / AUDIT_KEY))
        return ServiceProcess(kind, name, self.logs / f"{name}.log", environment)

    def _environment(self) -> dict[str, str]:
        """Of every Python process: this one's, without what is each one's own."""
        return environment_without(*OWN_VARIABLES) | dict(self.options.environment)

    def _start_gateway(self) -> None:
        self.traefik = LocalTraefik(
            self.directory,
            self._backends("command_api"),
            self._backends("query_api"),
            bind=self.options.bind,
            port=self.options.port,
            certificate=self.options.certificate,
        )
        self.traefik.start()
        if self.services["query_api"]:
            self.traefik.process.wait_until(self._answers, READY_SECONDS)

    def _backends(self, name: str) -> list[Backend]:
        return [Backend(one.http_url, one.ops_url) for one in self.services[name] if one.http_url]

    def _answers(self) -> bool:
        """Whether a request has come all the way through."""
        answer = answer_of(f"{self.gateway_url}/v1/vessels?limit=1")
        return answer is not None and answer.status < 500

    # --- what others are told ------------------------------------------------------------------------------

    @property
    def _environment_file(self) -> Path:
        return self.directory / "env"

    def _write_environment(self) -> None:
        variables = {
            "FPSO_GATEWAY_URL": self.gateway_url,
            "FPSO_DATABASE_URL": self.database_url,
            "FPSO_READ_DATABASE_URL": self.options.read_database_url or "",
            "FPSO_AMQP_URL": self.amqp_url,
            "FPSO_AMQP_MANAGEMENT_URL": self.broker.management_url if self.broker else "",
            "FPSO_SUBSCRIBER_AMQP_URL": self.broker.subscriber_url if self.broker else "",
            "FPSO_WEBHOOK_ALLOWED_NETWORKS": self._environment().get("FPSO_WEBHOOK_ALLOWED_NETWORKS", ""),
            **{_ops_variable(service): service.ops_url for service in self._all_services()},
        }
        lines = [f"{name}={quote(value) if value else ''}\n" for name, value in variables.items()]
        write_private(self._environment_file, "".join(lines))

    # --- stopping ------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop everything in good order: what takes requests first, what keeps data last."""
        if self._lock is None:
            return
        self._environment_file.unlink(missing_ok=True)
        services = self._all_services()
        self._stop_gateway([service for service in services if service.kind.serves_http])
        _stop_together([service for service in services if not service.kind.serves_http])
        if self.broker is not None:
            self.broker.stop()
        if self.postgres is not None:
            self.postgres.stop()
        self._lock.close()
        self._lock = None

    def _stop_gateway(self, apis: Sequence[ServiceProcess]) -> None:
        """Requests that the gateway has begun are answered; streams without an end are ended by the APIs."""
        if self.traefik is not None and self.traefik.process.is_running:
            self.traefik.process.terminate()
            with suppress(TimeoutExpired):
                self.traefik.process.wait(GATEWAY_LEAD_SECONDS)
        _stop_together(apis)
        if self.traefik is not None:
            self.traefik.stop()

    def hurry(self) -> None:
        """End everything at once; what was accepted is on disk. For a signal handler: waits for nothing."""
        for process in self.processes:
            process.send(signal.SIGQUIT if process.name == "postgres" else signal.SIGKILL)


def _stop_together(services: Sequence[ServiceProcess]) -> None:
    for service in services:
        service.send(signal.SIGINT)  # with no lead: nobody routes here any more
        service.resume()
    for service in services:
        service.stop(DRAIN_SECONDS)


def _ops_variable(service: ServiceProcess) -> str:
    return f"FPSO_OPS_{service.name.upper().replace('-', '_')}_URL"


def as_role(url: str, role: str, password: str) -> str:
    """``url`` of a database with another user and password in it."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{role}:{password}@{host}").geturl()
