import json
import os
from pathlib import Path
from typing import Annotated

import pytest

from bloomery.components.core import artifact
from bloomery.components.core.errors import DataError
from bloomery.components.core.records import Document, content_id

DOCUMENT = {"source": "s:f#1", "language": "en", "general": False, "time": "", "quality": None}


def document(text: str) -> dict:
    return {**DOCUMENT, "id": content_id(text), "text": text}


def test_rows_come_back_as_they_were_and_the_digest_is_of_the_content_alone(tmp_path):
    table = Document.table([document("one"), document("하나")])
    with artifact.lineage("a_step", {"seed": 1}, {"x": "y"}):
        first = artifact.write_rows(tmp_path / "a", "document/2", table, dropped={"bad": 3, "none": 0})
    second = artifact.write_rows(tmp_path / "b", "document/2", table)
    assert artifact.read_table(tmp_path / "a", "document/2").to_pylist() == table.to_pylist()
    assert first.digest == second.digest
    assert (first.rows, first.rows_in, first.dropped) == (2, 5, {"bad": 3})
    assert (first.step, first.config, first.inputs) == ("a_step", {"seed": 1}, {"x": "y"})


def test_a_lost_row_is_an_error(tmp_path):
    with pytest.raises(DataError, match="3 rows in \\+ 0 made is not 1 kept \\+ 1 dropped"):
        artifact.write_rows(tmp_path / "a", "document/2", Document.table([document("x")]), rows_in=3, dropped={"b": 1})


def test_an_empty_table_is_whole_and_readable(tmp_path):
    artifact.write_rows(tmp_path / "a", "document/2", Document.table([]), rows_in=0)
    assert artifact.read_table(tmp_path / "a", "document/2").num_rows == 0


def test_without_a_manifest_an_artifact_is_refused(tmp_path):
    artifact.write_rows(tmp_path / "a", "document/2", Document.table([document("x")]))
    (tmp_path / "a" / artifact.MANIFEST).unlink()
    with pytest.raises(DataError, match="did not finish"):
        artifact.read_table(tmp_path / "a", "document/2")


def test_a_missing_or_cut_file_and_another_schema_are_refused(tmp_path):
    artifact.write_rows(tmp_path / "a", "document/2", Document.table([document("x")]))
    with pytest.raises(DataError, match="holds document/2, but chat/2 is read"):
        artifact.read_manifest(tmp_path / "a", "chat/2")
    with pytest.raises(DataError, match="it was written by an older version; run the step again"):
        artifact.read_manifest(tmp_path / "a", "document/3")
    with pytest.raises(DataError, match="by a newer version"):
        artifact.read_manifest(tmp_path / "a", "document/1")
    part = tmp_path / "a" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DataError, match="missing or not"):
        artifact.read_manifest(tmp_path / "a")


def test_shards_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "ROWS_PER_SHARD", 2)
    artifact.write_rows(tmp_path / "a", "document/2", Document.table([document(str(n)) for n in range(5)]))
    assert len(list((tmp_path / "a").glob("part-*.parquet"))) == 3
    assert artifact.read_table(tmp_path / "a", "document/2").num_rows == 5


def test_rows_are_read_a_few_at_a_time_over_all_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "ROWS_PER_SHARD", 5)
    texts = [str(n) for n in range(12)]
    artifact.write_rows(tmp_path / "a", "document/2", Document.table([document(text) for text in texts]))
    batches = list(artifact.Shards(tmp_path / "a", "document/2").batches(2, ["text"]))
    assert [batch.num_rows for batch in batches] == [2, 2, 1, 2, 2, 1, 2]
    assert [batch.schema.names for batch in batches] == [["text"]] * 7
    assert [row["text"] for batch in batches for row in batch.to_pylist()] == texts
    whole = [batch.to_pylist() for batch in artifact.Shards(tmp_path / "a", "document/2").batches(100)]
    assert [row for rows in whole for row in rows] == artifact.read_table(tmp_path / "a", "document/2").to_pylist()


def test_link_tree_shares_bytes_and_replaces_what_was_there(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_text("x")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "old").write_text("y")
    artifact.link_tree(tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path / "b") == ["f"]
    assert os.stat(tmp_path / "a" / "f").st_ino == os.stat(tmp_path / "b" / "f").st_ino


def test_ports_are_read_from_the_signature():
    def run(
        config: int, *, a: Annotated[Path, artifact.Reads("x/1")], b: Annotated[Path, artifact.Writes("y/1")]
    ) -> dict: ...

    assert artifact.ports(run, artifact.Reads) == {"a": "x/1"}
    assert artifact.ports(run, artifact.Writes) == {"b": "y/1"}


def test_the_manifest_is_written_last_and_lists_every_file(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "weights").write_bytes(b"123")
    manifest = artifact.seal(folder, "model/1")
    assert json.loads((folder / "manifest.json").read_text())["files"]["weights"]["bytes"] == 3
    assert manifest.bytes == 3
