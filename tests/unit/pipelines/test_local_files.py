"""What a recipe names on the submitting machine: refused, or put where pods read it, which preflight then does."""

import gzip
import json
import shutil
import sqlite3

import pytest
import yaml
from published import SHARDS, in_the_makers_form_too, weights_in
from typer.testing import CliRunner

from bloomery.components.core import artifact, uploads
from bloomery.components.core.data.files import list_files
from bloomery.components.core.data.tables import read_rows
from bloomery.components.core.errors import ConfigError
from bloomery.components.preflight.models import take_outside
from bloomery.components.preflight.questions import render_tasks
from bloomery.pipelines import local_files, recipe
from bloomery.pipelines.cli import app

TRAINING = {"learning_rate": 1e-3, "epochs": 1, "max_length": 64}
PREFIX = "s3://bucket/bloomery"


@pytest.fixture
def store(object_store, monkeypatch, tmp_path):
    monkeypatch.setenv("BLOOMERY_CACHE", str(tmp_path / "cache"))
    return object_store


@pytest.fixture
def loaded(tmp_path, tiny_model):
    """A recipe that names things of every kind on this machine."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "one.md").write_text("# One\n\ntext")
    (tmp_path / "docs" / "two.jsonl.gz").write_bytes(gzip.compress(b'{"text": "two"}'))
    (tmp_path / "chats.jsonl").write_text(json.dumps({"prompt": "say", "completion": "ab"}))
    (tmp_path / "q.jsonl").write_text(json.dumps({"q": "all names", "a": "SELECT name FROM t"}))
    (tmp_path / "t-1.jsonl").write_text(json.dumps({"q": "all ids", "a": "SELECT id FROM t"}))
    (tmp_path / "template.jinja").write_text("{{ messages[0]['content'] }}")
    (tmp_path / "databases").mkdir()
    for name in ("a", "b"):
        with sqlite3.connect(tmp_path / "databases" / f"{name}.sqlite") as connection:
            connection.execute("CREATE TABLE t (id INTEGER, name TEXT)")
        connection.close()
    asked = {"prompt": "{q}", "answer": "{a}"}
    values = {
        "name": "shop",
        "registered_model": "m",
        "base_model": str(tiny_model),
        "chat_template": "template.jinja",
        "chats": [{"name": "c", "path": "chats.jsonl"}],
        "tasks": {
            "sql": {
                "role": "domain",
                "templates": [asked],
                "verifier": {"kind": "sql_execution", "databases": ["databases"]},
                "splits": {"train": {"path": "q.jsonl"}, "test": {"path": "t-*.jsonl"}},
            }
        },
        "stages": [
            {"data_curation": {"sources": [{"name": "d", "path": "docs"}]}},
            "dedup",
            {"sft": TRAINING},
            {"merging": {"method": "linear", "models": [{"stage": "sft"}, {"model": str(tiny_model)}]}},
        ],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return recipe.load(str(tmp_path / "recipe.yaml"))


def test_every_path_is_refused_in_one_message(loaded, tmp_path, tiny_model):
    here = {setting.key: setting.path for setting in local_files.found(loaded)}
    assert here == {
        "base_model": str(tiny_model),  # which merging names as well
        "chat_template": str(tmp_path / "template.jinja"),
        "tasks.sql.splits.train.path": str(tmp_path / "q.jsonl"),
        "tasks.sql.splits.test.path": str(tmp_path / "t-*.jsonl"),
        "tasks.sql.verifier.databases.0": str(tmp_path / "databases"),
        "chats.0.path": str(tmp_path / "chats.jsonl"),
        "data_curation.sources.0.path": str(tmp_path / "docs"),
        "promotion.models_uri": "models",
    }
    with pytest.raises(ConfigError) as told:
        local_files.for_pods(loaded, None)
    assert all(f"{key}: {path} is of this machine" in str(told.value) for key, path in here.items())
    assert "--upload s3://bucket/prefix" in str(told.value)
    assert local_files.for_pods(loaded, None, in_image=True) is loaded


def test_the_places_of_a_recipe_are_what_is_there_and_of_a_glob_its_folder(loaded, tmp_path, tiny_model):
    (tmp_path / "template.jinja").unlink()
    names = ("chats.jsonl", "databases", "docs", "q.jsonl")
    assert local_files.places(loaded) == sorted([tmp_path, tiny_model, *(tmp_path / name for name in names)])


def test_what_pods_can_read_is_not_refused():
    wanted = {"base_model": "org/model", "chat_template": "chatml"}
    assert not local_files.IS_LOCAL[local_files.ModelName](wanted["base_model"])
    assert not local_files.IS_LOCAL[local_files.TemplateName](wanted["chat_template"])
    assert not local_files.IS_LOCAL[local_files.LocalPath]("hf://datasets/org/set")
    assert local_files.IS_LOCAL[local_files.ModelName]("~/model")


def test_what_is_uploaded_is_what_preflight_reads(store, loaded, tmp_path, tiny_model):
    there = local_files.for_pods(loaded, PREFIX)
    assert not local_files.found(there) and there.promotion.models_uri == f"{PREFIX}/models"
    # Where the sources of chats stand twice, they are one.
    (curation,) = (stage.config for stage in there.stages if stage.step == "chat_curation")
    assert curation.chats == there.chats and there.chats[0].path.startswith(f"{PREFIX}/sha256-")
    store.requests.clear()
    assert local_files.for_pods(loaded, PREFIX) == there
    assert not [request for request in store.requests if request.startswith(("PUT", "POST"))]

    config = there.preflight()
    (source,) = config.sources
    documents = [row.value["text"] for uri in list_files(source.path) for row in read_rows(uri)]
    assert documents == ["# One\n\ntext", "two"]
    (tmp_path / "out").mkdir()
    facts = render_tasks(config, tmp_path / "out" / "tasks", tmp_path / "out" / "seeds")
    assert facts["preflight/prompts"] == 2
    assert len(list((tmp_path / "out" / "tasks").rglob("*.sqlite"))) == 2
    take_outside(config, tmp_path / "out" / "outside")
    weights = f"{config.outside[0].folder}/model.safetensors"
    digest = artifact.file_digest(tiny_model / "model.safetensors")
    assert artifact.file_digest(tmp_path / "out" / "outside" / weights) == digest
    assert uploads.fetched(config.chat_template).read_text() == "{{ messages[0]['content'] }}"


def test_weights_that_are_not_loaded_are_not_uploaded(store, loaded, tmp_path, tiny_model):
    published = in_the_makers_form_too(shutil.copytree(tiny_model, tmp_path / "published"))
    there = local_files.for_pods(loaded.model_copy(update={"base_model": str(published)}), PREFIX)
    assert weights_in(uploads.fetched(there.base_model)) == SHARDS


def test_files_that_are_not_there_are_all_told(store, loaded, tmp_path):
    (tmp_path / "q.jsonl").unlink()
    (tmp_path / "chats.jsonl").unlink()
    with pytest.raises(Exception, match=r"q.jsonl: no file there(.|\n)*chats.jsonl: no file there"):
        local_files.for_pods(loaded, PREFIX)


def test_compiling_warns(loaded, tmp_path):
    target = tmp_path / "p.yaml"
    result = CliRunner().invoke(app, ["compile", str(tmp_path / "recipe.yaml"), "-o", str(target)])
    assert result.exit_code == 0 and target.is_file()
    assert "warning: chats.0.path:" in result.stderr and "--upload" in result.stderr
