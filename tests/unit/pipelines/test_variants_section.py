"""The Pareto front and the table of variants."""

import json

import pytest

from bloomery.components.core import artifact
from bloomery.components.core.errors import DataError
from bloomery.pipelines import run_outputs, variants_section


def test_the_front_is_what_nothing_beats():
    #        smallest     beaten by the 3rd  best score   equal to the 3rd  worse and larger
    points = [(1.0, 0.5), (3.0, 0.6), (2.0, 0.7), (2.0, 0.7), (9.0, 0.7)]
    assert variants_section.pareto(points) == [True, False, True, True, False]


@pytest.fixture
def outputs(tmp_path):
    row = {"stderr": 0.01, "decode_seconds_per_token": 0.002, "chosen": False, "skipped": ""}
    rows = [
        {"scheme": "int2", "bytes": 50, **row, "score": 0.1, "refused": "its score fell"},
        {"scheme": "none", "bytes": 400, "score": 0.8, **row},
        {"scheme": "int8", "bytes": 100, "score": 0.8, **row, "chosen": True},
        {"scheme": "nf4", "bytes": None, "score": None, "chosen": False, "skipped": "needs <bitsandbytes>"},
    ]
    folder = tmp_path / "variants"
    folder.mkdir()
    (folder / "variants.json").write_text(json.dumps(rows))
    manifest = artifact.seal(folder, "variants/1")
    return {("ptq", "variants"): run_outputs.Output("ptq", "variants", folder, manifest)}


def test_variants_come_with_their_evaluation_and_skipped_ones_with_their_reason(outputs):
    finished = {
        "evaluation_ptq_int8": {"metrics": {"evaluation/sql.test.accuracy": 0.75, "evaluation/sql.test.n": 9.0}}
    }
    found = variants_section.read(outputs, finished)
    assert [row["scheme"] for row in found["rows"]] == ["int2", "none", "int8"]
    assert found["rows"][2]["sql.test"] == 0.75 and "sql.test" in found["columns"]
    assert found["skipped"] == [("nf4", "needs <bitsandbytes>")]
    assert found["refused"] == [("int2", "its score fell")] and "refused" not in found["columns"]
    size, latency = found["charts"]
    assert "400 B" in size and "2 ms" in latency and "int8" in latency


def test_without_variants_there_is_a_reason():
    with pytest.raises(DataError, match="ptq did not finish"):
        variants_section.read({}, {})
