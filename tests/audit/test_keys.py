"""The key file: made once, for its owner alone, never shown and never overwritten."""

import stat
from pathlib import Path

import pytest

from infra.audit.keys import KeyFileInvalid, create, put_in_front, read
from infra.audit.note import Signer

ORIGIN = "fpso.local/audit"


def test_a_key_is_kept_for_its_owner_only(tmp_path: Path) -> None:
    path, signer = tmp_path / "audit.key", Signer.generate(ORIGIN)
    create(path, signer)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.verifier for one in read(path)] == [signer.verifier]
    assert [each.name for each in tmp_path.iterdir()] == ["audit.key"], "nothing is left beside it"


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    create(path, Signer.generate(ORIGIN))
    before = path.read_bytes()
    with pytest.raises(KeyFileInvalid, match="never overwritten"):
        create(path, Signer.generate(ORIGIN))
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["audit.key"]


def test_a_new_key_comes_in_front(tmp_path: Path) -> None:
    path, first, second = tmp_path / "audit.key", Signer.generate(ORIGIN), Signer.generate(ORIGIN)
    create(path, first)
    put_in_front(path, second)
    assert [one.verifier for one in read(path)] == [second.verifier, first.verifier]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o601])
def test_a_file_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "audit.key"
    create(path, Signer.generate(ORIGIN))
    path.chmod(mode)
    with pytest.raises(KeyFileInvalid, match="chmod 600"):
        read(path)
    with pytest.raises(KeyFileInvalid, match="chmod 600"):
        put_in_front(path, Signer.generate(ORIGIN))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "no key"),
        (b"\n \n", "no key"),
        (b"\xff\xfe", "UTF-8"),
        (b"secret that is not a key\n", "malformed private key"),
        (b"x" * 100_000, "bytes"),
    ],
)
def test_a_file_that_is_no_key_file_is_refused_and_not_shown(
    tmp_path: Path, content: bytes, cause: str
) -> None:
    path = tmp_path / "audit.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileInvalid, match=cause) as raised:
        read(path)
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_the_same_key_twice_is_refused(tmp_path: Path) -> None:
    path, signer = tmp_path / "audit.key", Signer.generate(ORIGIN)
    create(path, signer)
    put_in_front(path, signer)
    with pytest.raises(KeyFileInvalid, match="twice"):
        read(path)


def test_a_file_that_is_not_there_or_not_a_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(KeyFileInvalid, match=str(path)):
            read(path)
    with pytest.raises(KeyFileInvalid, match="cannot write"):
        create(tmp_path / "no" / "audit.key", Signer.generate(ORIGIN))
