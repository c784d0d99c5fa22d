"""A private RabbitMQ from the machine's own package (3.10 of Debian as well as 4), loopback only.

It has its own node, ports, cookie, configuration and data in ``directory``/rabbitmq, takes nothing from
/etc/rabbitmq, and has its own `epmd` (Erlang's registry of nodes), started here so that it ends with it.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

from infra.broker_users import OWNER, SUBSCRIBER, USERS, definitions
from infra.local.process import (
    LOOPBACK,
    PROBE_TIMEOUT,
    Passwords,
    Process,
    Startable,
    Unavailable,
    environment_without,
    free_port,
    is_listening,
    write_private,
)

NODE = "fpso@localhost"  # not the machine's name: the data would be lost with it
START_SECONDS = 90.0
STOP_SECONDS = 30.0
EPMD_SECONDS = 5.0
CONTROL_SECONDS = 30.0
CALL_SECONDS = 3.0
BROKEN_QUEUES = """
Lost = fun(Q) ->
    case {amqqueue:get_type(Q), amqqueue:get_pid(Q)} of
        {rabbit_quorum_queue, Member} -> element(1, ra:members(Member, 5000)) =/= ok;
        {rabbit_stream_queue, Pid} -> not (is_pid(Pid) andalso is_process_alive(Pid));
        _ -> false
    end
end,
[element(4, amqqueue:get_name(Q)) || Q <- rabbit_amqqueue:list(), Lost(Q)].
"""
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


class LocalRabbitMQ(Startable):
    """One broker with its data in ``directory``/rabbitmq; a context manager, or `start` and `stop`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.home = self.directory / "rabbitmq"
        self.port = free_port()
        self.management_port = free_port()
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
        self.process = _Broker(
            "rabbitmq",
            [str(_installed())],
            log=log,
            environment=environment,
            running=self.home / "running",
        )

    @property
    def ports(self) -> set[int]:
        """All on which it listens, its epmd included."""
        return {self.port, self.management_port, self._epmd_port, self._distribution_port}

    @property
    def url(self) -> str:
        """Of the virtual host ``/``, as its owner."""
        return self.url_of(OWNER)

    @property
    def subscriber_url(self) -> str:
        """The same for downstream systems."""
        return self.url_of(SUBSCRIBER)

    def url_of(self, user: str) -> str:
        """The same as one of the `USERS`."""
        return f"amqp://{user}:{self._password_of(user)}@{LOOPBACK}:{self.port}/"

    def _password_of(self, user: str) -> str:
        return self.passwords.of(f"amqp-{user}")

    @property
    def management_url(self) -> str:
        """Of RabbitMQ's management API, without a user."""
        return f"http://{LOOPBACK}:{self.management_port}"

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
        """Return once it answers AMQP, with all its queues."""
        self.process.wait_until(self._answers, START_SECONDS)
        if self.process.is_doubtful and (broken := self._broken_queues()):
            self._begin_anew(broken)
        self.process.is_doubtful = False

    def stop(self) -> None:
        """Stop the broker in good order, then epmd."""
        self._stop_broker()
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

    def _stop_broker(self) -> None:
        """Stop it, its statistics first: in the middle of the stop they would hold it up for five seconds.

        `rabbit_mgmt_db_handler:terminate` calls the application controller, which is waiting for it.
        """
        program = _erlang_program("erl_call")
        if program is not None and self.process.is_running:
            call = "gen_event delete_handler [rabbit_event, rabbit_mgmt_db_handler, []]"
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    [program, "-n", NODE, "-a", call],
                    env=self.process.environment,
                    capture_output=True,
                    check=False,
                    timeout=CALL_SECONDS,
                )
        self.process.stop(STOP_SECONDS)

    def _broken_queues(self) -> str:
        """What never works again, as Erlang terms: a kill within a second of a queue's declaration does that.

        The broker writes the names of replicated queues half a second late (`ra_directory`, auto_save). A
        queue whose name was lost has no leader, and a stream no process, for ever.
        """
        command = [
            str(_installed().with_name("rabbitmqctl")),
            "--quiet",
            "--timeout",
            "20",
            "eval",
            BROKEN_QUEUES,
        ]
        try:
            asked = subprocess.run(
                command,
                env=self.process.environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=CONTROL_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return ""
        answer = asked.stdout.strip()
        return "" if asked.returncode or answer == "[]" else answer

    def _begin_anew(self, broken: str) -> None:
        """The event store has it all, and the relay fills new queues from it; the old data is kept once."""
        self._stop_broker()
        set_aside = self.home / "data.broken"
        shutil.rmtree(set_aside, ignore_errors=True)
        (self.home / "data").rename(set_aside)
        with self.process.log.open("a") as log:
            log.write(
                f"begun anew; the old data is in {set_aside}, for these queues did not survive: {broken}\n"
            )
        self.process.start()
        self.process.wait_until(self._answers, START_SECONDS)

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
        users = self.home / "definitions.json"
        lines = {
            "load_definitions": str(users),  # at every start, instead of making guest at the first
            "management.tcp.ip": LOOPBACK,
            "management.tcp.port": str(self.management_port),
            "management.rates_mode": "none",
            "log.file": "false",
            "log.console": "true",
            "log.console.level": "info",
        }
        write_private(
            self.home / "rabbitmq.conf", "".join(f"{key} = {value}\n" for key, value in lines.items())
        )
        write_private(users, json.dumps(definitions({user: self._password_of(user) for user in USERS})))
        (self.home / "enabled_plugins").write_text("[rabbitmq_management].\n")
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


class _Broker(Process):
    """The server process, which remembers across lives whether the last one ended by itself."""

    def __init__(
        self, name: str, command: list[str], *, log: Path, environment: dict[str, str], running: Path
    ) -> None:
        super().__init__(name, command, log=log, environment=environment)
        self._running = running
        self.is_doubtful = False
        """Whether an earlier life was ended by a kill, and the queues were not looked at since."""

    def start(self) -> None:
        """Start it, and note what the last one left."""
        self.is_doubtful = self.is_doubtful or self._running.exists()
        self._running.touch()
        super().start()

    def stop(self, seconds: float) -> None:
        """Stop it, and note whether that went well."""
        was_running = self.is_running
        super().stop(seconds)
        if was_running and self.exit_code == 0 and not self.is_doubtful:
            self._running.unlink(missing_ok=True)


def _installed() -> Path:
    program = server_program()
    if program is None:
        raise Unavailable("this machine has no rabbitmq-server")
    return program


def _epmd_program() -> str:
    program = _erlang_program("epmd")
    if program is None:
        raise Unavailable("this machine has no epmd, which RabbitMQ needs")
    return program


def _erlang_program(name: str) -> str | None:
    """Beside `erl`, or where its runtime system lies."""
    if found := shutil.which(name):
        return found
    erlang = shutil.which("erl")
    candidates = sorted(Path(erlang).resolve().parent.parent.glob(f"erts-*/bin/{name}")) if erlang else []
    return str(candidates[-1]) if candidates else None
