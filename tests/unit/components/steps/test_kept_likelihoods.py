"""Log-likelihoods that were found before a step was left are not computed again."""

import pytest

from bloomery.components.core import unfinished
from bloomery.components.core.modelling import checkpoints, likelihood
from bloomery.components.core.modelling.lazy import Lazily
from bloomery.components.dpo import kept_likelihoods

ROWS = [[3, 4, 5, 6, 7, 8], [9], [5, 6, 7], [8, 7], [4, 3, 9, 9]]
"""By length: rows 3, 2, 4, 0; of row 1 no token has one before it."""


@pytest.fixture
def model(tiny_model, monkeypatch):
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 6)  # rows 3 and 2 together, the others alone
    return checkpoints.load(tiny_model)[0]


def nats(model, asked, fails_at=None):
    """Those of ROWS under the name `reference`; `asked` is told of each row whose likelihood is computed."""

    def marks(at):
        asked.append(at)
        if at == fails_at:
            raise SystemExit(143)
        return [True] * len(ROWS[at])

    return kept_likelihoods.nats(model, ROWS, Lazily(marks, len(ROWS)), "reference")


def test_they_are_those_of_a_run_that_was_not_left(model, tmp_path):
    expected = [total for total, _ in likelihood.log_likelihoods(model, ROWS)]
    with unfinished.lying_in(unfinished.Place(tmp_path / "place")):
        first, second, third = [], [], []
        with pytest.raises(SystemExit):
            nats(model, first, fails_at=4)
        assert first == [3, 2, 4]
        assert [folder.name for folder in (tmp_path / "place").iterdir()] == ["reference-2"]
        assert nats(model, second) == expected and second == [4, 0]
        assert [folder.name for folder in (tmp_path / "place").iterdir()] == ["reference-4"]
        assert nats(model, third) == expected and third == []


def test_another_name_finds_none_of_them(model, tmp_path):
    with unfinished.lying_in(unfinished.Place(tmp_path / "place")):
        nats(model, [])
        asked = []
        scored = Lazily(lambda at: asked.append(at) or [True] * len(ROWS[at]), len(ROWS))
        kept_likelihoods.nats(model, ROWS, scored, "reference_of_others")
        assert asked == [3, 2, 4, 0]
        found = {folder.name for folder in (tmp_path / "place").iterdir()}
    assert found == {"reference-4", "reference_of_others-4"}


def test_without_a_place_nothing_is_written_and_all_are_found_again(model):
    first, second = [], []
    assert unfinished.place() is None
    assert nats(model, first) == nats(model, second) and first == second == [3, 2, 4, 0]
