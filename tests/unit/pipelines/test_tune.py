"""What a search may vary, and how that is written."""

import math

import pytest

from bloomery.components.core.errors import ConfigError
from bloomery.pipelines.tune import Search, parse_over, sampler_of


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("sft.learning_rate=1e-5..1e-3", Search("sft.learning_rate", low=1e-5, high=1e-3)),
        ("sft.adapter.rank=4..64", Search("sft.adapter.rank", low=4, high=64)),
        ("sft.adapter.rank=8,16, 32", Search("sft.adapter.rank", (8, 16, 32))),
        ("cpt.replay_share=0,0.05,0.25", Search("cpt.replay_share", (0, 0.05, 0.25))),
        ("sft.optimizer=adamw,muon", Search("sft.optimizer", ("adamw", "muon"))),
        ("sft.packing=true,false", Search("sft.packing", (True, False))),
    ],
)
def test_a_setting_and_its_values(text, found):
    assert parse_over(text) == found
    assert [type(end) for end in parse_over(text).ends()] == [type(end) for end in found.ends()]


@pytest.mark.parametrize("text", ["sft.epochs", "=1..2", "sft.epochs=3..1", "sft.optimizer=a..b"])
def test_what_is_neither_a_range_nor_a_list_is_refused(text):
    with pytest.raises(ConfigError, match=r"--over .*: expected stage\.key=low\.\.high or stage\.key=a,b,c"):
        parse_over(text)


def test_of_one_value_there_is_nothing_to_search():
    with pytest.raises(ConfigError, match="found one value; give two or more, or set it by --set sft.epochs=3"):
        parse_over("sft.epochs=3")


def test_a_range_of_a_factor_of_ten_is_searched_by_order_of_magnitude():
    optuna = pytest.importorskip("optuna", reason="pip install 'bloomery[tune]'")
    study = optuna.create_study()
    trial = study.ask()
    Search("rate", low=1e-5, high=1e-3).suggest(trial)
    Search("share", low=0.1, high=0.5).suggest(trial)
    Search("rank", low=4, high=64).suggest(trial)
    told = {name: (kind.log, type(kind).__name__) for name, kind in trial.distributions.items()}
    assert told == {
        "rate": (True, "FloatDistribution"),
        "share": (False, "FloatDistribution"),
        "rank": (True, "IntDistribution"),
    }


@pytest.mark.parametrize(("name", "kind"), [("cmaes", "CmaEsSampler"), ("population", "NSGAIISampler")])
def test_a_search_comes_nearer_to_the_best(name, kind):
    """Of (log10 rate + 3)^2 + (share - 0.3)^2, whose least is at 1e-3 and 0.3."""
    optuna = pytest.importorskip("optuna", reason="pip install 'bloomery[tune]'")
    pytest.importorskip("cmaes", reason="pip install 'bloomery[tune]'")
    over = [Search("rate", low=1e-6, high=1e-1), Search("share", low=0.0, high=1.0)]
    found = []
    for _ in range(2):
        study = optuna.create_study(sampler=sampler_of(optuna, name, over, 17))

        def loss(trial):
            rate, share = (each.suggest(trial) for each in over)
            return (math.log10(rate) + 3) ** 2 + (share - 0.3) ** 2

        study.optimize(loss, n_trials=64)
        found.append([trial.value for trial in study.trials])
    assert type(study.sampler).__name__ == kind and found[0] == found[1]
    # A population is of 8; drawn evenly, the last would be as far from the best as the first.
    assert sum(found[0][-16:]) / 16 < 0.7 * sum(found[0][:8]) / 8 and min(found[0]) < 0.1
