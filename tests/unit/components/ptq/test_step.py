"""Choosing among variants, with numbers that a reader can follow."""

import json

import pytest

from bloomery.components.core import artifact
from bloomery.components.core.errors import DataError
from bloomery.components.ptq.config import PtqConfig
from bloomery.components.ptq.step import run


@pytest.fixture
def variant(tmp_path):
    """Write a model and its measurement. Right answers are '1'; of `answers` those of the validation split come before
    a bar, all of them without one; `nats` are those of texts of 100 tokens."""

    def write(scheme, num_bytes, answers, skipped="", kv_cache_bytes=8.0, nats=()):
        model, measurement = tmp_path / f"{scheme}-model", tmp_path / f"{scheme}-measurement"
        model.mkdir()
        measurement.mkdir()
        found = {"scheme": scheme, "skipped": skipped, "details": {}}
        if not skipped:
            (model / "name").write_text(scheme)
            found |= {
                "bytes": num_bytes,
                "answers": list(answers.replace("|", "")),
                "scores": [float(answer == "1") for answer in answers.split("|")[0]],
                "likelihoods": [(-value, 100) for value in nats],
                **dict.fromkeys(("memory_bytes", "weight_bytes", "prefill_tokens"), 1),
                "kv_cache_bytes_per_token": kv_cache_bytes,
                **dict.fromkeys(("prefill_seconds", "decode_seconds_per_token"), 0.5),
            }
        artifact.seal(model, "model/1")
        (measurement / "measurement.json").write_text(json.dumps(found))
        artifact.seal(measurement, "measurement/1")
        return model, measurement

    return write


def choose(tmp_path, settings, *pairs):
    metrics = run(
        PtqConfig(**settings),
        models=[model for model, _ in pairs],
        measurements=[measurement for _, measurement in pairs],
        model=tmp_path / "m",
        variants=tmp_path / "v",
    )
    table = json.loads((tmp_path / "v/variants.json").read_text())
    return metrics, {entry["scheme"]: entry for entry in table}, (tmp_path / "m/name").read_text()


def test_the_smallest_good_one_goes_on(tmp_path, variant):
    # 200 rows as in the quickstart: .675, .670 with one answer lost, .575 with a tenth lost
    pairs = [
        variant("none", 400, "1" * 135 + "0" * 65),
        variant("int8", 100, "1" * 134 + "0" * 66),
        variant("int4", 50, "1" * 115 + "0" * 85),
        variant("fp8", 0, "", skipped="no GPU"),
    ]
    metrics, table, name = choose(tmp_path, {}, *pairs)
    assert name == "int8" and [scheme for scheme, entry in table.items() if entry["chosen"]] == ["int8"]
    assert table["int8"]["difference"] == pytest.approx(-0.005) and table["int8"]["agreement"] == 0.995
    assert table["int8"]["difference_stderr"] == pytest.approx(0.005)
    # One lost of 200 shows no loss below a point (-1.9 at the lower bound); 199 equal answers of 200 are shown.
    assert table["int8"]["difference_low"] == pytest.approx(-0.0190, abs=1e-4)
    assert table["int8"]["agreement_low"] == pytest.approx(0.9779, abs=1e-4)
    assert table["int4"]["refused"] == "its score fell by 10.0 points, accepted are 1" and table["int4"]["n"] == 200
    assert table["none"]["agreement"] == 1.0 and table["none"]["refused"] == table["int8"]["refused"] == ""
    assert table["fp8"]["skipped"] == "no GPU" and table["fp8"]["score"] is table["fp8"]["bytes"] is None
    assert metrics["ptq/ratio"] == 4.0 and metrics["ptq/skipped"] == metrics["ptq/refused"] == 1.0
    assert "ptq/perplexity_ratio" not in metrics


def test_nine_rows_that_all_get_wrong_are_no_evidence(tmp_path, variant):
    # Equal scores, and a third of the answers: refused for its answers. All of them equal: nine are still too few.
    pairs = [variant("none", 400, "a" * 9), variant("int4", 50, "aaabbbbbb"), variant("int8", 100, "a" * 9)]
    metrics, table, name = choose(tmp_path, {}, *pairs)
    assert name == "none" and metrics["ptq/refused"] == 2 and metrics["ptq/ratio"] == 1.0
    assert table["int4"]["difference"] == 0.0 and "9 answers do not show" in table["int4"]["refused"]
    assert "33 % are equal, 14 % at the lower bound, expected 90" in table["int4"]["refused"]
    assert "its score may have fallen by 21.1 points" in table["int4"]["refused"]
    assert "100 % are equal, 77 % at the lower bound" in table["int8"]["refused"]
    assert "add rows to the `validation` split" in table["int8"]["refused"]


def test_other_questions_help_few_validation_rows(tmp_path, variant):
    pairs = [variant("none", 400, "0" * 9 + "|" + "a" * 55), variant("int8", 100, "0" * 9 + "|" + "a" * 54 + "b")]
    _, table, name = choose(tmp_path, {}, *pairs)
    assert name == "int8" and table["int8"]["n"] == 9 and table["int8"]["agreement"] == 63 / 64


def test_scores_alone_are_enough_where_they_are_many(tmp_path, variant):
    # A third of the answers is another one, and none was lost or won: 2.326 / 233 = .00998 at the lower bound.
    pairs = [variant("none", 400, "1" * 154 + "0" * 77), variant("qat", 50, "1" * 154 + "2" * 77)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert choose(tmp_path / "a", {}, *pairs)[2] == "qat"
    _, table, _ = choose(tmp_path / "b", {"tolerance": 0.0099}, *pairs)
    assert table["none"]["chosen"] and "its score may have fallen by 1.0 points" in table["qat"]["refused"]


def test_a_perplexity_that_rose_refuses_whatever_the_answers_say(tmp_path, variant):
    # ln 1.05 = .0488 nats a token more
    rows = "1" * 300
    pairs = [variant("none", 400, rows, nats=[200, 300]), variant("int4", 50, rows, nats=[204.88, 304.88])]
    metrics, table, name = choose(tmp_path, {}, *pairs)
    assert name == "none" and table["int4"]["refused"] == "its perplexity is 1.05 times that before, accepted is 1.03"
    assert table["none"]["perplexity"] == pytest.approx(2.718281828**2.5) and metrics["ptq/perplexity_ratio"] == 1.0


def test_without_a_question_perplexity_decides_with_its_error(tmp_path, variant):
    pairs = [
        variant("none", 400, "", nats=[200, 300, 250]),
        variant("int8", 100, "", nats=[200.1, 300.2, 250.1]),  # 1.0013 times, surely
        variant("int4", 50, "", nats=[205, 300, 252]),  # 1.0236 times, but the texts differ much
        variant("int2", 10, "", nats=[2e5, 2e5, 2e5]),
    ]
    metrics, table, name = choose(tmp_path, {}, *pairs)
    assert name == "int8" and metrics["ptq/perplexity_ratio"] == pytest.approx(2.718281828 ** (0.4 / 300))
    assert table["int8"]["score"] is table["int8"]["agreement"] is None
    assert table["int4"]["perplexity_ratio"] == pytest.approx(1.0236, abs=1e-4)
    assert table["int4"]["refused"].startswith("its perplexity may be 1.068 times that before")
    assert table["int2"]["refused"].startswith("its perplexity is 5.185e+21 times")


def test_without_anything_to_go_by_the_model_itself_goes_on(tmp_path, variant):
    _, table, name = choose(tmp_path, {}, variant("none", 400, ""), variant("int8", 100, ""))
    assert name == "none" and table["int8"]["refused"].startswith("nothing shows that it is as good as before")


def test_of_equally_small_ones_the_smaller_cache_goes_on(tmp_path, variant):
    rows = "1" * 30
    pairs = [variant("none", 400, rows), variant("int8", 100, rows), variant("int8_kv8", 100, rows, "", 2.0)]
    _, table, name = choose(tmp_path, {"tolerance": 0.0}, *pairs)
    assert name == "int8_kv8" and table["int8_kv8"]["kv_cache_bytes_per_token"] == 2.0


def test_without_the_parent_there_is_nothing_to_compare_with(tmp_path, variant):
    with pytest.raises(DataError, match="found 0 variants of the scheme none"):
        choose(tmp_path, {}, variant("int4", 50, "1100"))
