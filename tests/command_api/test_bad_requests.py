"""What bad requests get: an answer that says what to mend, and nothing changed."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.command_api.conftest import pointers, problem

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"code": ""}, ["/code"]),
        ({"code": "a/b"}, ["/code"]),
        ({"code": "x" * 65}, ["/code"]),
        ({"code": 1}, ["/code"]),
        ({}, ["/code"]),
        ({"code": "A", "name": ""}, ["/name"]),
        ({"code": "A", "name": "x" * 201}, ["/name"]),
        ({"code": "A", "nmae": "typo"}, ["/nmae"]),
        ({"code": "", "name": "", "a~b/c": 1}, ["/code", "/name", "/a~0b~1c"]),
        ([], [""]),
        ("text", [""]),
    ],
)
async def test_every_fault_is_named_by_its_pointer(
    api: httpx.AsyncClient, body: object, expected: list[str]
) -> None:
    assert pointers(await api.post("/v1/vessels", json=body)) == expected


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"code": "A"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"code": NaN}',
        b'{"code": "\\ud800"}',
        b"nul\x00",
    ],
)
async def test_a_body_that_is_not_json_is_refused(api: httpx.AsyncClient, content: bytes) -> None:
    assert problem(await api.post("/v1/vessels", content=content, headers=JSON)) == (422, "invalid-request")


@pytest.mark.parametrize(
    "content",
    [
        b'{"code": "A", "code": "B"}',
        b'{"code": "A", "c\\u006fde": "A"}',
        b'{"code": "A", "name": "n", "attributes": {"x": "1", "x": "2"}}',
    ],
)
async def test_a_member_that_is_there_twice_is_refused(api: httpx.AsyncClient, content: bytes) -> None:
    """Whoever looks at the request on its way may have read the other one."""
    answer = await api.post("/v1/vessels", content=content, headers=JSON)
    assert pointers(answer) == [""]
    assert "is there more than once" in answer.json()["detail"]


async def test_a_member_that_is_there_twice_among_many_is_found_at_once(api: httpx.AsyncClient) -> None:
    content = "{" + ",".join(f'"{number % 99_999}":1' for number in range(100_000)) + "}"
    answer = await api.post("/v1/vessels", content=content, headers=JSON)
    assert answer.json()["detail"] == "the member '0' is there more than once"


@pytest.mark.parametrize("name", ["Content-Type", "Content-Encoding"])
async def test_a_header_that_says_two_things_is_not_supported(api: httpx.AsyncClient, name: str) -> None:
    first, second = {"Content-Type": JSON["content-type"], "Content-Encoding": "identity"}[name], "gzip"
    headers = [("Content-Type", JSON["content-type"])] if name != "Content-Type" else []
    answer = await api.post(
        "/v1/vessels", content=b'{"code": "A"}', headers=[*headers, (name, first), (name, second)]
    )
    assert problem(answer) == (415, "unsupported-media-type")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "text/csv", "", "application/jsonx"]
)
async def test_another_content_type_is_415(api: httpx.AsyncClient, content_type: str) -> None:
    answer = await api.post("/v1/vessels", content=b'{"code": "A"}', headers={"content-type": content_type})
    assert problem(answer) == (415, "unsupported-media-type")


async def test_a_merge_patch_is_for_patches_only(api: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/merge-patch+json"}
    assert problem(await api.post("/v1/vessels", content=b'{"code": "A"}', headers=headers)) == (
        415,
        "unsupported-media-type",
    )


async def test_parameters_of_a_content_type_are_no_matter(api: httpx.AsyncClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert (await api.post("/v1/vessels", content=b'{"code": "A"}', headers=headers)).status_code == 201


async def test_another_character_set_is_415(api: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json; charset=iso-8859-1"}
    answer = await api.post("/v1/vessels", content=b'{"code": "A"}', headers=headers)
    assert problem(answer) == (415, "unsupported-media-type")


async def test_a_compressed_body_is_415(api: httpx.AsyncClient) -> None:
    headers = {**JSON, "content-encoding": "gzip"}
    assert problem(await api.post("/v1/vessels", content=b"\x1f\x8b", headers=headers)) == (
        415,
        "unsupported-media-type",
    )


async def test_a_body_that_is_said_not_to_be_compressed_is_taken(api: httpx.AsyncClient) -> None:
    headers = {**JSON, "content-encoding": "Identity"}
    assert (await api.post("/v1/vessels", content=b'{"code": "A"}', headers=headers)).status_code == 201


@pytest.mark.parametrize("path", ["/v1/vessels/VAL/decommission", "/v1/equipment/A/deactivate"])
async def test_an_optional_body_has_a_content_type_too(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.post(path, content=b"reason=x", headers={"content-type": "text/plain"})
    assert problem(answer) == (415, "unsupported-media-type")
    assert pointers(await api.post(path, json={"reason": 1})) == ["/reason"]


@pytest.mark.parametrize("bytes_over", [1, 1000, 3_000_000, 20_000_000])
async def test_a_large_body_is_413(api: httpx.AsyncClient, bytes_over: int) -> None:
    content = b'{"code": "' + b"x" * (1024 * 1024 + bytes_over - 12) + b'"}'
    assert len(content) == 1024 * 1024 + bytes_over

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 65_536):
            yield content[start : start + 65_536]

    for body in (content, pieces()):
        answer = await api.post("/v1/vessels", content=body, headers=JSON)
        assert problem(answer) == (413, "body-too-large")


@pytest.mark.parametrize(
    "code", ["a%2Fb", "a%5Cb", "a%3Fb", "a%23b", "a%25b", "a%00b", "a%E2%80%8Bb", "%2E%2E", "x" * 65, "%20"]
)
async def test_a_forbidden_code_in_a_path_is_422(api: httpx.AsyncClient, code: str) -> None:
    assert pointers(await api.post(f"/v1/equipment/{code}/deactivate")) == ["/path/code"]


@pytest.mark.parametrize("code", ["a%FFb", "a%C3", "a%ZZ"])
async def test_a_path_that_is_not_utf8_is_422(api: httpx.AsyncClient, code: str) -> None:
    # httpx would mend the path; the raw one is sent as it is.
    request = api.build_request("POST", "/v1/equipment/A/deactivate")
    request.url = request.url.copy_with(raw_path=f"/v1/equipment/{code}/deactivate".encode())
    assert problem(await api.send(request)) == (422, "invalid-request")


async def test_unknown_paths_and_methods_are_problems(api: httpx.AsyncClient) -> None:
    assert problem(await api.post("/v1/nothing")) == (404, "not-found")
    for method, path in (("PUT", "/v1/vessels"), ("DELETE", "/v1/vessels/A"), ("POST", "/v1/equipment/A")):
        answer = await api.request(method, path)
        assert problem(answer) == (405, "method-not-allowed")
        assert answer.headers["Allow"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "fpso.example:8088"},
        {"Host": "localhost.evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
async def test_no_foreign_page_may_drive_the_api(api: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await api.post("/v1/vessels", json={"code": "A"}, headers=headers)
    assert problem(answer) == (403, "forbidden")
    assert (await api.post("/v1/vessels", json={"code": "A"})).status_code == 201


async def test_the_own_page_may_drive_the_api(api: httpx.AsyncClient) -> None:
    headers = {"Host": "127.0.0.1:8088", "Origin": "http://127.0.0.1:8088", "Sec-Fetch-Site": "same-origin"}
    assert (await api.post("/v1/vessels", json={"code": "A"}, headers=headers)).status_code == 201


@pytest.mark.parametrize("correlation_id", ["", "a b", "x" * 129])
async def test_a_bad_correlation_id_is_refused(api: httpx.AsyncClient, correlation_id: str) -> None:
    answer = await api.post("/v1/vessels", json={"code": "A"}, headers={"X-Correlation-ID": correlation_id})
    assert pointers(answer) == ["/header/X-Correlation-ID"]


async def test_no_traceback_reaches_a_client(api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("command_api.dispatcher.handle", fails)
    answer = await api.post("/v1/vessels", json={"code": "A"})
    assert problem(answer) == (500, "internal-error")
    assert "secret" not in answer.text
    assert answer.headers["X-Correlation-ID"]
