"""Small real things that many tests start from."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import pytest
import tiny
from chats import prompt_row, write_chats
from s3_server import Server

from bloomery.components.core import artifact, interpreter, s3
from bloomery.components.core.modelling import checkpoints
from bloomery.pipelines import fork_server


@pytest.fixture(scope="session")
def forks():
    """Tasks of all runs of this process and its programs are forks of one server, which imports what they need once."""
    with fork_server.serving() as (program, _):
        os.environ[interpreter.PYTHON] = program
        yield
        del os.environ[interpreter.PYTHON]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("tiny") / "model")


WORDS = ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op")


@pytest.fixture(scope="session")
def talking_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model when it has learnt to answer `say …` with one of WORDS, said once, twice or three times."""
    from bloomery.components.core.modelling.fine_tuning import FineTuningConfig, fine_tune

    folder = tmp_path_factory.mktemp("talking")
    places = [(row, column) for row in range(8) for column in range(8)]
    said = [
        (f"say {WORDS[row]}{WORDS[column]}", WORDS[(3 * row + 5 * column) % 8] * (1 + (row + column) % 3))
        for row, column in places
    ]
    config = FineTuningConfig(learning_rate=1e-2, epochs=15, batch_size=16, max_length=64, num_validations=0)
    chats = write_chats(folder / "chats", said)
    given = {"chats": chats, "texts": [], "watched": [], "where": "sft"}
    network, _ = fine_tune(config, *checkpoints.load(tiny_model), **given)
    checkpoints.save(folder / "model", network, checkpoints.load_tokenizer(tiny_model))
    return folder / "model"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A SQLite file with `t(id, name)`: (1, 'a'), (2, 'b')."""
    file = tmp_path / "t.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE t (id INTEGER, name TEXT)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(1, "a"), (2, "b")])
    connection.close()
    return file


@pytest.fixture
def make_tasks(tmp_path: Path):
    """Write a tasks/1 artifact from task configs and prompt rows."""

    def make(configs: dict, rows: list[dict], name: str = "tasks") -> Path:
        from bloomery.components.core.records import Prompt

        folder = tmp_path / name
        folder.mkdir()
        (folder / "tasks.json").write_text(json.dumps(configs))
        filled = [prompt_row(**row) for row in rows]
        artifact.write_rows(folder, "prompt/2", Prompt.table(filled))
        artifact.seal(folder, "tasks/1", rows=len(filled))
        return folder

    return make


@pytest.fixture(scope="session")
def s3_process():
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def object_store(s3_process: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A real S3 server with an empty bucket, which boto3 finds here; requests are tried again four times, soon."""
    for name, value in s3_process.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3, "WAITS", (0.02,) * 4)
    s3_process.clear()
    return s3_process
