"""The rules of codes, text, money and times."""

import csv
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from events.values import (
    Attributes,
    Currency,
    Description,
    Money,
    Name,
    code_of,
    money_text,
    time_of,
    time_text,
)

REGISTER = Path(__file__).parents[3] / "shared" / "data" / "equipment-register.csv"


@pytest.mark.parametrize(
    "code",
    [
        "23-KA-9101",
        "60-EN-9010B+27G2",
        "23-LSHH-96138 (2)",
        "23-1ST STAGE COMPRESSOR-PH",
        "ÆØÅ-1",
        "泵-7",
        "a;b:c@d&e=f,g",
        "x" * 64,
        "...",
        "42",
        "½€‰",
    ],
)
def test_a_real_tag_is_a_code(code: str) -> None:
    assert code_of(code) == code


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "a/b",
        "a\\b",
        "a?b",
        "a#b",
        "a%b",
        "a\x00b",
        "a\nb",
        "a\tb",
        "a\u200bb",
        "a\u202eb",
        "a\u00a0b",
        "\ufeffa\u2060",
        "a\u3164",  # a Hangul filler is a letter, and a variation selector a mark, but nobody sees them
        "a\ufe0f",
        "a\u034fb",
        "\u2800",
        "\U000e0100a",
        ".",
        "..",
        "x" * 65,
        "泵" * 64 + "泵",
        "\U0001f6a2" * 49,
        "a\ud800",
    ],
)
def test_what_is_not_a_code_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"a code (has|never contains|is not)"):
        code_of(text)


def test_two_spellings_of_one_code_are_one_code() -> None:
    assert code_of("  A\u030a-1 ") == code_of("Å-1") == "\u00c5-1"
    assert code_of("a-1") != code_of("A-1")


@given(st.text(max_size=80))
def test_a_code_is_its_own_code(text: str) -> None:
    try:
        code = code_of(text)
    except ValueError:
        return
    assert code_of(code) == code
    assert 1 <= len(code) <= 64
    assert len(code.encode()) <= 192


@pytest.mark.skipif(not REGISTER.exists(), reason="the real register is not here")
def test_every_code_of_the_real_register_is_a_code() -> None:
    with REGISTER.open(encoding="utf-8-sig", newline="") as file:
        codes = [row["code"] for row in csv.DictReader(file)]
    assert len(codes) == 1104
    assert [code_of(code) for code in codes] == codes


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", "0"),
        ("0.00", "0"),
        ("100", "100"),
        ("1200.50", "1200.5"),
        ("007.5", "7.5"),
        ("9999999999999999", "9999999999999999"),
        ("999999999999.9999", "999999999999.9999"),
    ],
)
def test_money_is_answered_without_trailing_zeros(text: str, amount: str) -> None:
    assert TypeAdapter(Money).validate_python(text) == amount


@pytest.mark.parametrize(
    "value",
    [
        1,
        1.5,
        -1,
        "-1",
        "1e3",
        "1,5",
        "1.",
        ".5",
        "",
        " 1",
        "1.00000",
        "1" * 17,
        "9999999999999.9999",
        "٣",
        None,
    ],
)
def test_what_is_not_money_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Money).validate_python(value)


@given(st.decimals(min_value=0, max_value=10**12, places=4))
def test_money_keeps_its_amount(amount: Decimal) -> None:
    assert Decimal(TypeAdapter(Money).validate_python(money_text(amount))) == amount


def test_a_currency_is_one_of_iso_4217() -> None:
    assert TypeAdapter(Currency).validate_python("NOK") == "NOK"
    for text in ("nok", "XXX", "US", "BTC"):
        with pytest.raises(ValidationError):
            TypeAdapter(Currency).validate_python(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-03T12:00:00Z", datetime(2026, 3, 3, 12, tzinfo=UTC)),
        ("2026-03-03t12:00:00.123456z", datetime(2026, 3, 3, 12, 0, 0, 123456, tzinfo=UTC)),
        ("2026-03-03T12:00:00+02:00", datetime(2026, 3, 3, 10, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_time_has_an_offset(text: str, moment: datetime) -> None:
    assert time_of(text) == moment
    assert time_of(time_text(moment)) == moment


@pytest.mark.parametrize(
    "value",
    [
        "2026-03-03",
        "2026-03-03T12:00:00",
        "2026-03-03 12:00:00Z",
        "2026-02-30T12:00:00Z",
        "2026-03-03T24:00:01Z",
        "2026-03-03T23:59:60Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        1772539200,
        "",
        None,
    ],
)
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"time"):
        time_of(value)


def test_names_are_trimmed_and_have_no_control_characters() -> None:
    assert TypeAdapter(Name).validate_python("  Level switch ") == "Level switch"
    for text in ("", "  ", "a\nb", "a\x00", "x" * 201):
        with pytest.raises(ValidationError):
            TypeAdapter(Name).validate_python(text)


def test_descriptions_may_have_lines_but_no_other_control_characters() -> None:
    assert TypeAdapter(Description).validate_python("a\r\n\tb") == "a\r\n\tb"
    with pytest.raises(ValidationError):
        TypeAdapter(Description).validate_python("a\x00b")


def test_there_are_at_most_50_attributes() -> None:
    attributes = {f"key {i}": "value" for i in range(50)}
    assert TypeAdapter(Attributes).validate_python(attributes) == attributes
    for bad in ({**attributes, "one more": ""}, {"": "x"}, {"k" * 65: "x"}, {"k": "x" * 1001}, {"k": 1}):
        with pytest.raises(ValidationError):
            TypeAdapter(Attributes).validate_python(bad)
