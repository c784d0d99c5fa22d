"""Passwords may come in files, where nobody who looks at the environment finds them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.cli.system import settings as known_to_fpso
from infra.secret_files import SECRET_FILES, read_secrets
from infra.settings import Settings, load

URL = "postgresql://fpso_query:secret@db/fpso"


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "url").write_text(f"{URL}\n")
    return str(tmp_path / "url")


@pytest.mark.parametrize("variable", SECRET_FILES)
def test_what_a_file_holds_is_the_value(variable: str, file: str) -> None:
    environment = {variable: file, "FPSO_PORT": "1"}
    read_secrets(environment)
    assert environment == {variable.removesuffix("_FILE"): URL, "FPSO_PORT": "1"}


def test_services_and_the_command_line_read_them(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPSO_DATABASE_URL", "")  # as an overlay of Compose leaves it
    monkeypatch.setenv("FPSO_DATABASE_URL_FILE", file)
    assert load(Settings).database_url == URL
    monkeypatch.setenv("FPSO_DATABASE_URL", "")
    monkeypatch.setenv("FPSO_DATABASE_URL_FILE", file)
    assert known_to_fpso()["FPSO_DATABASE_URL"] == URL


def test_migrations_read_them_and_do_not_tell(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://fpso:secret@127.0.0.1:1/fpso\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FPSO_")}
    done = subprocess.run(
        [sys.executable, "-m", "infra.migrations"],
        env={**environment, "FPSO_DATABASE_URL_FILE": str(tmp_path / "url")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "cannot migrate" in done.stderr
    assert "port 1 " in done.stderr, "it went where the file leads"
    assert "secret" not in done.stdout + done.stderr


def test_a_file_that_is_not_there_is_named_and_so_are_two_values(file: str) -> None:
    with pytest.raises(SystemExit, match=r"FPSO_AMQP_URL_FILE: .*No such file"):
        read_secrets({"FPSO_AMQP_URL_FILE": f"{file}.missing"})
    with pytest.raises(SystemExit, match="both set") as refused:
        read_secrets({"FPSO_DATABASE_URL": URL, "FPSO_DATABASE_URL_FILE": file})
    assert "secret" not in str(refused.value)
