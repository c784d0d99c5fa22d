"""Documentation works with no internet: everything that a page loads comes from here."""

import re
from html.parser import HTMLParser

import httpx
import jsonschema
import pytest

from events.catalogue import EVENT_TYPES
from infra.problems import CATALOGUE


class Loads(HTMLParser):
    """What a page would have its browser fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.inline_scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        for name in ("src", "spec-url") + (("href",) if tag == "link" else ()):
            if url := values.get(name):
                self.urls.append(url)
        self.inline_scripts += tag == "script" and "src" not in values


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/", "/problems", "/problems/forbidden"])
async def test_a_page_loads_nothing_from_elsewhere(alone: httpx.AsyncClient, path: str) -> None:
    page = await alone.get(path)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert not re.findall(r"https?://", page.text)
    loads = Loads(page.text)
    assert loads.inline_scripts == 0  # its policy would not let them run
    for url in loads.urls:
        assert url.startswith("/")
        loaded = await alone.get(url)
        assert loaded.status_code == 200, url
        assert len(loaded.content) > 100


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/"])
async def test_a_pages_policy_keeps_it_from_the_internet(alone: httpx.AsyncClient, path: str) -> None:
    policy = (await alone.get(path)).headers["Content-Security-Policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    sources = {source for value in directives.values() for source in value.split()}
    assert sources <= {"'none'", "'self'", "'unsafe-inline'", "data:", "blob:"}
    assert "'unsafe-inline'" not in directives.get("script-src", "")


async def test_assets_of_the_viewers_may_be_kept(alone: httpx.AsyncClient) -> None:
    asset = await alone.get("/docs/assets/swagger-ui-bundle.js")
    assert asset.headers["Cache-Control"] == "public, max-age=86400"
    assert asset.headers["Content-Type"].startswith("text/javascript")
    known = {"If-None-Match": asset.headers["ETag"]}
    assert (await alone.get("/docs/assets/swagger-ui-bundle.js", headers=known)).status_code == 304
    for path in ("/docs/assets/none.js", "/docs/assets/..%2F..%2Fcore.py", "/docs/assets/../core.py"):
        missing = await alone.get(path)
        assert missing.status_code == 404
        assert missing.json()["type"] == "/problems/not-found"


async def test_the_openapi_document_is_that_of_both_apis(alone: httpx.AsyncClient) -> None:
    answer = await alone.get("/openapi.json")
    document = answer.json()
    assert set(document["paths"]["/v1/vessels"]) == {"get", "post"}
    known = {"If-None-Match": answer.headers["ETag"]}
    assert (await alone.get("/openapi.json", headers=known)).status_code == 304


async def test_the_asyncapi_document_is_linked_and_served(alone: httpx.AsyncClient) -> None:
    assert 'href="/asyncapi.json"' in (await alone.get("/")).text
    answer = await alone.get("/asyncapi.json")
    assert answer.headers["Content-Type"] == "application/json"
    assert set(EVENT_TYPES) <= answer.json()["channels"]["events"]["messages"].keys()
    known = {"If-None-Match": answer.headers["ETag"]}
    assert (await alone.get("/asyncapi.json", headers=known)).status_code == 304


@pytest.mark.parametrize("type_", EVENT_TYPES)
async def test_every_event_has_its_schema(alone: httpx.AsyncClient, type_: str) -> None:
    answer = await alone.get(f"/schemas/{type_}.json")
    assert answer.headers["Content-Type"] == "application/schema+json"
    assert answer.json()["$id"] == f"urn:fpso:schema:{type_}"
    assert answer.json()["examples"]
    jsonschema.Draft202012Validator.check_schema(answer.json())


@pytest.mark.parametrize(
    "path", ["/schemas/none.json", "/schemas/fpso.vessel.registered.v1", "/schemas", "/problems/none"]
)
async def test_what_is_not_there_is_a_problem(alone: httpx.AsyncClient, path: str) -> None:
    answer = await alone.get(path)
    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/not-found"


@pytest.mark.parametrize("slug", CATALOGUE)
async def test_every_problem_has_a_page_and_a_document(alone: httpx.AsyncClient, slug: str) -> None:
    kind = next(kind for name, kind in CATALOGUE.items() if name == slug)
    page = await alone.get(f"/problems/{slug}")
    assert page.headers["Vary"] == "Accept"
    assert slug in page.text
    document = await alone.get(f"/problems/{slug}", headers={"Accept": "application/json"})
    assert document.headers["Vary"] == "Accept"
    assert document.json() == {
        "type": f"/problems/{slug}",
        "title": kind.title,
        "status": kind.status,
        "help": kind.help,
    }


async def test_the_list_of_problems(alone: httpx.AsyncClient) -> None:
    page = await alone.get("/problems", headers={"Accept": "text/html,application/json;q=0.9"})
    assert all(f'href="/problems/{slug}"' in page.text for slug in CATALOGUE)
    document = await alone.get("/problems", headers={"Accept": "application/json"})
    assert [item["type"] for item in document.json()["items"]] == [f"/problems/{slug}" for slug in CATALOGUE]
