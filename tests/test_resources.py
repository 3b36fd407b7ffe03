"""`package:` paths stay inside the package, and the files that code reads by them are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_sdg import resources
from nemo_sdg.errors import ConfigError


def test_package_paths_resolve_below_the_data_root_and_others_stay():
    assert resources.resolve("package:conf/sizes.yaml") == resources.root() / "conf" / "sizes.yaml"
    assert resources.resolve("some/folder") == Path("some/folder")
    assert resources.resolve("~/x") == Path.home() / "x"


@pytest.mark.parametrize("path", ["package:conf/absent.yaml", "package:../../../etc/hosts", "package:/etc/hosts"])
def test_a_path_that_is_absent_or_leaves_the_package_is_refused(path: str):
    with pytest.raises(ConfigError, match="no such file in the package"):
        resources.resolve(path)


def test_a_wheels_data_comes_before_the_folder_around_the_package(tmp_path: Path, monkeypatch):
    package = tmp_path / "site" / "nemo_sdg"
    (package / "_data" / "recipes").mkdir(parents=True)
    (tmp_path / "site" / "recipes").mkdir()
    (package / "_data" / "recipes" / "mine.py").touch()
    (tmp_path / "site" / "recipes" / "another.py").touch()
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert list(resources.recipes()) == ["mine"]
