"""New recipes are right as they are written, and nothing is written over."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from buildlib import distros, scaffold
from buildlib.errors import BuildError
from buildlib.house import House
from tests.checkout import Checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = Checkout.make(tmp_path)
    shutil.rmtree(made.folder / "recipes/_parts")
    return made


@pytest.mark.parametrize("distro", distros.names())
def test_a_new_recipe_is_right(distro: str, checkout: Checkout) -> None:
    said = checkout.doit("new", "lab", "--distro", distro)
    assert "recipes/lab/recipe.yaml" in said
    assert "./doit build:lab" in said
    found = House(checkout.folder).recipes["lab"]
    assert (found.distro, found.common.description) == (distro, "lab")
    assert "lab" in checkout.doit("list")


def test_every_distribution_has_one() -> None:
    assert sorted(scaffold.FILES) == distros.names()


def test_debian_is_what_is_meant_without_a_word(checkout: Checkout) -> None:
    checkout.doit("new", "lab")
    assert House(checkout.folder).recipes["lab"].distro == "debian"


def test_nothing_is_written_over(checkout: Checkout) -> None:
    checkout.doit("new", "lab")
    before = (checkout.folder / "recipes/lab/recipe.yaml").read_text()
    assert "is there already" in checkout.doit("new", "lab", "--distro=alpine", status=3)
    assert (checkout.folder / "recipes/lab/recipe.yaml").read_text() == before
    assert "usage" in checkout.doit("new", status=3)


@pytest.mark.parametrize("name", ["../lab", "Lab", "_lab", "a b", ""])
def test_a_name_that_is_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no name of a recipe"):
        scaffold.write(tmp_path, name, "debian")
    with pytest.raises(BuildError, match="there is no fedora"):
        scaffold.write(tmp_path, "lab", "fedora")
    assert list(tmp_path.iterdir()) == []
