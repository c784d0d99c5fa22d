"""The gateway that the command line talks to."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.gateway import Gateway


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gateway]:
    """A gateway that FPSO_GATEWAY_URL names, and an empty current folder."""
    gateway = Gateway()
    thread = threading.Thread(target=gateway.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.chdir(tmp_path)
    for name in ("FPSO_AMQP_URL", "FPSO_DATABASE_URL", "FPSO_PORT", "FPSO_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FPSO_GATEWAY_URL", gateway.url)
    monkeypatch.setenv("COLUMNS", "200")
    yield gateway
    gateway.server.shutdown()
    thread.join()
    gateway.server.server_close()
