"""The release is known wherever the code runs."""

from importlib.metadata import PackageNotFoundError, version

import pytest

from infra import release


def test_the_release_is_known_in_the_image_where_the_project_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = release.release()
    assert installed == version("fpso-system")

    def not_installed(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(release, "version", not_installed)
    assert release.release() == installed
