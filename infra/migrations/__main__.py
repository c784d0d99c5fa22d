"""``python -m infra.migrations``: bring the databases up to date, as their owner."""

import os
import sys

import psycopg

from infra import logs
from infra.migrations import ROLES, migrate
from infra.secret_files import read_secrets


def main() -> None:
    """Migrate what FPSO_DATABASE_URL and FPSO_READ_DATABASE_URL name."""
    logs.configure("migrate", os.environ.get("FPSO_LOG_LEVEL") or "INFO")
    read_secrets()
    database_url = os.environ.get("FPSO_DATABASE_URL")
    if not database_url:
        sys.exit("cannot migrate: FPSO_DATABASE_URL is not set")
    try:
        migrate(database_url, os.environ.get("FPSO_READ_DATABASE_URL") or None, passwords())
    except psycopg.OperationalError as error:
        sys.exit(f"cannot migrate: {error}")


def passwords() -> dict[str, str]:
    """The passwords of the service roles from FPSO_ROLE_PASSWORDS (``role=password,role=password``)."""
    pairs = [pair.partition("=") for pair in os.environ.get("FPSO_ROLE_PASSWORDS", "").split(",") if pair]
    return {role.strip(): password for role, _, password in pairs if role.strip() in ROLES}


if __name__ == "__main__":
    main()
