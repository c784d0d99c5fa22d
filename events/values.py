"""Value types of the domain and their rules, checked where a command comes in.

A released event is never held to them: a rule may get stricter, what was stored must load for ever.
"""

import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, WithJsonSchema

CODE_MAX_CHARACTERS = 64
CODE_MAX_BYTES = 192
ATTRIBUTES_MAX = 50
MONEY_MAX_DIGITS = 16
MONEY_MAX_DECIMALS = 4

# Letters, marks, numbers, punctuation and symbols (Unicode general categories); the space is named apart.
_CODE_CATEGORIES = frozenset("LMNPS")
_CODE_FORBIDDEN = frozenset("/\\?#%")
# Letters, marks and symbols that nobody sees: fillers, blanks, variation selectors. A code with one looks
# like one without (Default_Ignorable_Code_Point of Unicode, and the blanks of Braille and of music).
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U0001d159\U000e0100-\U000e01ef]"
)
# Most codes; what it does not match is looked at character by character.
_PLAIN_CODE = re.compile(r"[A-Za-z0-9 ()+._-]+")
# Controls and surrogates (Unicode general categories Cc and Cs).
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_MONEY = re.compile(r"(\d{1,64})(?:\.(\d{1,64}))?", re.ASCII)
_RFC3339 = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?(?:[Zz]|[+-]\d{2}:\d{2})",
    re.ASCII,
)
# ISO 4217 active codes of currencies and funds.
CURRENCIES = frozenset(
    """
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD
    CDF CHE CHF CHW CLF CLP CNY COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL
    GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW
    KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD
    NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP
    SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD USN UYI UYU UYW UZS
    VED VES VND VUV WST XAF XAG XAU XBA XBB XBC XBD XCD XCG XDR XOF XPD XPF XPT XSU XUA YER ZAR ZMW ZWG
    """.split()
)


def code_of(text: str) -> str:
    """``text`` as a code: trimmed and in NFC, so that two spellings of one code are one code.

    Raises ``ValueError`` with what to mend.
    """
    code = unicodedata.normalize("NFC", text.strip())
    if not code:
        raise ValueError("a code has at least 1 character")
    if len(code) > CODE_MAX_CHARACTERS:
        raise ValueError(f"a code has at most {CODE_MAX_CHARACTERS} characters")
    if _PLAIN_CODE.fullmatch(code) is None:
        _check_characters(code)
    if len(code.encode()) > CODE_MAX_BYTES:
        raise ValueError(f"a code has at most {CODE_MAX_BYTES} bytes in UTF-8")
    if code in (".", ".."):
        raise ValueError("a code is not '.' or '..'")
    return code


def _check_characters(code: str) -> None:
    for character in code:
        if character in _CODE_FORBIDDEN:
            raise ValueError(f"a code never contains {character!r}")
        if character != " " and unicodedata.category(character)[0] not in _CODE_CATEGORIES:
            raise ValueError(f"a code never contains the character U+{ord(character):04X}")
        if _INVISIBLE.match(character):
            raise ValueError(f"a code never contains the invisible character U+{ord(character):04X}")


def _without_control_characters(text: str) -> str:
    # What is printable has none, and is told in a fraction of the search's time.
    if not text.isprintable() and (match := _CONTROL.search(text)):
        raise ValueError(f"control characters such as U+{ord(match[0]):04X} are not allowed")
    return text


def _without_controls_but_space(text: str) -> str:
    if not text.isprintable():
        _without_control_characters(text.replace("\n", "").replace("\r", "").replace("\t", ""))
    return text


def _attributes(attributes: Mapping[str, object]) -> Mapping[str, object]:
    if len(attributes) > ATTRIBUTES_MAX:
        raise ValueError(f"at most {ATTRIBUTES_MAX} attributes")
    return attributes


def money_of(text: str) -> str:
    """``text`` as an amount of money without trailing zeros; raises ``ValueError`` with what to mend."""
    match = _MONEY.fullmatch(text)
    if match is None:
        raise ValueError("an amount is a decimal string such as '1250.75', not negative")
    if len(match[2] or "") > MONEY_MAX_DECIMALS:
        raise ValueError(f"an amount has at most {MONEY_MAX_DECIMALS} decimals")
    whole = match[1].lstrip("0")
    if len(whole) + len(match[2] or "") > MONEY_MAX_DIGITS:
        raise ValueError(f"an amount has at most {MONEY_MAX_DIGITS} digits")
    return money_text(Decimal(text))


def money_text(amount: Decimal) -> str:
    """``amount`` in plain notation without trailing zeros, as it is answered everywhere."""
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _currency(text: str) -> str:
    if text not in CURRENCIES:
        raise ValueError("a currency is an ISO 4217 code such as 'USD'")
    return text


def time_of(value: object) -> datetime:
    """An RFC 3339 date-time with its offset, as an aware ``datetime`` in UTC; raises ``ValueError``."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    if not isinstance(value, str) or _RFC3339.fullmatch(value) is None:
        raise ValueError("a time is RFC 3339 with an offset, such as '2026-03-03T12:00:00Z'")
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"there is no such time as {value!r}") from None


def time_text(moment: datetime) -> str:
    """RFC 3339 in UTC with ``Z`` and microseconds, as times are answered everywhere."""
    # isoformat leaves ".000000" out unless told, and strftime does not pad years before 1000.
    return moment.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z"


Code = Annotated[
    str,
    AfterValidator(code_of),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "pattern": r"^[^/\\?#%]+$",
            "description": "1 to 64 characters and at most 192 bytes of UTF-8 after trimming, NFC, "
            "case-sensitive; letters, marks, numbers, punctuation, symbols and the space; "
            "never / \\ ? # %, control, format or invisible characters, and not '.' or '..'.",
            "examples": ["23-LSHH-96138 (2)"],
        }
    ),
]
Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    AfterValidator(_without_control_characters),
]
Location = Name
AttributeKey = Annotated[
    str, StringConstraints(min_length=1, max_length=64), AfterValidator(_without_control_characters)
]
AttributeValue = Annotated[
    str, StringConstraints(max_length=1000), AfterValidator(_without_controls_but_space)
]
Attributes = Annotated[dict[AttributeKey, AttributeValue], AfterValidator(_attributes)]
AttributeChanges = dict[AttributeKey, AttributeValue | None]
Reason = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=500),
    AfterValidator(_without_controls_but_space),
]
OperationType = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=100),
    AfterValidator(_without_control_characters),
]
Description = Annotated[str, StringConstraints(max_length=1000), AfterValidator(_without_controls_but_space)]
Money = Annotated[
    str,
    Field(strict=True),
    AfterValidator(money_of),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^\d{1,16}(\.\d{1,4})?$",
            "description": "Decimal string, not negative, at most 4 decimals and 16 digits; never a float.",
            "examples": ["1250.75"],
        }
    ),
]
Currency = Annotated[
    str,
    AfterValidator(_currency),
    WithJsonSchema(
        {"type": "string", "pattern": "^[A-Z]{3}$", "description": "ISO 4217.", "examples": ["USD"]}
    ),
]
Time = Annotated[
    datetime,
    BeforeValidator(time_of),
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "description": "RFC 3339 with an offset.",
            "examples": ["2026-03-03T12:00:00Z"],
        }
    ),
]
