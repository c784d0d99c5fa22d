"""What is removed below the shared folder, and what never is."""

from pathlib import Path

import pytest

from infra.local import clean


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    monkeypatch.setattr(clean, "SHARED", folder)
    return folder


def data_in(shared: Path, name: str) -> Path:
    data = shared / f"data-{name}"
    (data / "data").mkdir(parents=True)
    return data


def test_databases_of_folders_that_are_gone_are_removed_and_no_others(shared: Path, tmp_path: Path) -> None:
    (shared / "postgresql-18").mkdir()
    gone, there, unknown, nonsense = (data_in(shared, name) for name in ("1", "2", "3", "4"))
    folder = tmp_path / "checkout" / ".fpso"
    folder.mkdir(parents=True)
    clean.own(there, folder)
    clean.own(gone, tmp_path / "other" / ".fpso")
    (nonsense / "owner").write_text("\n")
    clean.remove_orphans()
    assert sorted(shared.glob("data-*")) == [there, unknown, nonsense]
    assert (shared / "postgresql-18").exists()


def test_a_database_that_a_server_runs_on_stays(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_in(shared, "1")
    clean.own(data, tmp_path / "gone")
    with monkeypatch.context() as at:
        at.chdir(data / "data")
        clean.remove_orphans()
    assert data.exists()
    clean.remove_orphans()
    assert not shared.exists()  # the last one takes the folder with it


def test_data_within_the_checkout_needs_no_note(shared: Path, tmp_path: Path) -> None:
    clean.own(tmp_path, tmp_path)
    assert not (tmp_path / "owner").exists()


def test_cleaning_removes_orphans_where_nothing_was_ever_run(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = data_in(shared, "1")
    clean.own(data, tmp_path / "gone")
    monkeypatch.chdir(tmp_path)
    clean.main()
    assert not data.exists()
    assert f"{tmp_path}/gone" in capsys.readouterr().out
