"""Checkpoints as C2SP tlog-checkpoint says, and the leaves that they stand over."""

import json
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from events.cloudevents import json_of
from events.event import Event, Metadata
from infra.audit.checkpoint import Checkpoint, origin_of
from infra.audit.leaf import NotCanonical, leaf_of
from infra.audit.note import NoteInvalid
from infra.audit.tree import EMPTY_ROOT

ROOT = bytes(range(32))
ROOT_TEXT = b64encode(ROOT).decode()
TEXT = f"fpso.local/audit\n42\n{ROOT_TEXT}\n"


def test_a_checkpoint_is_what_its_text_says() -> None:
    checkpoint = Checkpoint("fpso.local/audit", 42, ROOT)
    assert checkpoint.text == TEXT
    assert Checkpoint.of(TEXT) == checkpoint
    assert Checkpoint.of(TEXT + "an extension\n") == checkpoint


def test_a_published_checkpoint_is_read() -> None:
    """The example of the C2SP page."""
    text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    checkpoint = Checkpoint.of(text)
    assert (checkpoint.origin, checkpoint.tree_size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT[:-1],
        TEXT + "\n",
        TEXT.replace("\n42", "\n\n42"),
        TEXT.replace("fpso.local/audit", ""),
        TEXT.replace("fpso.local/audit", "fpso local"),
        TEXT.replace("42", "042"),
        TEXT.replace("42", "-1"),
        TEXT.replace("42", "+1"),
        TEXT.replace("42", "4 2"),
        TEXT.replace("42", "٤٢"),
        TEXT.replace("42", "9" * 19),
        TEXT.replace("42", "0"),
        TEXT.replace("42", ""),
        TEXT.replace(ROOT_TEXT, ROOT_TEXT[:-1]),
        TEXT.replace(ROOT_TEXT, ROOT_TEXT.replace("Hh8=", "Hh9=")),
        TEXT.replace(ROOT_TEXT, b64encode(ROOT[:-1]).decode()),
        TEXT.replace(ROOT_TEXT, b64encode(ROOT + b"x").decode()),
        "fpso.local/audit\n42\n",
    ],
)
def test_what_is_malformed_is_no_checkpoint(text: str) -> None:
    with pytest.raises(NoteInvalid, match="malformed"):
        Checkpoint.of(text)


def test_an_empty_tree_has_one_root() -> None:
    assert Checkpoint.of(Checkpoint("a", 0, EMPTY_ROOT).text).root == EMPTY_ROOT


def test_each_epoch_has_a_log_of_its_own() -> None:
    assert [origin_of("a.example/log", epoch) for epoch in (1, 2, 11)] == [
        "a.example/log",
        "a.example/log/2",
        "a.example/log/11",
    ]


EVENT = Event(
    stream="equipment/23-KA-9101 (2)",
    version=1,
    position=7,
    previous_position=5,
    previous_of_type=0,
    epoch=1,
    type="fpso.equipment.registered.v1",
    occurred_at=datetime(2024, 5, 1, 12, 0, 0, 5, UTC),
    metadata=Metadata(actor="planner", auth_type="unauthenticated", correlation_id="c"),
    data={
        "name": "Compresseur à gaz \u20ac",
        "code": "23-KA-9101 (2)",
        "attributes": {"\ufb33": "1", "\U0001f600": "2"},
    },
)


def test_a_leaf_is_the_feed_s_item_in_canonical_form() -> None:
    leaf = leaf_of(EVENT)
    assert json.loads(leaf) == json_of(EVENT)
    # RFC 8785: no white space, members in the order of their UTF-16 code units, nothing escaped without need.
    assert leaf.startswith(
        b'{"authid":"planner","authtype":"unauthenticated","correlationid":"c","data":{"attributes":'
    )
    assert '{"\U0001f600":"2","\ufb33":"1"}'.encode() in leaf
    assert "Compresseur à gaz \u20ac".encode() in leaf


@pytest.mark.parametrize("value", [2**53, float("inf"), float("nan"), "\ud800", {"\ud800": 1}])
def test_what_has_no_canonical_form_is_no_leaf(value: object) -> None:
    with pytest.raises(NotCanonical):
        leaf_of(replace(EVENT, data={"value": value}))
