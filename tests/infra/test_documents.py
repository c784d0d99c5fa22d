"""What is made of the code is up to date, and a released event is never broken."""

from pathlib import Path

import pytest
from pydantic import field_validator

from events import catalogue
from events.catalogue import EVENT_TYPES
from events.vessel import VesselRenamed
from infra import documents, openapi
from infra.documents import breakages, current_schemas, main, released_schemas

VESSEL_RENAMED = "fpso.vessel.renamed.v1"


def test_the_committed_documents_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_document_is_told_with_the_difference_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stale, fresh = tmp_path / "new" / "stale.md", tmp_path / "fresh.md"
    fresh.write_text("as it was\n")
    monkeypatch.setattr(documents, "documents", lambda _: {stale: "as it is\n", fresh: "as it was\n"})
    assert main(["--check"]) == 1
    told = capsys.readouterr().err
    assert "+as it is" in told
    assert "stale.md is stale: run `make documents`" in told
    assert "fresh.md" not in told
    assert not stale.exists()
    assert main([]) == 0
    assert stale.read_text() == "as it is\n"
    assert main(["--check"]) == 0


def test_every_type_is_released() -> None:
    assert current_schemas().keys() <= released_schemas().keys()
    assert list(breakages(released_schemas(), current_schemas())) == []


@pytest.mark.parametrize("arguments", [[], ["--check"]])
def test_a_released_event_is_neither_broken_nor_released_anew(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_reached(_: object) -> dict[Path, str]:
        raise AssertionError("documents were made of a broken contract")

    now = current_schemas()
    broken = {**now[VESSEL_RENAMED], "required": []}
    monkeypatch.setattr(documents, "current_schemas", lambda: {**now, VESSEL_RENAMED: broken})
    monkeypatch.setattr(documents, "documents", not_reached)
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert f"{VESSEL_RENAMED} /name is required no more" in told
    assert "new type .vN" in told


def test_a_released_type_goes_only_where_an_upcaster_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {type_: model for type_, model in EVENT_TYPES.items() if type_ != VESSEL_RENAMED}
    monkeypatch.setattr(catalogue, "EVENT_TYPES", models)
    now = {type_: schema for type_, schema in current_schemas().items() if type_ in models}
    told = list(breakages(released_schemas(), now))
    assert told
    assert all(f"unknown event type '{VESSEL_RENAMED}'" in line for line in told)
    upcasters = {VESSEL_RENAMED: lambda data: ("fpso.vessel.registered.v1", {"code": "ODIN", **data})}
    monkeypatch.setattr(catalogue, "UPCASTERS", upcasters)
    assert list(breakages(released_schemas(), now)) == []


def test_a_rule_that_no_schema_shows_must_not_get_stricter(monkeypatch: pytest.MonkeyPatch) -> None:
    class Renamed(VesselRenamed):
        @field_validator("name")
        @classmethod
        def _is_short(cls, name: str) -> str:
            if len(name) > 10:
                raise ValueError("a name has at most 10 characters")
            return name

    monkeypatch.setattr(catalogue, "EVENT_TYPES", {**EVENT_TYPES, VESSEL_RENAMED: Renamed})
    [told] = breakages(released_schemas(), current_schemas())
    assert "at most 10 characters" in told


def test_a_superseded_type_stays_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {**current_schemas()[VESSEL_RENAMED], "title": "fpso.vessel.renamed.v0"}
    monkeypatch.setattr(openapi, "SERVICES", ())
    monkeypatch.setattr(openapi, "merge", lambda *_: {})
    made = {path.name: text for path, text in documents.documents({"fpso.vessel.renamed.v0": old}).items()}
    assert "## fpso.vessel.renamed.v0" in made["events.md"]
    assert '"fpso.vessel.renamed.v0"' in made["asyncapi.json"]
    assert "fpso.vessel.renamed.v0.json" in made
