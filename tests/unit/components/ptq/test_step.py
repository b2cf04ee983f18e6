"""Choosing among variants, with numbers that a reader can follow."""

import json

import pytest

from bloomery.components.core import artifact
from bloomery.components.core.errors import DataError
from bloomery.components.ptq.config import PtqConfig
from bloomery.components.ptq.step import run


@pytest.fixture
def variant(tmp_path):
    """Write a model and its measurement; right answers are '1'."""

    def write(scheme, num_bytes, answers, skipped="", kv_cache_bytes=8.0):
        model, measurement = tmp_path / f"{scheme}-model", tmp_path / f"{scheme}-measurement"
        model.mkdir()
        measurement.mkdir()
        found = {"scheme": scheme, "skipped": skipped, "details": {}}
        if not skipped:
            (model / "name").write_text(scheme)
            found |= {
                "bytes": num_bytes,
                "answers": list(answers),
                "scores": [float(answer == "1") for answer in answers],
                "perplexity": 2.0,
                **dict.fromkeys(("memory_bytes", "weight_bytes", "prefill_tokens"), 1),
                "kv_cache_bytes_per_token": kv_cache_bytes,
                **dict.fromkeys(("prefill_seconds", "decode_seconds_per_token"), 0.5),
            }
        artifact.seal(model, "model/1")
        (measurement / "measurement.json").write_text(json.dumps(found))
        artifact.seal(measurement, "measurement/1")
        return model, measurement

    return write


def choose(tmp_path, tolerance, *pairs):
    metrics = run(
        PtqConfig(tolerance=tolerance),
        models=[model for model, _ in pairs],
        measurements=[measurement for _, measurement in pairs],
        model=tmp_path / "m",
        variants=tmp_path / "v",
    )
    table = json.loads((tmp_path / "v/variants.json").read_text())
    return metrics, {entry["scheme"]: entry for entry in table}, (tmp_path / "m/name").read_text()


def test_the_smallest_inside_the_tolerance_goes_on(tmp_path, variant):
    pairs = [
        variant("none", 400, "1111111100"),
        variant("int8", 100, "1111111010"),
        variant("int4", 50, "1111100000"),
        variant("fp8", 0, "", skipped="no GPU"),
    ]
    metrics, table, name = choose(tmp_path, 0.1, *pairs)
    assert name == "int8" and [scheme for scheme, entry in table.items() if entry["chosen"]] == ["int8"]
    assert table["int8"]["difference"] == 0.0 and table["int8"]["agreement"] == 0.8
    assert table["int8"]["difference_stderr"] == pytest.approx((2 / 9 / 10) ** 0.5)
    assert table["int4"]["difference"] == pytest.approx(-0.3) and table["int4"]["n"] == 10
    assert table["none"]["agreement"] == 1.0
    assert table["fp8"]["skipped"] == "no GPU" and table["fp8"]["score"] is table["fp8"]["bytes"] is None
    assert metrics["ptq/ratio"] == 4.0 and metrics["ptq/skipped"] == 1.0


def test_of_equally_small_ones_the_smaller_cache_goes_on(tmp_path, variant):
    pairs = [variant("none", 400, "1111"), variant("int8", 100, "1111"), variant("int8_kv8", 100, "1111", "", 2.0)]
    _, table, name = choose(tmp_path, 0.0, *pairs)
    assert name == "int8_kv8" and table["int8_kv8"]["kv_cache_bytes_per_token"] == 2.0


def test_if_none_is_good_enough_the_model_itself_goes_on(tmp_path, variant):
    _, table, name = choose(tmp_path, 0.05, variant("int4", 50, "1100"), variant("none", 400, "1111"))
    assert name == "none" and table["none"]["chosen"]


def test_without_the_parent_there_is_nothing_to_compare_with(tmp_path, variant):
    with pytest.raises(DataError, match="found 0 variants of the scheme none"):
        choose(tmp_path, 0.05, variant("int4", 50, "1100"))
