"""One comparison: which columns are tested and how, and what drifts where."""

import random

import pytest

from bloomery.components.core.records import Prediction
from bloomery.monitoring.config import MonitoringConfig
from bloomery.monitoring.drift import compare
from bloomery.monitoring.snapshot import Window

CITIES = ["Seoul", "Busan", "Daegu", "서울", "부산", "대구"]


def rows(number: int, seed: int, **share_of) -> list[Prediction]:
    """Questions of which shares are refused, empty, repeated, broken, or answered with less certainty."""
    rng = random.Random(seed)

    def happens(name: str) -> bool:
        return rng.random() < share_of.get(name, 0)

    def one(index: int) -> Prediction:
        city = rng.choice(CITIES)
        prompt = f"orders of {city} in {rng.choice(range(2000))}"
        if happens("repeated"):
            prompt = "orders of Seoul in all"
        if happens("broken"):
            prompt += " \ufffd\ufffd"
        if happens("empty"):
            prompt = " "
        uncertain = happens("uncertain")
        return Prediction(
            id=f"{seed}-{index}",
            time="2025-01-06T09:00:00+00:00",
            model_name="m",
            model_version="1",
            prompt=prompt,
            response="I'm sorry, but I can't help with that." if happens("refused") else f"SELECT '{city}'",
            latency_seconds=rng.uniform(0.1, 0.2),
            prompt_tokens=8,
            response_tokens=10 + rng.randrange(5),
            mean_log_probability=-rng.uniform(0.1, 0.5) - uncertain,
            mean_entropy=rng.uniform(0.1, 0.5) + uncertain,
            feedback=float(not happens("disliked")) if index % 3 == 0 else None,
            label=None,
        )

    return [one(index) for index in range(number)]


CONFIG = MonitoringConfig()


@pytest.mark.parametrize(
    ("share_of", "kind", "names"),
    [
        ({}, "model", set()),
        ({"refused": 0.3}, "model", {"is_refusal"}),
        ({"uncertain": 0.4}, "model", {"mean_log_probability", "mean_entropy"}),
        ({"disliked": 0.5}, "model", {"feedback"}),
        ({"empty": 0.2}, "quality", {"is_empty_prompt"}),
        ({"repeated": 0.3}, "quality", {"is_repeated_prompt"}),
        ({"broken": 0.2}, "quality", {"is_broken_prompt"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_drifts_shows_in_its_column(share_of, kind, names):
    found = compare(
        rows(600, 1, disliked=0.1), Window("w", rows(400, 2, **{"disliked": 0.1, **share_of})), "m:1", CONFIG
    )
    drifted = {signal.name for signal in found.report.signals if signal.kind == kind and signal.drifted}
    assert names <= drifted and (names or not drifted)
    assert found.report.suspicions == (sorted(names) if kind == "quality" else [])


def test_every_signal_says_what_it_measured():
    window = Window("w", rows(400, 2, refused=0.3, disliked=0.1))
    report = compare(rows(600, 1, disliked=0.1), window, "m:1", CONFIG).report
    signals = {signal.name: signal for signal in report.signals}
    refusal = signals["is_refusal"]
    assert refusal.method == "z" and (refusal.n_reference, refusal.n_current) == (600, 400)
    assert refusal.effect == pytest.approx(refusal.mean_current - refusal.mean_reference)
    assert refusal.statistic < refusal.threshold < CONFIG.false_alarm_rate / 2
    assert signals["latency_seconds"].kind == "service" and signals["mean_entropy"].method == "ks"
    assert signals["feedback"].n_reference == 200
    assert "label_match" not in signals  # no label has arrived
    assert signals["prompt_text"].method == "classifier"


def test_a_small_effect_is_none_however_certain():
    config = CONFIG.model_copy(update={"min_effect": 0.5})
    report = compare(rows(600, 1), Window("w", rows(400, 2, refused=0.3)), "m:1", config).report
    assert report.drifted == [] and report.effect == 0.0


def test_evidently_writes_its_page(tmp_path):
    compare(rows(60, 1), Window("w", rows(40, 2)), "m:1", CONFIG, tmp_path / "drift.html")
    assert "<html" in (tmp_path / "drift.html").read_text()[:2000]
