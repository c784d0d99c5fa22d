"""Random commands against the system and the model: whatever is asked afterwards, they agree.

What is drawn depends on nothing that the system answers, so a failure shrinks to the shortest sequence of
commands, and the blob that is printed plays it again. FPSO_MODEL_EXAMPLES asks for more than a glance.
"""

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, ClassVar
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from infra.local.system import System
from tests.model.fleet import Fleet, Refused, State, changes, folded

EXAMPLES = int(os.environ.get("FPSO_MODEL_EXAMPLES", "8"))
STEPS = 20 if EXAMPLES < 50 else 50

vessels = st.sampled_from(["ODIN", "VÅL (2)"])
THERE = ("23-KA-9101", "23-LSHH-96138 (2)", "å&=;'\"½")
codes = st.sampled_from([*THERE, "60-EN-9010B+27G2"])
names = st.sampled_from(["Pump", "Ventil Ø", "=1+1", "x" * 200])
locations = st.sampled_from(["DECK 1", "DECK 2", "71-SKID, PS"])
keys, values = st.sampled_from(["maker", "$.k'"]), st.sampled_from(["ACME", "", "42"])
attributes = st.dictionaries(keys, values, max_size=2)
patches = st.fixed_dictionaries(
    {},
    optional={
        "name": names,
        "location": locations,
        "attributes": st.dictionaries(keys, values | st.none(), max_size=2),
    },
)
works = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["inspection", "repair"]),
        "cost": st.sampled_from(["0", "0.0001", "1250.75", "999999999999.9999"]),
        "currency": st.sampled_from(["USD", "NOK"]),
        "description": st.sampled_from(["", "Yearly"]).map(lambda text: text or None),
        "performed_at": st.sampled_from(["2026-03-03T12:00:00.000000Z", "0001-01-01T00:00:00.000000Z"]),
    }
)
rows = st.lists(st.tuples(codes, names | st.just(""), st.booleans()), min_size=1, max_size=4)
conditions = st.sampled_from(["none", "none", "current", "stale"])
places = st.integers(0, 99)


@dataclass(frozen=True)
class Command:
    """A request that can be sent again."""

    method: str
    path: str
    body: Any = None
    content: bytes | None = None
    headers: Mapping[str, str] | None = None

    def send(self, client: httpx.Client, **more: str) -> httpx.Response:
        headers = {**(self.headers or {}), **more}
        return client.request(self.method, self.path, json=self.body, content=self.content, headers=headers)


class Comparison(RuleBasedStateMachine):
    """The system beside the model."""

    gateway_url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.client = httpx.Client(base_url=self.gateway_url, timeout=60, trust_env=False)
        self.threads = ThreadPoolExecutor(2)
        self.mark = token_hex(4)
        self.fleet = Fleet()
        self.position = 0
        self.positions: dict[str, list[int]] = {}
        """Of the events of each stream, and their times likewise."""
        self.times: dict[str, list[str]] = {}
        self.kept: list[tuple[str, Command, httpx.Response]] = []
        """What was answered to each idempotency key."""
        self.touched: dict[str, None] = {}

    def teardown(self) -> None:
        self.client.close()
        self.threads.shutdown()

    # --- asking and comparing ------------------------------------------------------------------------------

    def own(self, code: str) -> str:
        """A code of this example only."""
        return f"{code} {self.mark}"

    def path(self, stream: str, rest: str = "") -> str:
        kind, _, code = stream.partition("/")
        return f"/v1/{'vessels' if kind == 'vessel' else kind}/{quote(code, safe='')}{rest}"

    def get(self, path: str, **parameters: Any) -> Any:
        answer = self.answer(path, **parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def answer(self, path: str, **parameters: Any) -> httpx.Response:
        """What has been answered is read back, wherever it is asked for."""
        return self.client.get(path, params={"min_position": self.position, **parameters})

    def carry_out(
        self,
        command: Command,
        decide: Callable[[httpx.Response], Any],
        streams: Sequence[str],
        key: bool = False,
        status: int = 200,
    ) -> httpx.Response | None:
        """Send ``command``, and hold its answer to what the model decides; None where it was refused.

        ``streams`` are those that it may change.
        """
        header = {"Idempotency-Key": f"{self.mark}-{len(self.kept)}"} if key else {}
        answer = command.send(self.client, **header)
        if (refusal := refusal_of(lambda: decide(answer))) is not None:
            assert problem(answer) == (refusal.status, refusal.slug)
            return None
        assert answer.status_code == status, answer.text
        assert "Idempotency-Replayed" not in answer.headers
        if key:
            self.kept.append((header["Idempotency-Key"], command, answer))
        self.moved(answer, streams)
        return answer

    def moved(self, answer: httpx.Response, streams: Sequence[str]) -> None:
        position = int(answer.headers["Event-Position"])
        is_changed = any(len(self.positions.get(s, [])) < len(self.fleet.past_of(s)) for s in streams)
        if is_changed:
            assert position > self.position, "a new event comes after all others"
            self.position = position
        elif len(streams) == 1:
            assert position == self.positions[streams[0]][-1], "nothing happened: the last event's position"
        self.touched.update(dict.fromkeys(streams))

    def left(self, answer: httpx.Response | None, stream: str) -> None:
        """The answer is the resource as the command leaves it."""
        if answer is None:
            return
        past = self.fleet.past_of(stream)
        position = int(answer.headers["Event-Position"])
        assert answer.json() == {**past[-1], "version": len(past), "position": position}
        assert answer.headers["ETag"] == f'"{len(past)}"'

    def conditioned(self, stream: str, condition: str) -> dict[str, str]:
        """If-Match, where it applies."""
        versions = {"current": len(self.past(stream)), "stale": len(self.past(stream)) - 1}
        return {} if condition == "none" else {"If-Match": f'"{versions[condition]}"'}

    def past(self, stream: str) -> list[State]:
        try:
            return self.fleet.past_of(stream)
        except Refused:
            return []

    def change_one(
        self,
        method: str,
        stream: str,
        rest: str,
        body: Any,
        decide: Callable[[], None],
        condition: str = "none",
        key: bool = False,
    ) -> None:
        """A command on one existing resource, perhaps under a condition."""
        command = Command(method, self.path(stream, rest), body, headers=self.conditioned(stream, condition))
        if condition == "stale" and self.past(stream):
            answer = command.send(self.client)
            assert problem(answer) == (412, "version-mismatch")
            assert answer.headers["ETag"] == f'"{len(self.past(stream))}"'
            return
        self.left(self.carry_out(command, lambda _: decide(), [stream], key), stream)

    # --- commands ------------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        """Something to work on, or most commands would be refused."""
        for vessel in ("ODIN", "VÅL (2)"):
            self.register_vessel(vessel, "Pump", key=False)
        self.import_rows("ODIN", [(code, "Pump", True) for code in THERE], skips=False, key=True)

    @rule(vessel=vessels | st.just("THIRD"), name=names, key=st.booleans())
    def register_vessel(self, vessel: str, name: str, key: bool) -> None:
        code = self.own(vessel)
        command = Command("POST", "/v1/vessels", {"code": code, "name": name})
        stream = f"vessel/{code}"
        answer = self.carry_out(
            command, lambda _: self.fleet.register_vessel(code, name), [stream], key, status=201
        )
        self.left(answer, stream)

    @rule(vessel=vessels, name=names, condition=conditions, key=st.booleans())
    def rename_vessel(self, vessel: str, name: str, condition: str, key: bool) -> None:
        code = self.own(vessel)
        decide = lambda: self.fleet.rename_vessel(code, name)  # noqa: E731
        self.change_one("PATCH", f"vessel/{code}", "", {"name": name}, decide, condition, key)

    @rule(vessel=vessels, status=st.sampled_from(["decommissioned", "active", "active"]))
    def set_in_service(self, vessel: str, status: str) -> None:
        stream = f"vessel/{self.own(vessel)}"
        verb = "/decommission" if status == "decommissioned" else "/recommission"
        self.change_one("POST", stream, verb, None, lambda: self.fleet.change(stream, status=status))

    @rule(
        vessel=vessels,
        code=codes,
        name=names,
        location=locations,
        attributes=attributes,
        key=st.booleans(),
    )
    def register_equipment(
        self, vessel: str, code: str, name: str, location: str, attributes: Mapping[str, str], key: bool
    ) -> None:
        to, own = self.own(vessel), self.own(code)
        body = {"code": own, "name": name, "location": location, "attributes": attributes}
        command = Command("POST", self.path(f"vessel/{to}", "/equipment"), body)
        stream = f"equipment/{own}"
        answer = self.carry_out(
            command,
            lambda _: self.fleet.register_equipment(to, own, name, location, attributes),
            [stream],
            key,
            status=201,
        )
        self.left(answer, stream)

    @rule(code=codes, patch=patches, condition=conditions, key=st.booleans())
    def update(self, code: str, patch: Mapping[str, Any], condition: str, key: bool) -> None:
        own = self.own(code)
        decide = lambda: self.fleet.update(own, patch)  # noqa: E731
        self.change_one("PATCH", f"equipment/{own}", "", patch, decide, condition, key)

    @rule(code=codes, status=st.sampled_from(["inactive", "active"]), condition=conditions, key=st.booleans())
    def switch_one(self, code: str, status: str, condition: str, key: bool) -> None:
        own, verb = self.own(code), "/deactivate" if status == "inactive" else "/activate"
        decide = lambda: self.fleet.switch([own], status)  # noqa: E731
        self.change_one("POST", f"equipment/{own}", verb, None, decide, condition, key)

    @rule(
        chosen=st.lists(codes, min_size=1, max_size=4),
        status=st.sampled_from(["inactive", "active"]),
        key=st.booleans(),
    )
    def switch_many(self, chosen: Sequence[str], status: str, key: bool) -> None:
        asked = [self.own(code) for code in chosen]
        once = list(dict.fromkeys(asked))
        verb = "deactivate" if status == "inactive" else "activate"
        before = {code: past[-1]["status"] for code, past in self.fleet.equipment.items()}
        command = Command("POST", f"/v1/equipment/{verb}", {"codes": asked})
        answer = self.carry_out(
            command, lambda _: self.fleet.switch(once, status), [f"equipment/{code}" for code in once], key
        )
        if answer is not None:
            changed = [code for code in once if before[code] != status]
            unchanged = [code for code in once if before[code] == status]
            position = int(answer.headers["Event-Position"])
            assert answer.json() == {f"{verb}d": changed, "unchanged": unchanged, "position": position}

    @rule(code=codes, vessel=vessels | st.just("THIRD"), location=st.none() | locations, key=st.booleans())
    def transfer(self, code: str, vessel: str, location: str | None, key: bool) -> None:
        own, to = self.own(code), self.own(vessel)
        body = {"vessel_code": to, **({"location": location} if location else {})}
        decide = lambda: self.fleet.transfer(own, to, location)  # noqa: E731
        self.change_one("POST", f"equipment/{own}", "/transfer", body, decide, key=key)

    @rule(code=codes, work=works, key=st.booleans())
    def record(self, code: str, work: Mapping[str, Any], key: bool) -> None:
        stream = f"equipment/{self.own(code)}"
        body = {name: value for name, value in work.items() if value is not None}
        answer = self.carry_out(
            Command("POST", self.path(stream, "/operations"), body),
            lambda answer: self.fleet.record(self.own(code), answer.json().get("id"), work),
            [stream],
            key,
            status=201,
        )
        self.operation_left(answer)

    @rule(code=codes, place=places)
    def void(self, code: str, place: int) -> None:
        stream = f"equipment/{self.own(code)}"
        operations = list(self.fleet.operations)
        id_ = operations[place % len(operations)] if operations else "none"
        answer = self.carry_out(
            Command("POST", self.path(stream, f"/operations/{id_}/void")),
            lambda _: self.fleet.void(self.own(code), id_),
            [stream],
        )
        self.operation_left(answer)

    def operation_left(self, answer: httpx.Response | None) -> None:
        if answer is None:
            return
        given = answer.json()
        position = given.pop("position")
        assert given == self.fleet.operations[given["id"]]
        assert self.get(f"/v1/operations/{given['id']}") == {**given, "position": position}

    @rule(vessel=vessels, rows=rows, skips=st.booleans(), key=st.booleans())
    def import_rows(self, vessel: str, rows: Sequence[tuple[str, str, bool]], skips: bool, key: bool) -> None:
        to = self.own(vessel)
        good, bad = self.sorted_out([(self.own(code), name, active) for code, name, active in rows])
        file = io.StringIO()
        lines = [(self.own(code), name, "DECK 1", str(active).lower()) for code, name, active in rows]
        csv.writer(file).writerows([("code", "name", "location", "active"), *lines])
        command = Command(
            "POST",
            self.path(f"vessel/{to}", f"/equipment/import?on_error={'skip' if skips else 'reject'}"),
            content=file.getvalue().encode(),
            headers={"Content-Type": "text/csv"},
        )

        def decide(_: httpx.Response) -> None:
            self.fleet.require_in_service(to)
            if bad and not skips:
                raise Rejected
            for code, name, active in good:
                self.fleet.register_equipment(to, code, name, "DECK 1", {})
                if not active:
                    self.fleet.switch([code], "inactive")

        try:
            answer = self.carry_out(command, decide, [f"equipment/{code}" for code, *_ in good], key)
        except Rejected:
            answer = command.send(self.client)
            assert problem(answer) == (422, "import-rejected")
            told = [(one["line"], one["code"], one["problem"]) for one in answer.json()["errors"]]
            assert (told, answer.json()["total"]) == (bad, len(bad))
        else:
            if answer is not None:
                done = answer.json()
                counts = (len(good), sum(not active for *_, active in good))
                assert (done["registered"], done["deactivated"]) == counts
                assert [(one["line"], one["code"], one["problem"]) for one in done["skipped"]] == bad

    def sorted_out(
        self, rows: Sequence[tuple[str, str, bool]]
    ) -> tuple[list[tuple[str, str, bool]], list[tuple[int, str, str]]]:
        """The rows that can be registered, and what is wrong with the others."""
        good: dict[str, tuple[str, str, bool]] = {}
        seen: set[str] = set()
        bad: list[tuple[int, str, str]] = []
        for line, row in enumerate(rows, 2):
            code, name, _ = row
            if not name:
                bad.append((line, code, "invalid-request"))
            elif code in seen or code in self.fleet.equipment:
                bad.append((line, code, "equipment-already-registered"))
            else:
                good[code] = row
            if name:
                seen.add(code)
        return list(good.values()), bad

    # --- again, and at once --------------------------------------------------------------------------------

    @rule(place=places)
    def retry(self, place: int) -> None:
        """The same key with the same request: the first answer, whatever has happened since."""
        if self.kept:
            key, command, first = self.kept[place % len(self.kept)]
            again = command.send(self.client, **{"Idempotency-Key": key})
            check_same(again, first)
            assert again.headers["Idempotency-Replayed"] == "true"

    @rule(place=places)
    def reuse_key(self, place: int) -> None:
        """The same key with another request is refused."""
        if self.kept:
            key, command, _ = self.kept[place % len(self.kept)]
            other = Command("POST", "/v1/vessels", {"code": self.own("NEVER"), "name": "x"})
            assert command.path != other.path or command.body != other.body
            assert problem(other.send(self.client, **{"Idempotency-Key": key})) == (
                422,
                "idempotency-key-reused",
            )

    @rule(code=codes, pair=st.permutations(["First", "Second"]))
    def race(self, code: str, pair: Sequence[str]) -> None:
        """Two who hold the same version change it at once: one does, the other is told."""
        own = self.own(code)
        if own not in self.fleet.equipment:
            return
        stream = f"equipment/{own}"
        headers = self.conditioned(stream, "current")
        names = [f"{name} {len(self.fleet.equipment[own])}" for name in pair]
        commands = [Command("PATCH", self.path(stream), {"name": name}, headers=headers) for name in names]
        answers = list(self.threads.map(lambda command: command.send(self.client), commands))
        assert sorted(answer.status_code for answer in answers) == [200, 412], [a.text for a in answers]
        [(name, answer)] = [(n, a) for n, a in zip(names, answers, strict=True) if a.status_code == 200]
        self.fleet.update(own, {"name": name})
        self.moved(answer, [stream])
        self.left(answer, stream)

    @rule(code=codes, work=works)
    def double(self, code: str, work: Mapping[str, Any]) -> None:
        """The same keyed request twice at once: one operation, and the same answer twice."""
        stream = f"equipment/{self.own(code)}"
        if self.past(stream):
            key = f"{self.mark}-{len(self.kept)}"
            body = {name: value for name, value in work.items() if value is not None}
            command = Command("POST", self.path(stream, "/operations"), body)
            first, second = self.threads.map(
                lambda _: command.send(self.client, **{"Idempotency-Key": key}), range(2)
            )
            check_same(second, first)
            assert ("Idempotency-Replayed" in first.headers) != ("Idempotency-Replayed" in second.headers)
            self.fleet.record(self.own(code), first.json()["id"], work)
            self.kept.append((key, command, first))
            self.moved(first, [stream])
            self.operation_left(first)

    # --- the past ------------------------------------------------------------------------------------------

    @rule(place=places, back=places)
    def look_back(self, place: int, back: int) -> None:
        """One thing, as its version or a moment left it, and the equipment of a vessel at that moment."""
        streams = list(self.times)
        stream = streams[place % len(streams)]
        version = 1 + back % len(self.times[stream])
        moment = self.times[stream][version - 1]
        then = self.fleet.past_of(stream)[version - 1]
        for asked in ({"version": version}, {"as_of": moment}):
            given = self.get(self.path(stream), **asked)
            assert given["version"] == version
            assert {name: given[name] for name in then} == then
        for vessel in self.fleet.vessels:
            expected = [
                (*state.values(), version)
                for code in sorted(self.fleet.equipment)
                for version, state in self.at(f"equipment/{code}", moment)
                if state["vessel_code"] == vessel
            ]
            answer = self.answer(self.path(f"vessel/{vessel}", "/equipment"), as_of=moment)
            if moment < self.times[f"vessel/{vessel}"][0]:
                assert problem(answer) == (404, "vessel-not-found")
            else:
                names = list(next(iter(self.fleet.equipment.values()))[0])
                found = [
                    (*(item[name] for name in names), item["version"]) for item in answer.json()["items"]
                ]
                assert found == expected

    def at(self, stream: str, moment: str) -> list[tuple[int, State]]:
        """The version and state of a stream at a moment; nothing before its first event."""
        version = sum(time <= moment for time in self.times[stream])
        return [(version, self.fleet.past_of(stream)[version - 1])] if version else []

    # --- they agree ----------------------------------------------------------------------------------------

    @invariant()
    def everything_agrees(self) -> None:
        for stream in self.touched:
            self.stream_agrees(stream)
        self.touched.clear()
        self.lists_agree()
        for vessel in self.fleet.vessels:
            given = self.get(self.path(f"vessel/{vessel}", "/operation-costs"))
            assert given == {"vessel_code": vessel, "currencies": self.fleet.costs(vessel)}

    def stream_agrees(self, stream: str) -> None:
        """Model, read model, history, and the fold of the feed."""
        past = self.fleet.past_of(stream)
        history = self.get(self.path(stream, "/history"), limit=1000)["items"]
        feed = self.get("/v1/events", stream=stream, limit=1000)["items"]
        assert [item["version"] for item in history] == list(range(1, len(past) + 1))
        assert folded(history) == past
        assert [item["changes"] for item in history] == [
            changes(before, after) for before, after in zip([{}, *past], past, strict=False)
        ]
        assert folded(feed) == past
        assert [(one["id"], one["position"], one["time"]) for one in feed] == [
            (one["id"], one["position"], one["occurred_at"]) for one in history
        ]
        positions, times = ([one[name] for one in history] for name in ("position", "occurred_at"))
        assert positions == sorted(set(positions))
        assert times == sorted(set(times))
        known = self.positions.get(stream, [])
        assert positions[: len(known)] == known, "what has happened stays as it was"
        assert positions[-1] <= self.position
        self.positions[stream], self.times[stream] = positions, times
        single = self.answer(self.path(stream))
        given = single.json()
        position = given.pop("position")
        counts = {"equipment": self.fleet.counts(past[-1]["code"])} if stream.startswith("vessel/") else {}
        assert given == {**past[-1], **counts, "version": len(past)}
        tag = f"{len(past)}-{position}" if counts else str(len(past))
        assert single.headers["ETag"] == f'"{tag}"'
        assert counts or position == positions[-1]

    def lists_agree(self) -> None:
        listed = self.get("/v1/equipment", q=self.mark, limit=1000)["items"]
        assert [without_position(item) for item in listed] == [
            {**past[-1], "version": len(past)} for _, past in sorted(self.fleet.equipment.items())
        ]
        listed = self.get("/v1/vessels", q=self.mark, limit=1000)["items"]
        assert [without_position(item) for item in listed] == [
            {**past[-1], "version": len(past), "equipment": self.fleet.counts(code)}
            for code, past in sorted(self.fleet.vessels.items())
        ]


def refusal_of(decide: Callable[[], Any]) -> Refused | None:
    """Why the model does not do it, if so."""
    try:
        decide()
    except Refused as refusal:
        return refusal
    return None


class Rejected(Exception):
    """A file that is refused as a whole."""


def without_position(item: State) -> State:
    return {name: value for name, value in item.items() if name != "position"}


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["type"].removeprefix("/problems/")


def check_same(again: httpx.Response, first: httpx.Response) -> None:
    assert (again.status_code, again.content) == (first.status_code, first.content)
    for name in ("ETag", "Location", "Event-Position"):
        assert again.headers.get(name) == first.headers.get(name)


@pytest.mark.timeout(0 if EXAMPLES > 10 else 900)  # to find a failure takes seconds, to shrink it minutes
def test_the_system_and_the_model_agree(system: System) -> None:
    class OfThisSystem(Comparison):
        gateway_url = system.gateway_url

    run_state_machine_as_test(
        OfThisSystem,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            phases=[Phase.generate, Phase.shrink],
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
