"""Signed notes: published ones open, ours do, and nothing malformed ever does."""

from base64 import b64decode, b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.audit.note import NoteInvalid, Signer, Verifier, opened, signed

TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
# Of golang.org/x/mod/sumdb/note, which C2SP signed-note took its form from.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_PRIVATE = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
PETER_SIGNED = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
ENOCH_SIGNED = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
NOTE = f"{TEXT}\n{PETER_SIGNED}"
peter, enoch = Verifier.parse(PETER), Verifier.parse(ENOCH)


def test_published_notes_open() -> None:
    assert opened(NOTE, [peter]) == (TEXT, {peter})
    both = f"{TEXT}\n{PETER_SIGNED}{ENOCH_SIGNED}"
    assert opened(both, [peter, enoch]) == (TEXT, {peter, enoch})
    assert opened(both, [enoch]) == (TEXT, {enoch}), "signatures of others are ignored"


def test_a_published_private_key_signs_the_published_note() -> None:
    signer = Signer.parse(PETER_PRIVATE)
    assert str(signer.verifier) == PETER
    assert signer.private_key == PETER_PRIVATE
    assert signed(TEXT, [signer]) == NOTE


def test_a_generated_key_opens_what_it_signed() -> None:
    first, second = Signer.generate("fpso.local/audit"), Signer.generate("fpso.local/audit")
    assert first.verifier != second.verifier
    note = signed(TEXT, [second, first])
    assert opened(note, [first.verifier, second.verifier]) == (TEXT, {first.verifier, second.verifier})
    assert Signer.parse(first.private_key).verifier == first.verifier == Verifier.parse(str(first.verifier))


def test_another_name_makes_another_key_of_the_same_secret() -> None:
    first = Signer.generate("fpso.local/audit")
    second = first.named("fpso.local/audit/2")
    assert second.verifier.public_key == first.verifier.public_key
    assert second.verifier.key_id != first.verifier.key_id
    with pytest.raises(NoteInvalid, match="no signature of a known key"):
        opened(signed(TEXT, [second]), [first.verifier])


def test_a_text_may_have_blank_lines_and_signatures_in_it() -> None:
    signer = Signer.generate("a")
    text = f"one\n\n{PETER_SIGNED}\ntwo\n"
    assert opened(signed(text, [signer]), [signer.verifier, peter]) == (text, {signer.verifier})


def test_a_wrong_signature_of_a_known_key_refuses_the_note() -> None:
    signer = Signer.generate("a")
    wrong = PETER_SIGNED.replace("x08go/ZJ", "x08go/ZK")
    with pytest.raises(NoteInvalid, match=r"PeterNeumann.*does not hold"):
        opened(signed(TEXT, [signer]) + wrong, [signer.verifier, peter])


def test_another_key_of_the_same_name_and_id_does_not_open() -> None:
    other = Verifier(peter.name, Signer.generate(peter.name).verifier.public_key)
    with pytest.raises(NoteInvalid):
        opened(NOTE, [other])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(NOTE) - 1), st.characters(codec="utf-8"))
def test_one_changed_character_never_opens(at: int, character: str) -> None:
    changed = NOTE[:at] + character + NOTE[at + 1 :]
    if changed != NOTE:
        with pytest.raises(NoteInvalid):
            opened(changed, [peter])


def as_line(name: str, data: bytes) -> str:
    return f"— {name} {b64encode(data).decode()}\n"


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n",
        TEXT,
        TEXT + "\n",
        TEXT + PETER_SIGNED,  # no blank line
        NOTE[:-1],  # no newline at the end
        NOTE + "\n",
        NOTE.replace("\n", "\r\n"),
        NOTE.replace("problem is", "problem\tis"),
        NOTE.replace("problem is", "problem\0is"),
        NOTE.replace("problem is", "problem\ud800is"),
        NOTE.replace("— ", "- "),
        NOTE.replace("— ", "—"),
        NOTE.replace("— ", "—  "),
        NOTE.replace("PeterNeumann ", "PeterNeumann  "),
        NOTE.replace("PeterNeumann x", "Peter Neumann x"),
        NOTE[:-1] + " \n",
        NOTE.replace("AM=", "AM"),  # not padded
        NOTE.replace("AM=", "AN="),  # not canonical: bits beyond the last byte
        NOTE.replace("x08go/", "x08go_"),  # of another alphabet
        NOTE + "— PeterNeumann\n",
        NOTE + as_line("a+b", bytes(68)),
        NOTE + as_line("someone", bytes(4)),  # an id without a signature
        NOTE + as_line("someone", b"x" * 68) * 100,
        NOTE + "x" * 1_000_000,
        f"{TEXT}\n{as_line('PeterNeumann', peter.key_id + bytes(63))}",
        f"{TEXT}\n{as_line('PeterNeumann', peter.key_id + bytes(65))}",
    ],
)
def test_what_is_malformed_never_opens(note: str) -> None:
    with pytest.raises(NoteInvalid):
        opened(note, [peter])


@pytest.mark.parametrize(
    "key",
    [
        "",
        "PeterNeumann",
        "PeterNeumann+c74f20a3",
        PETER[:-1],
        PETER + "\n",
        " " + PETER,
        PETER.replace("c74f20a3", "c74f20a4"),
        PETER.replace("c74f20a3", "C74F20A3"),
        PETER.replace("c74f20a3", "c74f20a"),
        PETER.replace("PeterNeumann", "EnochRoot"),
        PETER.replace("PeterNeumann", ""),
        PETER.replace("PeterNeumann", "Peter Neumann"),
        PETER.replace("ARpc", "AhpC"),
        "x+00000000+" + b64encode(b"\x01" + bytes(31)).decode(),
        "x+00000000+" + b64encode(b"\x02" + bytes(32)).decode(),
    ],
)
def test_what_is_malformed_is_no_verifier_key(key: str) -> None:
    with pytest.raises(NoteInvalid, match="malformed"):
        Verifier.parse(key)


@pytest.mark.parametrize(
    "key",
    [
        PETER,
        PETER_PRIVATE[:-1],
        PETER_PRIVATE.replace("PRIVATE+KEY+", "PRIVATE+"),
        PETER_PRIVATE.replace("c74f20a3", "c74f20a4"),
        PETER_PRIVATE.replace("PeterNeumann", "EnochRoot"),
        PETER_PRIVATE.replace("AYEK", "BYEK"),
        PETER_PRIVATE + "=",
    ],
)
def test_what_is_malformed_is_no_private_key_and_is_not_shown(key: str) -> None:
    with pytest.raises(NoteInvalid, match="malformed private key") as raised:
        Signer.parse(key)
    assert "FALVFGyNhPJEMzD1QIDr" not in repr(raised.value)


def test_a_private_key_is_never_shown() -> None:
    signer = Signer.parse(PETER_PRIVATE)
    secret = b64decode(PETER_PRIVATE.split("+", 4)[4])
    for shown in (repr(signer), str(signer), f"{signer.verifier!r}", f"{[signer]}"):
        assert "AYEKFALV" not in shown
        assert secret[1:].hex() not in shown
    assert repr(signer) == "Signer(PeterNeumann+c74f20a3)"


@pytest.mark.parametrize("text", ["", "no newline", "tab\t\n", "nul\0\n", "\ud800\n"])
def test_what_could_not_be_opened_is_not_signed(text: str) -> None:
    with pytest.raises(NoteInvalid):
        signed(text, [Signer.generate("a")])


def test_a_note_without_a_signature_is_not_made() -> None:
    with pytest.raises(NoteInvalid):
        signed(TEXT, [])


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u2003b", "a\n", "a\0"])
def test_a_name_that_no_note_could_carry_is_refused(name: str) -> None:
    with pytest.raises(NoteInvalid):
        Signer.generate(name)
