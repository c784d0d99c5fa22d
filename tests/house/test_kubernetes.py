"""The manifests of infra/kubernetes are valid, and deploy what docker-compose.yml deploys."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic_settings import BaseSettings

from infra import broker_users
from infra.settings import Settings
from infra.traefik.routes import COMMANDS, EVERYTHING_ELSE, NOBODY, UNKNOWN, Backend, refusals, routes
from tests.house.test_deployment import OURS
from tests.house.test_documents import CHECKOUT, SETTINGS

FOLDER = CHECKOUT / "infra/kubernetes"
OLDEST = "1.34"
"""Of Kubernetes; what is not in it (a pause before SIGTERM, say) must not be used."""
MIGRATIONS = {"FPSO_DATABASE_URL", "FPSO_READ_DATABASE_URL", "FPSO_ROLE_PASSWORDS", "FPSO_LOG_LEVEL"}

Manifest = dict[str, Any]


def manifests(*paths: Path) -> list[Manifest]:
    return [one for path in paths for one in yaml.safe_load_all(path.read_text())]


@cache
def of_kind(kind: str) -> dict[str, Manifest]:
    """All of ``kind``, in base and example, by name."""
    everything = manifests(*FOLDER.glob("*/*.yaml"))
    return {one["metadata"]["name"]: one for one in everything if one.get("kind") == kind}


def pod_of(manifest: Manifest) -> Manifest:
    found: Manifest = manifest["spec"]["template"]["spec"]
    return found


def variables(container: Manifest) -> dict[str, Manifest]:
    return {one["name"]: one for one in container["env"]}


EVERY_SERVICE = manifests(FOLDER / "base/every-service.yaml")[0]
PODS = {
    name.removeprefix("fpso-").replace("-", "_"): pod_of(one)
    for name, one in {**of_kind("Deployment"), **of_kind("Job")}.items()
    if name != "every-service"
}
OVERLAY = yaml.safe_load((CHECKOUT / "infra/docker-compose.oidc.yml").read_text())
"""Of Compose, for an OpenID Connect issuer."""
PROCESSES = {name: pod for name, pod in PODS.items() if name != "owner"}
"""Of the system; ``owner`` waits for commands."""


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())["services"]
    return found


BUILT_IN = [
    pytest.param(one, id=f"{path.relative_to(FOLDER)}:{one['kind']}")
    for path in sorted(FOLDER.glob("*/*.yaml"))
    for one in manifests(path)
    # Kubernetes' own kinds; of the operators' it has no schemas, and a patch is no whole manifest.
    if re.fullmatch(r"v1|(apps|batch|policy|autoscaling|networking\.k8s\.io)/.*", one.get("apiVersion", ""))
    if one is not EVERY_SERVICE and one["metadata"]["name"] != "every-service"
]


@pytest.mark.parametrize("manifest", BUILT_IN)
def test_manifests_fit_kubernetes_schemas(manifest: Manifest) -> None:
    kubernetes_validate.validate(manifest, OLDEST, strict=True)


@pytest.mark.parametrize("folder", ["base", "example"])
def test_every_manifest_is_in_its_kustomization(folder: str) -> None:
    kustomization = manifests(FOLDER / folder / "kustomization.yaml")[0]
    listed = {*kustomization["resources"], *(one["path"] for one in kustomization.get("patches", ()))}
    there = {path.name for path in (FOLDER / folder).glob("*.yaml")}
    assert listed - {"../base"} == there - {"kustomization.yaml", "traefik-values.yaml"}


def test_every_process_is_patched_to_have_no_rights_and_write_nothing() -> None:
    [patch] = manifests(FOLDER / "base/kustomization.yaml")[0]["patches"]
    assert patch == {"path": "every-service.yaml", "target": {"kind": "Deployment|Job"}}
    pod = pod_of(EVERY_SERVICE)
    [service] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"\nUSER {pod['securityContext']['runAsUser']}:" in (CHECKOUT / "infra/Dockerfile").read_text()
    assert pod["enableServiceLinks"] is pod["automountServiceAccountToken"] is False
    for process in PODS.values():
        assert [one["name"] for one in process["containers"]] == [service["name"]]
        assert "securityContext" not in {*process, *process["containers"][0]}
        for container in process.get("initContainers", ()):
            assert container["securityContext"] == service["securityContext"]


def test_the_processes_are_those_of_compose(composed: dict[str, Any]) -> None:
    # Traefik finds replicas by itself here, as docs/adr/0004 says.
    assert set(PROCESSES) == set(OURS) - {"gateway_discovery"}
    [service] = pod_of(EVERY_SERVICE)["containers"]
    for name, pod in PROCESSES.items():
        assert pod["containers"][0]["command"] == composed[name]["command"]
        assert composed[name]["image"].startswith(f"{service['image']}:")


def test_every_variable_is_a_setting_and_compose_sets_the_same(composed: dict[str, Any]) -> None:
    allowed: dict[str, type[BaseSettings]] = {one.__name__: one for one in SETTINGS}
    known = {f"FPSO_{field.upper()}" for one in allowed.values() for field in one.model_fields}
    known |= {"FPSO_AUDIT_KEY_FILE", "FPSO_AUDIT_ORIGIN"} | MIGRATIONS
    common = set(variables(pod_of(EVERY_SERVICE)["containers"][0]))
    for name, pod in PROCESSES.items():
        used = {one for one in {*variables(pod["containers"][0]), *common} if one.startswith("FPSO_")}
        assert used <= known
        tokens = OVERLAY["services"].get(name, {}).get("environment", {})
        # The gateway is not bound to an address here.
        assert used == {*composed[name]["environment"], *tokens} - {"FPSO_BIND"}


def test_only_what_is_defined_is_referred_to() -> None:
    [generated] = manifests(FOLDER / "base/kustomization.yaml")[0]["configMapGenerator"]
    keys = {literal.partition("=")[0] for literal in generated["literals"]}
    # Made by operators, or by hand as docs/operations.md says.
    secrets = {
        "fpso-postgres-app": {"uri"},
        "fpso-rabbitmq-default-user": {"connection_string"},
        "relay-user-credentials": {"username", "password"},
        "projector-user-credentials": {"username", "password"},
        "fpso-roles": {role.removeprefix("fpso_") for role in _roles()},
    }
    for pod in [*PODS.values(), pod_of(EVERY_SERVICE)]:
        seen: set[str] = set()
        for one in pod["containers"][0]["env"]:
            match one.get("valueFrom"):
                case {"configMapKeyRef": {"name": "fpso", "key": key}}:
                    assert key in keys
                case {"secretKeyRef": {"name": name, "key": key}}:
                    assert key in secrets[name]
                case other:
                    assert other is None
                    assert set(re.findall(r"\$\((\w+)\)", one["value"])) <= seen  # Kubernetes reads downwards
            seen.add(one["name"])


def _roles() -> list[str]:
    value = variables(PROCESSES["migrate"]["containers"][0])["FPSO_ROLE_PASSWORDS"]["value"]
    return [pair.partition("=")[0] for pair in value.split(",")]


def test_every_service_connects_as_its_own_role() -> None:
    roles = _roles()
    for name, pod in PROCESSES.items():
        if name != "migrate":
            url = variables(pod["containers"][0])["FPSO_DATABASE_URL"]["value"]
            role = name.removesuffix("_api")
            assert url == f"postgresql://fpso_{role}:$(PASSWORD)@$(DATABASE)"
            assert f"fpso_{role}" in roles


def test_a_process_has_time_to_drain() -> None:
    drain_seconds = Settings.model_fields["drain_seconds"].default
    for name, pod in PROCESSES.items():
        if name != "migrate":
            lead = variables(pod["containers"][0]).get("FPSO_DRAIN_LEAD_SECONDS", {"value": "0"})
            lead_seconds = float(lead["value"])
            assert pod["terminationGracePeriodSeconds"] >= lead_seconds + drain_seconds + 10
            assert bool(lead_seconds) is name.endswith("_api")  # whom the gateway sends requests


def test_probes_ask_the_ops_port() -> None:
    for name, pod in PROCESSES.items():
        if name != "migrate":
            [service] = pod["containers"]
            assert {"name": "ops", "containerPort": 9000} in service["ports"]
            probes = {
                kind: service[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")
            }
            assert {probe["port"] for probe in probes.values()} == {"ops"}
            assert probes["liveness"]["path"] == "/livez"
            ready = "startup" if name.endswith("_api") else "readiness"
            assert probes[ready]["path"] == "/readyz"
    assert "FPSO_OPS_PORT=9000" in (CHECKOUT / "infra/Dockerfile").read_text()


def test_a_service_is_the_user_of_the_broker_whose_rights_it_needs(composed: dict[str, Any]) -> None:
    for name, pod in PROCESSES.items():
        url = variables(pod["containers"][0]).get("FPSO_AMQP_URL")
        assert bool(url) is (name in ("relay", "projector"))
        if url:
            used = {
                one["valueFrom"]["secretKeyRef"]["name"]
                for one in pod["containers"][0]["env"]
                if "AMQP_" in one["name"] and "valueFrom" in one
            }
            assert used == {f"{name}-user-credentials"}
            assert composed[name]["environment"]["FPSO_AMQP_URL"].startswith(f"amqp://fpso_{name}:")


# --- who can reach whom -----------------------------------------------------------------------------------


def test_networks_are_those_of_compose(composed: dict[str, Any]) -> None:
    for network in ("gateway", "database", "broker", "webhooks"):
        [expression] = of_kind("NetworkPolicy")[network]["spec"]["podSelector"]["matchExpressions"]
        there = {name.replace("-", "_") for name in expression["values"]}
        assert there == {
            name for name in PODS if any(one.startswith(network) for one in composed[name]["networks"])
        }
    assert of_kind("NetworkPolicy")["nothing-else"]["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_the_gateway_routes_as_by_compose() -> None:
    expected = routes([Backend("http://10.0.0.1:8000")], [Backend("http://10.0.0.2:8000")])["http"]
    deployed = {
        route["match"]: (route["priority"], [one["name"] for one in route["middlewares"]], route["services"])
        for route in of_kind("IngressRoute")["fpso"]["spec"]["routes"]
    }
    services = {
        COMMANDS: {"name": "command-api", "port": "http", "responseForwarding": {"flushInterval": "-1ms"}},
        EVERYTHING_ELSE: {
            "name": "query-api",
            "port": "http",
            "responseForwarding": {"flushInterval": "-1ms"},
        },
        UNKNOWN: {"kind": "TraefikService", "name": NOBODY},
    }
    assert deployed == {
        router["rule"]: (router["priority"], router["middlewares"], [services[router["rule"]]])
        for router in expected["routers"].values()
    }
    middlewares = {name: one["spec"] for name, one in of_kind("Middleware").items()}
    for name, refusal in refusals().items():
        errors = refusal["errors"]
        service = {"name": errors["service"].replace("_", "-"), "port": "http"}
        assert middlewares[name] == {"errors": {**errors, "service": service}}
    assert middlewares["another-replica"] == expected["middlewares"]["another-replica"]
    assert set(middlewares) == set(expected["middlewares"])


def test_the_edge_is_that_of_compose(composed: dict[str, Any]) -> None:
    values = manifests(FOLDER / "example/traefik-values.yaml")[0]
    deployed = dict(
        argument.removeprefix("--").upper().replace(".", "_").split("=")
        for argument in values["additionalArguments"]
    )
    variables = composed["traefik"]["environment"]
    assert deployed == {
        name.removeprefix("TRAEFIK_"): str(value).upper()
        for name, value in variables.items()
        if name.startswith("TRAEFIK_ENTRYPOINTS_WEB_") and name != "TRAEFIK_ENTRYPOINTS_WEB_ADDRESS"
    }
    assert values["providers"]["kubernetesCRD"]["allowEmptyServices"] is True
    assert composed["traefik"]["image"] == f"traefik:{values['image']['tag']}"


def test_users_of_the_broker_have_the_rights_and_limits_of_make_run() -> None:
    expected = broker_users.definitions(dict.fromkeys(broker_users.USERS, ""))
    deployed = {name: one["spec"] for name, one in of_kind("Permission").items()}
    # The owner is the operator's own.
    assert [
        {"user": name, "vhost": one["vhost"], **one["permissions"]} for name, one in deployed.items()
    ] == [
        {**one, "user": one["user"].removeprefix("fpso_")}
        for one in expected["permissions"]
        if one["user"] != broker_users.OWNER
    ]
    assert {one["userReference"]["name"] for one in deployed.values()} == set(deployed)
    [user] = [one for one in expected["users"] if one["name"] == broker_users.SUBSCRIBER]
    limits = of_kind("User")["subscriber"]["spec"]["limits"]
    assert {f"max-{name}": value for name, value in limits.items()} == user["limits"]
    policies = [dict(one["spec"]) for one in of_kind("Policy").values()]
    for policy in policies:
        policy["apply-to"] = policy.pop("applyTo")
        del policy["rabbitmqClusterReference"]
    assert policies == expected["policies"]
