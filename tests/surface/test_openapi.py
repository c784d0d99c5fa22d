"""The API does what its OpenAPI document says, whatever it is sent: schemathesis tries to show that it does not.

It takes the examples of the document, then each value at the edges of its rules and just beyond, then random
ones, and follows what answers lead to. A run leaves half of the paths to the next ones, unless it is asked
for more: ``FPSO_SCHEMATHESIS_EXAMPLES=500`` (random requests for each operation). A run comes again with
``FPSO_SCHEMATHESIS_SEED``.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from infra import openapi
from infra.local.system import System
from tests.surface.hooks import SEEDED

EXAMPLES = os.environ.get("FPSO_SCHEMATHESIS_EXAMPLES")
CHECKOUT = Path(__file__).parents[2]
ENDLESS = "/v1/events/stream"


@pytest.fixture(scope="module")
def seeded(fpso: httpx.Client) -> None:
    """Something of everything, so that requests reach what they are about."""
    assert fpso.post("/v1/vessels", json={"code": "VAL"}).status_code == 201
    fpso.post("/v1/vessels", json={"code": "ODIN"})
    codes = ["23-LSHH-96138 (2)", "23-KA-9101", *(f"E{number}" for number in range(SEEDED))]
    rows = "".join(f"{code},n,l\n" for code in codes)
    content = f"code,name,location\n{rows}".encode()
    imported = fpso.post(
        "/v1/vessels/VAL/equipment/import", content=content, headers={"Content-Type": "text/csv"}
    )
    position = imported.json()["position"]
    assert position > SEEDED
    assert fpso.get("/v1/vessels", params={"min_position": position}).status_code == 200


@pytest.mark.timeout(7200 if EXAMPLES else 400)
def test_whatever_is_sent_is_answered_as_the_document_says(
    system: System, seeded: None, key: str, tmp_path: Path
) -> None:
    settings = tmp_path / "schemathesis.toml"
    settings.write_text(f'[auth.openapi.bearer]\nbearer = "{key}"\n')
    seed = int(os.environ.get("FPSO_SCHEMATHESIS_SEED", random.randrange(2**32)))
    print(f"FPSO_SCHEMATHESIS_SEED={seed}")
    paths = sorted(json.loads(openapi.MERGED.read_text())["paths"])
    left_out = [] if EXAMPLES else random.Random(seed).sample(paths, len(paths) // 2)
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"),
            "--config-file",
            settings,
            "run",
            f"{system.gateway_url}/openapi.json",
            f"--seed={seed}",
            f"--max-examples={EXAMPLES or 2}",
            *(f"--exclude-path={path}" for path in {ENDLESS, *left_out}),
            "--phases=examples,coverage,fuzzing,stateful",
            "--workers=1",  # Python before 3.11.5 cannot parse itself in two threads
            "--generation-allow-x00=false",
            "--continue-on-failure",
            "--no-shrink",
            "--generation-codec=utf-8",
            "--generation-database=none",
            "--suppress-health-check=all",
            "--warnings=off",
            "--no-color",
        ],
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.surface.hooks", "PYTHONPATH": str(CHECKOUT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"FPSO_SCHEMATHESIS_SEED={seed}\n{done.stdout}\n{done.stderr}"
