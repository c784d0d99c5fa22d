"""What of access control is settled at the start."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from infra.local.traefik import static_configuration
from infra.settings import ApiSettings

TOKENS = {"oidc_issuer": "https://id.example/realms/fleet", "oidc_audience": "fpso"}


def settings(**given: Any) -> ApiSettings:
    return ApiSettings(database_url="postgresql://", **given)


def test_a_system_is_exposed_with_access_control_only() -> None:
    for bind in ("127.0.0.1", "localhost", "::1", "[::1]"):
        assert settings(bind=bind).auth == "off"
    for bind in ("0.0.0.0", "::", "192.0.2.1", "fpso.example", ""):
        assert settings(bind=bind, auth="on").bind == bind
        with pytest.raises(ValidationError, match="FPSO_AUTH=off is refused"):
            settings(bind=bind)


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({"oidc_audience": None}, "go together"),
        ({"oidc_issuer": None}, "go together"),
        ({"oidc_issuer": "http://id.example"}, "https"),
        ({"oidc_issuer": "id.example"}, "https"),
    ],
)
def test_an_issuer_that_could_be_anybody_is_refused(given: dict[str, Any], cause: str) -> None:
    assert settings(**TOKENS).oidc_audience == "fpso"
    with pytest.raises(ValidationError, match=cause):
        settings(**TOKENS | given)


def test_strangers_do_not_fill_the_log_of_the_gateway(tmp_path: Path) -> None:
    logged = static_configuration("127.0.0.1:8088", tmp_path, tmp_path)["accessLog"]["filters"]["statusCodes"]
    ranges = [(one[:3], one[-3:]) for one in logged]
    found = {status for first, last in ranges for status in range(int(first), int(last) + 1)}
    assert found == {*range(400, 600)} - {401}


def test_compose_has_an_overlay_for_tokens() -> None:
    overlay = yaml.safe_load((Path(__file__).parents[2] / "infra/docker-compose.oidc.yml").read_text())
    variables = {f"FPSO_{name.upper()}" for name in ApiSettings.model_fields if name.startswith("oidc_")}
    assert overlay["services"].keys() == {"command_api", "query_api"}
    for service in overlay["services"].values():
        assert service["environment"].keys() == variables
        assert list(overlay["networks"]) == service["networks"]
