"""The chain of a tiny recipe, run once a file."""

from pathlib import Path

import colours
import pytest


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with `recipe.yaml` and what it reads."""
    return colours.write_recipe(tmp_path_factory.mktemp("project"), tiny_model)


@pytest.fixture(scope="module")
def first(project: Path) -> dict:
    """The summary of a first run, in the workdir `w`."""
    return colours.run(project, "w")
