"""The deployment keeps what it promises, and answers clients as `make run` does."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.broker_users import definitions
from infra.local import traefik as local_traefik
from infra.traefik.routes import Backend, routes

CHECKOUT = Path(__file__).parents[2]
OURS = ("command_api", "delivery", "gateway_discovery", "migrate", "projector", "query_api", "relay")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())["services"]
    return found


def test_nothing_but_the_gateway_is_published_and_that_on_loopback(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"traefik": ["${FPSO_BIND:-127.0.0.1}:${FPSO_PORT:-8088}:8088"]}


def test_no_service_has_rights_and_each_has_limits(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if name != "test":
            assert service["pids_limit"] <= 512, name
            assert service["mem_limit"] in ("512m", "1g", "2g"), name


def test_services_write_nothing(services: dict[str, Any]) -> None:
    assert {name for name, service in services.items() if not service.get("read_only")} == {
        "rabbitmq",
        "test",
    }
    for name in (*OURS, "owner", "postgres"):
        for mounted in services[name]["tmpfs"]:
            assert {"noexec", "nosuid", "nodev"} <= {*mounted.partition(":")[2].split(",")}, name


def test_services_are_not_root(services: dict[str, Any]) -> None:
    users = {name: service.get("user") for name, service in services.items()}
    # These begin as root, with the five rights to become a user of their own; the image `test` has its own user.
    begin_as_root = {"postgres", "rabbitmq"}
    assert {name for name, user in users.items() if user is None} == {*begin_as_root, "test"}
    assert {name for name, service in services.items() if "cap_add" in service} == begin_as_root
    assert {users[name] for name in (*OURS, "owner")} == {"10001:10001"}
    assert users["traefik"] == "65534:65534"


def test_nobody_gets_the_engines_socket(services: dict[str, Any]) -> None:
    assert "docker.sock" not in (CHECKOUT / "docker-compose.yml").read_text()
    assert not any(service.get("privileged") for service in services.values())


def test_commands_and_queries_cannot_reach_the_broker(services: dict[str, Any]) -> None:
    reach = {name for name, service in services.items() if "broker" in service.get("networks", ())}
    assert reach == {"rabbitmq", "relay", "projector", "owner"}


def test_behind_the_database_nobody_reaches_another(services: dict[str, Any]) -> None:
    alone = [network for network in services["postgres"]["networks"] if network != "database-owner"]
    for network in alone:
        [_, _] = [name for name, service in services.items() if network in service.get("networks", ())]
    networks = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())["networks"]
    inside = {name for name, one in networks.items() if one.get("internal")}
    assert inside == {*services["postgres"]["networks"], "gateway", "broker"}


def test_whoever_speaks_to_strangers_reaches_nothing_but_the_database(services: dict[str, Any]) -> None:
    assert services["delivery"]["networks"] == ["database-delivery", "webhooks"]
    assert [name for name, one in services.items() if "webhooks" in one.get("networks", ())] == ["delivery"]


def test_nobody_but_the_relay_gets_the_private_keys(services: dict[str, Any]) -> None:
    mounted = {name for name, service in services.items() if "audit-key" in str(service.get("volumes", ""))}
    assert mounted == {"relay"}
    [volume] = services["relay"]["volumes"]
    folder = volume.partition(":")[2]
    assert Path(services["relay"]["environment"]["FPSO_AUDIT_KEY_FILE"]).parent == Path(folder)
    # A named volume takes owner and mode from the image's folder: the user must be able to write there.
    assert f"install -d -o fpso -g fpso -m 700 {folder}\n" in (CHECKOUT / "infra/Dockerfile").read_text()


def test_the_brokers_users_and_rights_are_those_of_make_run() -> None:
    configs = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())["configs"]
    content = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", configs["rabbitmq-definitions"]["content"])
    passwords = {
        "fpso": "rabbit",
        "fpso_relay": "relay",
        "fpso_projector": "projector",
        "subscriber": "subscriber",
    }
    assert json.loads(content.replace("$$", "$")) == definitions(passwords)


def test_the_image_is_not_root() -> None:
    stages = (CHECKOUT / "infra/Dockerfile").read_text().split("\nFROM ")
    service, test = stages[3], stages[4]
    assert "\nUSER 10001:10001\n" in service
    assert "\nUSER fpso\n" in test
    assert "requirements.txt" not in service  # nothing is installed in it


def flat(configuration: dict[str, Any], prefix: str) -> dict[str, str]:
    """Traefik's static configuration as the environment variables that say the same."""
    variables: dict[str, str] = {}
    for name, value in configuration.items():
        variable = f"{prefix}_{name.upper()}"
        if isinstance(value, dict):
            variables |= flat(value, variable)
        else:
            variables[variable] = str(value).lower() if isinstance(value, bool) else str(value)
    return variables


def test_a_client_is_answered_as_by_make_run(services: dict[str, Any], tmp_path: Path) -> None:
    local = local_traefik.static_configuration("127.0.0.1:8088", tmp_path, tmp_path)["entryPoints"]["web"]
    edge = {name: local[name] for name in ("http", "forwardedHeaders")}
    edge["transport"] = {"respondingTimeouts": local["transport"]["respondingTimeouts"]}
    expected = flat(edge, "TRAEFIK_ENTRYPOINTS_WEB")
    deployed = services["traefik"]["environment"]
    assert {name: deployed.get(name) for name in expected} == expected


def test_both_gateways_tell_commands_from_the_rest_alike() -> None:
    commands, queries = [Backend("http://10.0.0.1:8000")], [Backend("http://10.0.0.2:8000")]
    ours = routes(commands, queries)["http"]
    theirs = local_traefik.rules_of({"command_api": commands, "query_api": queries})["http"]
    balancers = [found["services"]["command_api"]["loadBalancer"] for found in (ours, theirs)]
    assert balancers[0]["servers"] == balancers[1]["servers"]
    assert balancers[0]["responseForwarding"] == balancers[1]["responseForwarding"]
