"""The merged OpenAPI document: valid, and complete in what it declares."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from infra import openapi
from infra.problems import CATALOGUE

COMMITTED: dict[str, Any] = json.loads(openapi.MERGED.read_text(encoding="utf-8"))
COMMON = {"403", "422", "500", "503"}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in COMMITTED["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def test_the_committed_document_is_valid_openapi_3_1() -> None:
    OpenAPIV31SpecValidator(COMMITTED).validate()


def test_every_read_and_command_of_the_contract_is_there() -> None:
    assert {(method.upper(), path) for path, method, _ in operations()} >= {
        ("GET", "/v1/vessels"),
        ("GET", "/v1/vessels/{code}"),
        ("GET", "/v1/vessels/{code}/equipment"),
        ("GET", "/v1/vessels/{code}/operation-costs"),
        ("GET", "/v1/equipment"),
        ("GET", "/v1/equipment/{code}"),
        ("GET", "/v1/operations"),
        ("GET", "/v1/operations/{id}"),
        ("GET", "/v1/projection"),
        ("GET", "/v1/epochs"),
        ("POST", "/v1/vessels"),
        ("PATCH", "/v1/vessels/{code}"),
        ("POST", "/v1/vessels/{code}/decommission"),
        ("POST", "/v1/vessels/{code}/recommission"),
        ("POST", "/v1/vessels/{code}/equipment"),
        ("POST", "/v1/vessels/{code}/equipment/import"),
        ("PATCH", "/v1/equipment/{code}"),
        ("POST", "/v1/equipment/deactivate"),
        ("POST", "/v1/equipment/activate"),
        ("POST", "/v1/equipment/{code}/deactivate"),
        ("POST", "/v1/equipment/{code}/activate"),
        ("POST", "/v1/equipment/{code}/transfer"),
        ("POST", "/v1/equipment/{code}/operations"),
        ("POST", "/v1/equipment/{code}/operations/{id}/void"),
    }


def test_every_operation_declares_its_errors_and_the_correlation_id() -> None:
    for path, method, operation in operations():
        where = f"{method} {path}"
        assert operation["description"], where
        assert set(operation["responses"]) >= COMMON, where
        assert {"$ref": "#/components/parameters/X-Correlation-ID"} in operation["parameters"], where
        for status, response in operation["responses"].items():
            assert "X-Correlation-ID" in response["headers"], where
            if status >= "400":
                assert list(response["content"]) == ["application/problem+json"], where
            if status == "503":
                assert "Retry-After" in response["headers"], where


def test_every_problem_that_is_declared_exists_and_has_its_status() -> None:
    for path, method, operation in operations():
        for status, response in operation["responses"].items():
            for slug in response.get("content", {}).get("application/problem+json", {}).get("examples", {}):
                assert str(CATALOGUE[slug].status) == status, f"{method} {path}"


def test_every_body_and_every_answer_has_an_example() -> None:
    schemas = COMMITTED["components"]["schemas"]
    for path, method, operation in operations():
        contents = [operation["requestBody"]["content"]] if "requestBody" in operation else []
        contents += [
            response["content"]
            for status, response in operation["responses"].items()
            if status < "300" and "content" in response
        ]
        for content in contents:
            reference = content.get("application/json", {}).get("schema", {}).get("$ref")
            if reference is not None:
                assert schemas[reference.rpartition("/")[2]].get("examples"), f"{method} {path} {reference}"


def test_services_that_mean_different_things_by_one_name_are_refused() -> None:
    def described(thing: dict[str, Any]) -> dict[str, Any]:
        return {
            "info": {"description": ""},
            "paths": {},
            "components": {"schemas": {"A": thing}},
        }

    assert openapi.merge([described({"type": "string"})] * 2, "1")["components"]["schemas"]["A"]
    with pytest.raises(ValueError, match="'A'"):
        openapi.merge([described({"type": "string"}), described({"type": "integer"})], "1")


def test_an_undeclared_header_is_refused() -> None:
    with pytest.raises(KeyError, match="X-Nonsense"):
        openapi.response_headers("X-Nonsense")


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/vessels", {"GET", "POST"}),
        ("/v1/vessels/A B", {"GET", "PATCH"}),
        ("/v1/equipment/x/deactivate", {"POST"}),
        ("/v1/vessels/A/B", set()),
        ("/v1", set()),
    ],
)
def test_methods_of_a_path_are_those_of_both_apis(path: str, methods: set[str]) -> None:
    assert openapi.methods_at(path) == methods
