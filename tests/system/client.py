"""A client as people would write it: requests through the gateway, and waiting for what was written."""

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

DEADLINE = 30.0  # seconds


class Client:
    """Speaks HTTP to the gateway."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    def get(self, path: str, **parameters: Any) -> httpx.Response:
        """A query, which must succeed."""
        answer = self.http.get(path, params=parameters or None)
        assert answer.status_code == 200, answer.text
        return answer

    def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """A command, whatever comes of it."""
        return self.http.post(path, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def register_vessel(self, code: str) -> httpx.Response:
        """Register a vessel."""
        answer = self.post("/v1/vessels", {"code": code, "name": f"FPSO {code}"})
        assert answer.status_code == 201, answer.text
        return answer

    def register_equipment(self, vessel: str, code: str, location: str = "DECK 1") -> httpx.Response:
        """Register equipment, which must succeed."""
        body = {"code": code, "name": "Level switch", "location": location}
        answer = self.post(f"/v1/vessels/{quote(vessel)}/equipment", body)
        assert answer.status_code == 201, answer.text
        return answer

    def import_file(self, vessel: str, content: bytes, **parameters: str) -> httpx.Response:
        """Import a CSV file, whatever comes of it."""
        return self.http.post(
            f"/v1/vessels/{quote(vessel)}/equipment/import",
            content=content,
            params=parameters,
            headers={"content-type": "text/csv"},
        )

    def pages(self, path: str, **parameters: Any) -> Iterator[list[dict[str, Any]]]:
        """Every page of a list, by following its links."""
        answer = self.get(path, **parameters)
        while True:
            yield answer.json()["items"]
            link = answer.links.get("next")
            assert (link is None) == (answer.json()["next_cursor"] is None)
            if link is None:
                return
            answer = self.get(link["url"])

    def items(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        """A whole list."""
        return [item for page in self.pages(path, **parameters) for item in page]


def codes(answer: httpx.Response) -> list[str]:
    """The codes of a page of a list."""
    return [item["code"] for item in answer.json()["items"]]


def wait_until(condition: Callable[[], bool], seconds: float = DEADLINE) -> None:
    """Return once ``condition`` holds; fail where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.05)
