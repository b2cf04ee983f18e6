"""Every preference loss is the one that its paper writes, and trains; what goes wrong with the reward is named."""

import logging
import math

import pytest
import torch
from chats import preference_row

from bloomery.components.core import artifact
from bloomery.components.core.config import parse
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ConfigError, DataError
from bloomery.components.core.modelling import checkpoints, lazy
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.modelling.preference_pairs import Pair, pair_of
from bloomery.components.core.records import Preference
from bloomery.components.dpo import losses, measures
from bloomery.components.dpo.config import DpoConfig
from bloomery.components.dpo.step import run as dpo

SETTINGS = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 4, "max_length": 64}
LOSSES = ("sigmoid", "ipo", "simpo", "orpo", "kto")
WORDS = ("tea", "lamp", "shoe", "bag", "차", "plant")


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def base(tiny_model):
    artifact.seal(tiny_model, "model/1")
    return tiny_model


def written(folder, rows):
    artifact.write_rows(folder, "preference/3", Preference.table(rows))
    return folder


def single(prompt, answer, is_good):
    """A preference/3 row of one answer with its label."""
    return {**preference_row(prompt, answer, answer), ("rejected" if is_good else "chosen"): []}


def nats_of(network, prompt, answer):
    """Log-likelihood of `answer` after `prompt`, by the plain way."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logs = torch.log_softmax(network(ids).logits[0].double(), -1)
    return sum(logs[len(prompt) + at - 1, token].item() for at, token in enumerate(answer))


def log_sigmoid(value):
    return -math.log1p(math.exp(-value))


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def by_hand(name, new, old, lengths):
    """The loss of one pair, (chosen, rejected) log-likelihoods of model and reference in nats, at the default settings
    but `sft_weight` 0."""
    (good, bad), (n_good, n_bad) = new, lengths
    change = good - old[0], bad - old[1]
    if name == "sigmoid":
        return -log_sigmoid(0.1 * (change[0] - change[1]))
    if name == "ipo":
        return (change[0] / n_good - change[1] / n_bad - 1 / (2 * 0.1)) ** 2
    if name == "simpo":
        return -log_sigmoid(2.0 * good / n_good - 2.0 * bad / n_bad - 1.0)
    odds = [p / (1 - p) for p in (math.exp(good / n_good), math.exp(bad / n_bad))]
    return -0.1 * log_sigmoid(math.log(odds[0] / odds[1]))


def trainer_and_batch(config, network, tokenizer, pairs, tmp_path):
    """TRL's trainer for `config`, and its batch of all rows, after the model has moved away from the reference."""
    (kind, arguments), rows, settings = losses.prepared(config, network, pairs)
    shared = {"use_cpu": True, "bf16": False, "report_to": "none", "per_device_train_batch_size": 4, "max_length": None}
    args = arguments(output_dir=str(tmp_path), **shared, **settings)
    trainer = kind(model=network, processing_class=tokenizer, train_dataset=lazy.dataset(rows), args=args)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    (batch,), _ = trainer.get_batch_samples(iter([trainer.data_collator(rows)]), 1, trainer.args.device)
    return trainer, batch


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "simpo", "orpo"])
def test_the_loss_of_a_pair_is_that_of_its_paper(base, tmp_path, name):
    network, tokenizer = checkpoints.load(base)
    reference, _ = checkpoints.load(base)
    config = DpoConfig(loss=name, sft_weight=0.5 if name == "orpo" else 0, **SETTINGS)
    pair, _ = pair_of(tokenizer, preference_row("say it", "ab", "longer answer"))
    trainer, batch = trainer_and_batch(config, network, tokenizer, [pair], tmp_path)
    found = trainer.compute_loss(network, batch).item()

    sides = (pair.chosen, pair.rejected)
    assert [len(side) for side in sides] == [3, 14]  # letters, and the end
    new, old = ([nats_of(model, pair.prompt, side) for side in sides] for model in (network, reference))
    expected = by_hand(name, new, old, [3, 14])
    if name == "orpo":
        expected += 0.5 * -new[0] / 3
    assert found == pytest.approx(expected, rel=1e-4)
    assert trainer.ref_model is None  # no second copy of the weights

    logged = trainer._metrics["train"]
    (change,), (kl,) = logged["chosen_change"], logged["reference_kl"]
    assert change == pytest.approx((new[0] - old[0]) / 3, rel=1e-3)
    apart = [measures.divergence(a - b, length) for a, b, length in zip(new, old, (3, 14), strict=True)]
    assert kl == pytest.approx(sum(apart) / 2, rel=1e-2)


def test_the_loss_of_single_answers_is_that_of_its_paper(base, tmp_path):
    network, tokenizer = checkpoints.load(base)
    reference, _ = checkpoints.load(base)
    config = DpoConfig(loss="kto", **SETTINGS)
    rows = [single("say it", "ab", True), single("do it", "no", False), preference_row("both", "yes", "never")]
    pairs = [pair_of(tokenizer, row, takes_single=True)[0] for row in rows]
    rows = losses.single_rows(config, reference, pairs, losses.single(pairs))
    assert sorted((len(row["completion_ids"]), row["label"]) for row in rows) == [
        (3, False), (3, True), (4, True), (6, False)
    ]  # fmt: skip
    answers = [row["completion_ids"] for row in rows]
    assert [row["KL_completion_ids"] for row in rows] == [answers[-1], *answers[:-1]]
    trainer, batch = trainer_and_batch(config, network, tokenizer, pairs, tmp_path)
    found = trainer.compute_loss(network, batch).item()

    def ratio(row, name):
        return nats_of(network, row["prompt_ids"], row[name]) - nats_of(reference, row["prompt_ids"], row[name])

    shared = max(0, sum(ratio(row, "KL_completion_ids") for row in rows) / 4)
    terms = [(1 if row["label"] else -1) * 0.1 * (ratio(row, "completion_ids") - shared) for row in rows]
    assert found == pytest.approx(sum(1 - sigmoid(term) for term in terms) / 4, rel=1e-4)
    assert trainer.ref_model is None


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_saves_and_answers(base, tmp_path, name):
    rows = [preference_row(f"say {a} {b}", f"{a}!", b) for a in WORDS for b in WORDS]
    adapter = {"adapter": {"rank": 4}} if name == "ipo" else {}
    config = DpoConfig(loss=name, validation_share=0.2, **{**SETTINGS, "epochs": 2, "learning_rate": 3e-3}, **adapter)
    told = dpo(config, preferences=written(tmp_path / "p", rows), base_model=base, model=tmp_path / "m")
    assert told["dpo/margin_after"] > told["dpo/margin_before"] and told["dpo/kl"] > 0
    assert told["dpo/chosen_change"] == pytest.approx(told["dpo/chosen_after"] - told["dpo/chosen_before"])
    assert -1 <= told["dpo/length_correlation"] <= 1 and told["dpo/pairs"] + told["dpo/held_out"] == 36
    ((answer,),) = Generator.load(tmp_path / "m").generate([chat("say tea bag")], max_new_tokens=4)
    assert isinstance(answer, str)


def test_single_answers_are_learnt_from_by_kto_alone(base, tmp_path):
    rows = [single(f"say {a} {b}", a, True) for a in WORDS for b in WORDS]
    rows += [single(f"tell {a} {b}", b, False) for a in WORDS[:3] for b in WORDS]
    config = DpoConfig(loss="kto", validation_share=0.2, **{**SETTINGS, "epochs": 2})
    told = dpo(config, preferences=written(tmp_path / "p", rows), base_model=base, model=tmp_path / "m")
    assert told["dpo/pairs"] + told["dpo/held_out"] == 54 and "dpo/accuracy_after" not in told
    assert told["dpo/margin_after"] > told["dpo/margin_before"]
    with pytest.raises(DataError, match="54 unpaired.*single answers with a label take dpo.loss: kto"):
        dpo(DpoConfig(**SETTINGS), preferences=tmp_path / "p", base_model=base, model=tmp_path / "n")
    good = written(tmp_path / "good", rows[:36])
    with pytest.raises(DataError, match="kto found 3[0-9] good and 0 bad answers"):
        dpo(
            config.model_copy(update={"validation_share": 0.01}),
            preferences=good,
            base_model=base,
            model=tmp_path / "n",
        )


def test_good_and_bad_answers_weigh_the_same():
    assert losses._weights(6, 2) == {"desirable_weight": pytest.approx(1 / 3), "undesirable_weight": 1.0}
    assert losses._weights(2, 2) == {"desirable_weight": 1.0, "undesirable_weight": 1.0}


def test_settings_follow_from_the_loss_unless_they_are_set():
    found = {name: DpoConfig(loss=name, **SETTINGS) for name in LOSSES}
    assert {name: config.beta for name, config in found.items() if config.beta != 0.1} == {"simpo": 2.0}
    assert [name for name, config in found.items() if config.sft_weight == 0] == ["simpo", "kto"]
    assert DpoConfig(loss="simpo", beta=2.5, **SETTINGS).beta == 2.5
    assert DpoConfig(**found["simpo"].model_dump()) == found["simpo"]  # as it comes back from a pipeline's parameter
    with pytest.raises(ConfigError, match="dpo: gamma: found 0.5; loss: ipo has no margin"):
        parse(DpoConfig, {**SETTINGS, "loss": "ipo", "gamma": 0.5}, where="dpo")
    with pytest.raises(ConfigError, match="dpo: sft_weight: found 1; loss: kto has no such term"):
        parse(DpoConfig, {"loss": "kto", "sft_weight": 1, **SETTINGS}, where="dpo")
    with pytest.raises(ConfigError, match="dpo: batch_size: found 1; loss: kto compares"):
        parse(DpoConfig, {"loss": "kto", **SETTINGS, "batch_size": 1}, where="dpo")


def test_measures_of_pairs_and_single_answers_are_those_worked_out_by_hand():
    pairs = [Pair([1], [2] * 2, [3] * 4), Pair([1], [2] * 1, []), Pair([1], [], [3] * 3)]
    before = [(-4.0, -3.0), (-2.0, None), (None, -5.0)]
    after = [(-2.0, -5.0), (-1.0, None), (None, -8.0)]
    told = measures.compared(pairs, before, after)
    assert (told["chosen_before"], told["chosen_after"]) == (-3.0, -1.5)
    assert (told["rejected_before"], told["rejected_after"]) == (-4.0, -6.5)
    assert (told["margin_before"], told["margin_after"]) == (1.0, 5.0)
    assert (told["accuracy_before"], told["accuracy_after"]) == (0.0, 1.0)  # of the one whole pair
    assert told["chosen_change"] == 1.5 and told["chosen_change_per_token"] == 1.0
    # Changes +2, -2, +1, -3 of answers of 2, 4, 1, 3 tokens: a token +1, -1/2, +1, -1.
    parts = [2 / math.e, 4 * (math.exp(-0.5) - 0.5), 1 / math.e, 3 / math.e]
    assert told["kl"] == pytest.approx(sum(parts) / 4)
    # Means -1/2 and 5/2; products of the deviations -5/4, -9/4, -9/4, -5/4; squares 17 and 5.
    assert told["length_correlation"] == pytest.approx(-7 / math.sqrt(17 * 5))


def test_divergence_is_never_negative_and_nearly_half_the_square_of_small_changes():
    assert measures.divergence(0.0, 5) == 0
    assert measures.divergence(0.1, 10) == pytest.approx(10 * 0.01**2 / 2, rel=0.01)
    assert measures.divergence(-3.0, 4) == measures.divergence(3.0, 4) > 0


def test_a_reward_that_rises_for_the_wrong_reason_is_named():
    config = DpoConfig(max_kl=5, **SETTINGS)
    assert measures.hacking(config, [0.2, 0.4], [0.1, -0.05], [4.0, 5.0]) == {}
    (told,) = measures.hacking(config, [0.2, 0.4], [-0.1, -0.3], [4.0]).values()
    assert told.startswith(
        "the reward rises (margin +0.3) while the chosen answers become less likely: -0.2 nats a token"
    )
    assert measures.hacking(config, [-0.2], [-0.3], []) == {}  # what does not rise is no hacked reward
    (told,) = measures.hacking(config, [0.2], [0.1], [6.0, 8.0]).values()
    assert told.startswith("the model is 7 nats an answer away")
    assert measures.hacking(DpoConfig(**SETTINGS), [0.2], [0.1], [1e6]) == {}  # no budget was set


def test_the_alarm_is_told_while_the_run_goes_on_and_of_what_was_held_out(base, tmp_path, caplog):
    rows = [preference_row(f"say {a} {b}", f"{a} and so on", f"{a} and so off") for a in WORDS for b in WORDS]
    settings = {**SETTINGS, "epochs": 6, "learning_rate": 1e-2, "sft_weight": 0, "max_kl": 0.5, "validation_share": 0.2}
    with caplog.at_level(logging.WARNING, "bloomery.components.dpo"):
        dpo(DpoConfig(**settings), preferences=written(tmp_path / "p", rows), base_model=base, model=tmp_path / "m")
    told = [record.getMessage() for record in caplog.records]
    going = [line for line in told if line.startswith("at optimiser step ")]
    assert (
        sum("the reward rises" in line for line in going) == 1
        and sum("dpo.max_kl is 0.5" in line for line in going) == 1
    )
    assert int(going[0].split()[3]) < 40
    assert any(line.startswith("on the held-out answers the model is") for line in told)
