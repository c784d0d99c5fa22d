"""Signed notes with Ed25519: https://c2sp.org/signed-note

A note is a text, a blank line, and one line per signature::

    — key name base64(key id || signature)

A key is known by its name and by its id, the first four bytes of SHA-256 over name, newline, type and public
key. The text that carries a private key is `Signer.private_key`, and nothing else ever shows it.
"""

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ED25519 = b"\x01"  # the type of a key and its signatures
KEY_BYTES = 32
KEY_ID_BYTES = 4
SIGNATURE_BYTES = 64
MAX_NOTE_CHARACTERS = 1_000_000
MAX_SIGNATURES = 100

_PRIVATE = "PRIVATE+KEY+"
_KEY_ID = re.compile(r"[0-9a-f]{8}")
_SIGNATURE = re.compile(r"— (\S+) (\S+)")


class NoteInvalid(Exception):
    """A note, a checkpoint or a key is malformed, or a signature does not hold; says what is wrong."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key and its name: what checks signatures."""

    name: str
    public_key: bytes

    @property
    def key_id(self) -> bytes:
        """The four bytes that signatures refer to the key by."""
        return sha256(self.name.encode() + b"\n" + ED25519 + self.public_key).digest()[:KEY_ID_BYTES]

    def __str__(self) -> str:
        """The verifier key in signed-note form."""
        return f"{self.name}+{self.key_id.hex()}+{b64encode(ED25519 + self.public_key).decode()}"

    @classmethod
    def parse(cls, text: str) -> "Verifier":
        """Raises `NoteInvalid`."""
        name, key_id, key = _key_parts(text, "verifier key")
        verifier = cls(name, key)
        if verifier.key_id.hex() != key_id:
            raise NoteInvalid(f"malformed verifier key: its id is {verifier.key_id.hex()}, not {key_id}")
        return verifier

    def check(self, text: str, signature: bytes) -> None:
        """Raises `NoteInvalid` where ``signature`` is not this key's over ``text``."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, text.encode())
        except (InvalidSignature, ValueError) as error:
            raise NoteInvalid(f"the signature of {self.name}+{self.key_id.hex()} does not hold") from error


def verifiers_of(text: str) -> list[Verifier]:
    """The verifier keys of ``text``, one a line, at least one. Raises `NoteInvalid`."""
    verifiers = [Verifier.parse(line.strip()) for line in text.splitlines() if line.strip()]
    if not verifiers:
        raise NoteInvalid("there is no verifier key")
    return verifiers


class Signer:
    """A private key and its name: what signs. Its representation never shows the key."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self.name = checked_name(name)
        self._key = key
        self.verifier = Verifier(name, key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, name: str) -> "Signer":
        """A new key."""
        return cls(name, Ed25519PrivateKey.generate())

    @classmethod
    def parse(cls, text: str) -> "Signer":
        """Raises `NoteInvalid`, which never shows ``text``."""
        if not text.startswith(_PRIVATE):
            raise NoteInvalid(f"malformed private key: it does not begin with {_PRIVATE}")
        name, key_id, seed = _key_parts(text.removeprefix(_PRIVATE), "private key")
        signer = cls(name, Ed25519PrivateKey.from_private_bytes(seed))
        if signer.verifier.key_id.hex() != key_id:
            raise NoteInvalid("malformed private key: its id is of another key or name")
        return signer

    @property
    def private_key(self) -> str:
        """The private key in the form of Go's note package: for the key file only."""
        key = b64encode(ED25519 + self._key.private_bytes_raw()).decode()
        return f"{_PRIVATE}{self.name}+{self.verifier.key_id.hex()}+{key}"

    def named(self, name: str) -> "Signer":
        """The same key under another name, and so with another id."""
        return Signer(name, self._key)

    def sign(self, text: str) -> bytes:
        """The signature over ``text``."""
        return self._key.sign(text.encode())

    def __repr__(self) -> str:
        return f"Signer({self.name}+{self.verifier.key_id.hex()})"


def signed(text: str, signers: Sequence[Signer]) -> str:
    """The note of ``text`` with a signature of each of ``signers``. Raises `NoteInvalid`."""
    _refuse_characters(text)
    if not text.endswith("\n"):
        raise NoteInvalid("malformed text: it does not end with a newline")
    if not signers:
        raise NoteInvalid("a note has at least one signature")
    lines = [f"— {one.name} {b64encode(one.verifier.key_id + one.sign(text)).decode()}\n" for one in signers]
    return f"{text}\n{''.join(lines)}"


def opened(note: str, verifiers: Collection[Verifier]) -> tuple[str, set[Verifier]]:
    """The text of ``note``, and who of ``verifiers`` signed it: at least one.

    Signatures of others are ignored. Raises `NoteInvalid`, also where any signature of a known key is wrong.
    """
    if len(note) > MAX_NOTE_CHARACTERS:
        raise NoteInvalid(f"malformed note: more than {MAX_NOTE_CHARACTERS} characters")
    _refuse_characters(note)
    before, blank, after = note.rpartition("\n\n")
    if not blank or not after.endswith("\n"):
        raise NoteInvalid("malformed note: no text, blank line and signature lines")
    text = before + "\n"
    lines = after[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise NoteInvalid(f"malformed note: more than {MAX_SIGNATURES} signatures")
    known = {(verifier.name, verifier.key_id): verifier for verifier in verifiers}
    signers: set[Verifier] = set()
    for name, key_id, signature in [_signature_of(line) for line in lines]:
        if verifier := known.get((name, key_id)):
            verifier.check(text, signature)
            signers.add(verifier)
    if not signers:
        raise NoteInvalid("no signature of a known key")
    return text, signers


def checked_name(name: str) -> str:
    """``name`` where it can be that of a key: not empty, no white space, no plus. Raises `NoteInvalid`."""
    if not name or "+" in name or any(character.isspace() for character in name):
        raise NoteInvalid(f"malformed key name {name!r}: it is empty, or has white space or a plus")
    _refuse_characters(name)
    return name


def base64_of(text: str, what: str) -> bytes:
    """The bytes of standard padded base64, in its canonical form. Raises `NoteInvalid` naming ``what``."""
    try:
        data = b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NoteInvalid(f"malformed {what}: not base64") from error
    if b64encode(data).decode() != text:
        raise NoteInvalid(f"malformed {what}: not canonical base64")
    return data


def _key_parts(text: str, what: str) -> tuple[str, str, bytes]:
    """Name, id and key bytes of ``name+id+base64(type || key)``."""
    parts = text.split("+", 2)
    if len(parts) != 3 or not _KEY_ID.fullmatch(parts[1]):
        raise NoteInvalid(f"malformed {what}: not name+id+key")
    name, key_id, encoded = parts
    data = base64_of(encoded, what)
    if data[:1] != ED25519 or len(data) != 1 + KEY_BYTES:
        raise NoteInvalid(f"malformed {what}: not an Ed25519 key")
    return checked_name(name), key_id, data[1:]


def _signature_of(line: str) -> tuple[str, bytes, bytes]:
    """Name, key id and signature of a line; a signature of a type that is not ours may have any length."""
    match = _SIGNATURE.fullmatch(line)
    if match is None:
        raise NoteInvalid(f"malformed note: {line[:100]!r} is not a signature line")
    data = base64_of(match[2], "signature")
    if len(data) <= KEY_ID_BYTES:
        raise NoteInvalid("malformed signature: too short")
    return checked_name(match[1]), data[:KEY_ID_BYTES], data[KEY_ID_BYTES:]


def _refuse_characters(text: str) -> None:
    if any((each < " " and each != "\n") or "\ud800" <= each <= "\udfff" for each in text):
        raise NoteInvalid("malformed text: control characters or surrogates")
