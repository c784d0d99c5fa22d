"""The documents agree with what they are about."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_settings import BaseSettings

from command_api.app import CommandSettings
from command_api.relay import RelaySettings
from command_api.webhooks.settings import DeliverySettings
from projector.__main__ import ProjectorSettings
from query_api.app import QuerySettings

CHECKOUT = Path(__file__).parents[2]
DOCUMENTS = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md")])
REQUIREMENTS = sorted(CHECKOUT.glob("requirements*.txt"))
SETTINGS: tuple[type[BaseSettings], ...] = (
    QuerySettings,
    CommandSettings,
    RelaySettings,
    ProjectorSettings,
    DeliverySettings,
)


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    return found


def names(requirements: list[str]) -> set[str]:
    """Of distributions, without extras, versions and markers; this project's own extras left out."""
    return {re.split(r"[\[<>=;~! ]", line, maxsplit=1)[0] for line in requirements} - {project()["name"]}


# --- links ------------------------------------------------------------------------------------------------


def links(document: Path) -> Iterator[str]:
    """The links of ``document`` that lead into this project."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(document: Path) -> set[str]:
    """Of the headings of ``document``, as they are made of them on the web."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: there is no such heading"


# --- dependencies -----------------------------------------------------------------------------------------


def test_every_dependency_has_its_line_and_every_line_its_dependency() -> None:
    sections = re.split(r"^## ", (CHECKOUT / "docs/dependencies.md").read_text(), flags=re.MULTILINE)[1:]
    documented = [set(re.findall(r"^\| `([^`]+)` \| \S", section, re.MULTILINE)) for section in sections]
    extras = project()["optional-dependencies"]
    assert documented == [
        names(project()["dependencies"]),
        names(extras["local"]),
        names(extras["dev"]),
    ]


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda path: path.name)
def test_requirements_are_pinned_with_hashes_and_name_no_server(file: Path) -> None:
    text = file.read_text()
    assert not re.search(r"https?://|^\s*-{1,2}(?!hash)[a-z]|\s@\s", text, re.MULTILINE)
    pinned = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert pinned
    for entry in re.split(r"\n(?=\S)", text):
        if not entry.startswith("#") and entry.strip():
            assert re.match(r"[\w.\-\[\],]+==\S+", entry), entry
            assert "--hash=sha256:" in entry, entry


def test_packages_for_node_are_pinned_with_hashes_and_name_no_server() -> None:
    folder = CHECKOUT / "tests/node"
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    locked = json.loads((folder / "package-lock.json").read_text())["packages"]
    assert locked.pop("")["dependencies"] == wanted
    for name, package in locked.items():
        assert package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, name
    for name, version in wanted.items():
        assert locked[f"node_modules/{name}"]["version"] == version
        assert f"`{name}`" in (CHECKOUT / "docs/dependencies.md").read_text()


def test_the_image_has_what_the_services_need_and_no_more() -> None:
    text = (CHECKOUT / "requirements.txt").read_text()
    pinned = set(re.findall(r"^([\w.\-]+)", text, re.MULTILINE))
    assert names(project()["dependencies"]) <= pinned
    assert not names(project()["optional-dependencies"]["local"]) & pinned


# --- settings ---------------------------------------------------------------------------------------------


def test_every_setting_is_documented() -> None:
    documented = set(re.findall(r"`(FPSO_[A-Z_]+)`", (CHECKOUT / "docs/operations.md").read_text()))
    settings = {f"FPSO_{name.upper()}" for kind in SETTINGS for name in kind.model_fields}
    assert settings - documented == set()


def test_every_documented_setting_exists() -> None:
    code = (
        "".join(
            path.read_text()
            for folder in ("infra", "command_api", "projector", "query_api")
            for path in (CHECKOUT / folder).rglob("*.py")
        )
        + (CHECKOUT / "docker-compose.yml").read_text()
    )
    settings = {f"FPSO_{name.upper()}" for kind in SETTINGS for name in kind.model_fields}
    for name in re.findall(r"`(FPSO_[A-Z_]+)`", (CHECKOUT / "docs/operations.md").read_text()):
        assert name in settings or name in code, name


def test_the_defaults_in_the_table_are_those_of_the_code() -> None:
    table = dict(
        re.findall(
            r"^\| `FPSO_([A-Z_]+)` \| `([^`]+)` \|", (CHECKOUT / "docs/operations.md").read_text(), re.M
        )
    )
    for kind in SETTINGS:
        for name, field in kind.model_fields.items():
            documented = table.get(name.upper())
            if documented is not None and field.default is not None and not field.is_required():
                if isinstance(field.default, int | float):
                    assert float(documented) == field.default, name
                elif name != "bind":
                    assert documented == str(field.default), name


# --- decisions --------------------------------------------------------------------------------------------


def test_decisions_are_numbered_and_have_their_parts() -> None:
    records = sorted((CHECKOUT / "docs/adr").glob("*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        text = record.read_text()
        assert text.startswith(f"# {int(record.name[:4])}. ")
        assert re.findall(r"^## (.*)$", text, re.M) == ["Context", "Decision", "Consequences", "Rejected"]
