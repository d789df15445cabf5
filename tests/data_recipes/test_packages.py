"""A package of the demo extra that is not installed is named with its remedy."""

from __future__ import annotations

import pytest

from data_recipes import packages
from vltrain.errors import DataError


@pytest.mark.parametrize("find", [packages.load, packages.folder])
def test_missing_package(find) -> None:
    with pytest.raises(DataError, match=r"'no_such_package'.*pip install 'vltrain\[demo\]'"):
        find("no_such_package")


def test_folder_is_found_without_an_import() -> None:
    assert (packages.folder("skimage") / "data" / "coffee.png").is_file()
