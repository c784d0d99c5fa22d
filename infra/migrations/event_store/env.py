"""Alembic runs this file; see `infra.migrations.run_environment`."""

from infra.migrations import run_environment

run_environment()
