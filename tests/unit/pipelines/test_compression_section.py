"""What was made smaller, as the report tells it."""

import pytest

from bloomery.components.core.errors import DataError
from bloomery.pipelines import compression_section
from bloomery.pipelines.scores import Scores

TASKS = {"echo": {"role": "domain"}}


def answers(*scores):
    facts = {"task": "echo", "split": "test", "metric": "exact", "group": "", "weight": 1.0}
    return [{"id": str(index), "score": score, **facts} for index, score in enumerate(scores)]


def test_a_row_for_every_stage_that_tells_what_it_cost_before_and_after():
    models = {"base": answers(0, 0, 0, 0), "sft": answers(1, 1, 1, 0), "small": answers(1, 0, 0, 0)}
    finished = {
        "sft": {"metrics": {"sft/loss": 1.0}, "shown": {}},
        "small": {
            "metrics": {
                **{"pruning/parent_parameters": 2_000.0, "pruning/parameters": 1_500.0},
                **{"pruning/parent_bytes": 8_000.0, "pruning/bytes": 6_000.0},
                **{"pruning/parent_decode_seconds_per_token": 0.004, "pruning/decode_seconds_per_token": 0.003},
            },
            "shown": {"front": [{"layers": "0, 1", "score": 0.5}]},
        },
        "taught": {
            "metrics": {"distillation/parent_bytes": 8_000.0, "distillation/bytes": 4_000.0},
            "shown": {"parent": "sft"},
        },
        "ptq": {
            "metrics": {
                **{"ptq/parent_bytes": 6_000.0, "ptq/bytes": 1_500.0},
                **{"ptq/parent_prefill_seconds": 0.008, "ptq/prefill_seconds": 0.01},
            },
            "shown": {},
        },
    }
    models["taught"] = answers(1, 1, 0, 0)
    found = compression_section.read(finished, Scores(models, TASKS, ["base", "sft", "small", "taught"]))
    small, taught, quantised = found["rows"]
    # To its teacher, sft: 0, 0, -1, 0; -1/4, standard deviation 1/2, error 1/4. To the stage before it would be +1/4.
    assert taught["costs"] == ["–", "8 kB → 4 kB, −50 %", "–", "–"] and taught["lost"] == {"echo.test": "−25.0 ± 25.0"}
    assert small["costs"] == ["2,000 → 1,500, −25 %", "8 kB → 6 kB, −25 %", "–", "4 ms → 3 ms, −25 %"]
    # Differences to sft: 0, -1, -1, 0; their mean -1/2, standard deviation sqrt(1/3), error sqrt(1/12).
    assert small["lost"] == {"echo.test": "−50.0 ± 28.9"}
    assert quantised == {"stage": "ptq", "costs": ["–", "6 kB → 1.5 kB, −75 %", "8 ms → 10 ms, +25 %", "–"], "lost": {}}
    assert found["sets"] == ["echo.test"] and found["fronts"] == [("small", [{"layers": "0, 1", "score": 0.5}])]


def test_a_run_that_made_nothing_smaller_has_no_such_part():
    with pytest.raises(DataError, match="No stage made a model smaller"):
        compression_section.read({"sft": {"metrics": {"sft/loss": 1.0}, "shown": {}}}, Scores({}, {}))
