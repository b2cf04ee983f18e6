"""A reward model on a tiny real model: it learns what is preferred, and how much of it is length."""

from __future__ import annotations

import json
import logging
from statistics import fmean, pstdev

import pytest
import torch
from chats import preference_row
from safetensors.torch import load_file

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat, identity
from bloomery.components.core.errors import DataError, ModelError
from bloomery.components.core.modelling import adapters, checkpoints, reward_models, soft_prompts, templates
from bloomery.components.core.modelling.adapters import AdapterConfig
from bloomery.components.core.modelling.preference_pairs import chat_tokens
from bloomery.components.core.modelling.preference_rows import usable_pairs
from bloomery.components.core.modelling.reward_models import NO_END, RewardModel
from bloomery.components.core.records import Preference, content_id
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.grpo.config import GrpoConfig, RewardWeights
from bloomery.components.grpo.rewards import Rewards
from bloomery.components.grpo.step import run as grpo
from bloomery.components.rejection_sampling.config import RejectionSamplingConfig
from bloomery.components.rejection_sampling.step import run as rejection_sampling
from bloomery.components.reward_model.config import RewardModelConfig
from bloomery.components.reward_model.measures import of_scores, uncentred_correlation, warn
from bloomery.components.reward_model.scores import Answer, described, given, prepared
from bloomery.components.reward_model.scores import usable as usable_scores
from bloomery.components.reward_model.step import run as reward_model

TASK = {"free": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 8}}
WORDS = ["ab", "cd", "ef", "gh", "ij", "kl", "mn", "op"]
SMALL = {"learning_rate": 1e-2, "batch_size": 16, "max_length": 64}


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def base(talking_model):
    return talking_model


def write_pairs(folder, sides):
    rows = [preference_row(f"say {a}{b}", *sides(a, b), task="free") for a in WORDS for b in WORDS]
    artifact.write_rows(folder, "preference/3", Preference.table(rows))
    return folder


@pytest.fixture(scope="module")
def prefers_short(base, tmp_path_factory):
    """(a reward model of pairs whose short answer is chosen, its metrics)."""
    folder = tmp_path_factory.mktemp("short")
    pairs = write_pairs(folder / "pairs", lambda a, b: (b, b * 3))
    config = RewardModelConfig(**SMALL, epochs=6)
    metrics = reward_model(config, preferences=pairs, base_model=base, reward_model=folder / "m")
    return folder / "m", metrics


def test_it_learns_to_prefer_the_short_answer_and_says_that_it_is_length(prefers_short):
    folder, metrics = prefers_short
    assert metrics["reward_model/pairs"] + metrics["reward_model/held_out"] == 64
    assert metrics["reward_model/accuracy"] == 1 and metrics["reward_model/accuracy_by_length"] == 1
    assert metrics["reward_model/length_correlation"] < -0.9
    assert artifact.read_manifest(folder, "reward_model/1")
    found = RewardModel.load(folder)
    (short, long) = found.scores_of_answers(chat("say abab"), "", ["ab", "ababab"])
    assert short > long + 1  # of a standard deviation
    # Few are held out: its scores have mean 0 and deviation 1 over all 128 answers.
    rows = artifact.read_table(folder.parent / "pairs", "preference/3").to_pylist()
    answered = [row["messages"] + row[side] for row in rows for side in ("chosen", "rejected")]
    scores = found.scores([chat_tokens(found.tokenizer, messages, "") for messages in answered])
    assert fmean(scores) == pytest.approx(0, abs=1e-5) and pstdev(scores) == pytest.approx(1, abs=1e-5)
    cut = chat_tokens(found.tokenizer, chat("say abab", "ab"), "")[:-1]
    assert found.scores([cut]) == [NO_END]


def test_grpo_learns_what_the_reward_model_prefers(prefers_short, base, make_tasks, tmp_path, caplog):
    """And tells where that is not what is right: here, four letters or more."""
    folder, _ = prefers_short
    task = {"free": {**TASK["free"], "verifier": {"kind": "regex"}}}
    rows = [{"task": "free", "split": "train", "prompt": f"say {a}", "reference": "(?s).{4,}"} for a in WORDS]
    config = GrpoConfig(**{**SMALL, "batch_size": 32, "learning_rate": 3e-3}, epochs=8, rewards={"verifier": 0})
    metrics = grpo(config, base_model=base, tasks=make_tasks(task, rows), reward_model=folder, model=tmp_path / "m")
    assert metrics["grpo/verifier_last"] < metrics["grpo/verifier_first"]
    assert "while the verifier's score fell" in caplog.text
    assert metrics["grpo/reward_last"] > metrics["grpo/reward_first"] + 0.5
    assert metrics["grpo/answer_tokens_last"] < metrics["grpo/answer_tokens_first"]


def test_a_reward_model_reads_what_a_soft_prompt_answers_without_it(prefers_short, base, make_tasks):
    scorer = RewardModel.load(prefers_short[0])
    network, tokenizer = checkpoints.load(base)
    own = soft_prompts.added(network, tokenizer, 3)
    tasks = Tasks(make_tasks(TASK, []))
    rewards = Rewards(RewardWeights(), own, templates.end_tokens(own), tasks, scorer)
    asked, answers = chat("say ab"), [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in ("ab", "abc")]
    prompt = templates.prompt_tokens(own, asked)
    assert prompt[:3] == [260, 261, 262] and scorer.tokenizer.get_vocab().keys() < own.get_vocab().keys()
    found = rewards.reward_model([prompt, prompt], answers)
    assert found == scorer.scores_of_answers(asked, "", ["ab", "abc"]) and found[0] != found[1]
    own.add_tokens(["<other>"])
    with pytest.raises(ModelError, match="has other tokens than the model that is trained, the first is '<other>'; tr"):
        Rewards(RewardWeights(), own, templates.end_tokens(own), tasks, scorer)


def test_rejection_sampling_takes_the_best_answer_by_the_reward_model(prefers_short, base, make_tasks, tmp_path):
    folder, _ = prefers_short
    rows = [{"task": "free", "split": "train", "prompt": f"say {a}", "reference": "unknown"} for a in WORDS[:2]]
    names = ("sampled_chats", "preferences", "rejects")
    metrics = rejection_sampling(
        RejectionSamplingConfig(judge="reward_model"),
        base_model=base,
        tasks=make_tasks(TASK, rows),
        reward_model=folder,
        **{name: tmp_path / name for name in names},
    )
    assert metrics["rejection_sampling/accepted_chats"] == 2 and metrics["rejection_sampling/pass_at_k"] == 0
    scorer = RewardModel.load(folder)
    for row in artifact.read_table(tmp_path / "preferences", "preference/3").to_pylist():
        texts = [row[side][0]["content"] for side in ("chosen", "rejected")]
        chosen, rejected = scorer.scores_of_answers(row["messages"], "", texts)
        assert chosen >= rejected
    assert RejectionSamplingConfig(judge="reward_model").needed_inputs == {"reward_model"}


def test_an_adapter_trains_the_head_whole_and_is_merged(base, tmp_path, caplog):
    """Answers of one length: what is learnt is the letter they begin with."""
    pairs = write_pairs(tmp_path / "pairs", lambda a, b: ("x" + b, "y" + b))
    config = RewardModelConfig(**{**SMALL, "learning_rate": 3e-2}, epochs=4, adapter={"rank": 4})
    with caplog.at_level(logging.WARNING, logger="bloomery"):
        metrics = reward_model(config, preferences=pairs, base_model=base, reward_model=tmp_path / "m")
    assert metrics["reward_model/accuracy"] == 1
    assert metrics["reward_model/accuracy_by_length"] == 0.5 and metrics["reward_model/length_correlation"] == 0
    assert "little but length" not in caplog.text
    network, _ = reward_models.load(tmp_path / "m", dtype="auto")
    assert not any("lora" in name for name, _ in network.named_parameters())


def test_qlora_trains_on_4_bits_and_merges_into_the_weights_as_they_were(base, tmp_path):
    pytest.importorskip("bitsandbytes", reason="pip install 'bloomery[bitsandbytes]'")
    network, _ = reward_models.load(base, in_4_bits=True)
    assert {name for name, weight in network.named_parameters() if weight.dtype == torch.uint8} == {
        f"model.layers.{layer}.{part}_proj.weight"
        for layer in range(2)
        for part in (*(f"self_attn.{one}" for one in "qkvo"), "mlp.gate", "mlp.up", "mlp.down")
    }  # and not the head
    pairs = write_pairs(tmp_path / "pairs", lambda a, b: ("x" + b, "y" + b))
    config = RewardModelConfig(**SMALL, epochs=1, adapter={"kind": "qlora", "rank": 1})
    reward_model(config, preferences=pairs, base_model=base, reward_model=tmp_path / "m")
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "m"))
    name = "model.layers.0.mlp.up_proj.weight"
    # An update of rank 1 to the very weights; from dequantised ones every number would differ.
    assert torch.linalg.matrix_rank(new[name] - old[name], rtol=1e-3) == 1
    told = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in told and told["pad_token_id"] == 0 and new["score.weight"].shape == (1, 32)


@pytest.mark.parametrize("kind", ["pissa", "olora", "miss", "ia3"])
def test_the_head_of_scores_gets_no_adapter_and_bounds_no_rank(base, kind):
    from peft import get_peft_model

    network, _ = reward_models.load(base)
    adapter = AdapterConfig(kind=kind, **({} if kind == "ia3" else {"rank": 4}))
    wrapped = get_peft_model(network, adapters.peft_config(adapter, network))
    targets = {name.rpartition(".")[2] for name in wrapped.targeted_module_names}
    assert targets == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    learnt = {name for name, weight in wrapped.named_parameters() if weight.requires_grad}
    assert {name for name in learnt if "score" in name} == {"base_model.model.score.modules_to_save.default.weight"}


@pytest.mark.parametrize("trained", ["head", 1])
def test_of_a_part_of_the_weights_the_head_is_that_of_scores(base, tmp_path, trained):
    pairs = write_pairs(tmp_path / "pairs", lambda a, b: (b, b * 3))
    config = RewardModelConfig(**SMALL, epochs=1, trained=trained)
    reward_model(config, preferences=pairs, base_model=base, reward_model=tmp_path / "m")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "m" / "model.safetensors")
    moved = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    last = f"layers.{max(int(name.split('.')[2]) for name in before if 'layers' in name)}."
    assert all(last in name for name in moved) and bool(moved) == (trained == 1) and "score.weight" in after


def test_padding_with_the_end_of_a_turn_does_not_hide_it(base, tmp_path):
    """transformers finds the last token by its being no padding: with pad = end it would be read one token earlier."""
    tokenizer = checkpoints.load_tokenizer(base)
    tokenizer.pad_token = "<|eos|>"
    network, _ = checkpoints.load(base)
    checkpoints.save(tmp_path / "m", network, tokenizer)
    scoring, own = reward_models.load(tmp_path / "m", dtype="float32")
    ends = templates.end_tokens(own)
    assert scoring.config.pad_token_id not in ends and own.pad_token_id == scoring.config.pad_token_id
    model = RewardModel(scoring.eval(), own)
    row = chat_tokens(own, chat("say ab", "ab"), "")
    (whole, open_) = (model.raw_scores([ids])[0] for ids in (row, row[:-1]))
    assert row[-1] in ends and whole != open_
    (alone, _) = model.raw_scores([row, [*row[:-1], *row]])  # padded beside a longer one
    assert alone == pytest.approx(whole, abs=1e-5)


def test_pairs_that_teach_nothing_are_counted(base, tmp_path):
    tokenizer = checkpoints.load_tokenizer(base)
    config = RewardModelConfig(**SMALL, epochs=1, validation_share=1e-9)
    rows = [
        preference_row("say ab", "ab", "ba"),
        preference_row("say cd", "cd", "cd"),
        preference_row("say ef", "ef", " "),
        preference_row("say gh", "gh", "g" * 100),
        {**preference_row("say ij", "ij", "ji"), "rejected": []},
    ]
    artifact.write_rows(tmp_path / "p", "preference/3", Preference.table(rows))
    with usable_pairs(tokenizer, tmp_path / "p", config, "reward_model") as (pairs, _, told):
        # The answer, and its end.
        assert [(len(pair.chosen), len(pair.rejected)) for pair in pairs] == [(3, 3)]
    reasons = ("identical", "empty", "too_long", "unpaired")
    assert {f"dropped_{reason}": 1.0 for reason in reasons}.items() <= told.items() and told["too_long"] == 1
    artifact.write_rows(tmp_path / "q", "preference/3", Preference.table(rows[1:2]))
    with pytest.raises(DataError, match="reward_model: none of the 1 preference pairs can be learnt from: 1 identical"):
        reward_model(config, preferences=tmp_path / "q", base_model=base, reward_model=tmp_path / "m")
    all_out = config.model_copy(update={"validation_share": 1 - 1e-9})
    with pytest.raises(DataError, match="of 5 preference pairs none is left to learn from .*; 1 held out"):
        reward_model(all_out, preferences=tmp_path / "p", base_model=base, reward_model=tmp_path / "m")


def test_the_correlation_of_differences_does_not_depend_on_which_side_is_named_first():
    # 1·2 + (-2)·1 + 3·3 = 9; √(14 · 14) = 14.
    assert uncentred_correlation([1, -2, 3], [2, 1, 3]) == pytest.approx(9 / 14)
    assert uncentred_correlation([-1, -2, 3], [-2, 1, 3]) == pytest.approx(9 / 14)
    assert uncentred_correlation([1, 2], [0, 0]) == 0


def scored_row(prompt, answer, score):
    row = preference_row(prompt, answer, "", task="free")
    return {**row, "id": f"{prompt} {answer} {score}", "rejected": [], "score": score}


def test_it_learns_scores_and_tells_how_well_it_ranks(base, make_tasks, tmp_path):
    """Answers of one length, in points from 0 to 100: what is learnt is the letter they begin with."""
    points = {"x": 100.0, "y": 50.0, "z": 0.0}
    rows = [scored_row(f"say {a}{b}", c + b, points[c]) for a in WORDS for b in WORDS for c in points]
    artifact.write_rows(tmp_path / "scores", "preference/3", Preference.table(rows))
    config = RewardModelConfig(**SMALL, epochs=5)
    metrics = reward_model(config, preferences=tmp_path / "scores", base_model=base, reward_model=tmp_path / "m")
    assert metrics["reward_model/answers"] + metrics["reward_model/held_out"] == 192
    assert metrics["reward_model/pairs_held_out"] == metrics["reward_model/held_out"]  # three of three
    assert metrics["reward_model/accuracy"] > 0.95 and metrics["reward_model/accuracy_by_length"] == 0.5
    assert metrics["reward_model/spearman"] > 0.9 and metrics["reward_model/kendall"] > 0.8
    assert metrics["reward_model/spearman_by_length"] == metrics["reward_model/length_correlation"] == 0
    assert metrics["reward_model/loss"] < 0.3  # 1 where the mean is said of all
    found = RewardModel.load(tmp_path / "m")
    (best, middle, worst) = found.scores_of_answers(chat("say abcd"), "", ["xcd", "ycd", "zcd"])
    assert best > middle > worst
    rejects = {name: tmp_path / name for name in ("sampled_chats", "preferences", "rejects")}
    asked = [{"task": "free", "split": "train", "prompt": "say ab", "reference": "unknown"}]
    judged = RejectionSamplingConfig(judge="reward_model")
    told = rejection_sampling(
        judged, base_model=base, tasks=make_tasks(TASK, asked), reward_model=tmp_path / "m", **rejects
    )
    assert told["rejection_sampling/accepted_chats"] == 1


def answers(*given):
    """Answers of (prompt, score, length)."""
    return [Answer(length, score, asked) for asked, score, length in given]


def test_ranks_are_compared_over_all_answers_and_pairs_within_a_prompt():
    held_out = answers(("p", 3, 4), ("p", 1, 2), ("q", 2, 1), ("q", 2, 3))
    told = of_scores([0.9, 0.1, 0.8, 0.2], held_out)
    # Ranks 4 1 3 2 beside 4 1 2.5 2.5: deviations 1.5 -1.5 0.5 -0.5 with 1.5 -1.5 0 0: 4.5 / sqrt(5 · 4.5).
    assert told["spearman"] == pytest.approx(4.5 / (5 * 4.5) ** 0.5)
    # Of 6 pairs one is tied in score; the other 5 agree: tau-b = 5 / sqrt(6 · 5).
    assert told["kendall"] == pytest.approx(5 / 30**0.5)
    # Ranks of length 4 2 1 3: deviations 1.5 -0.5 -1.5 0.5 with the same: 3 / sqrt(5 · 4.5).
    assert told["spearman_by_length"] == pytest.approx(3 / (5 * 4.5) ** 0.5)
    assert told["pairs_held_out"] == 1 and told["accuracy"] == 1 and told["accuracy_by_length"] == 1
    # Scores less 0.5: 0.4 -0.4 0.3 -0.3; lengths less 2.5: 1.5 -0.5 -1.5 0.5.
    assert told["length_correlation"] == pytest.approx((0.6 + 0.2 - 0.45 - 0.15) / (0.5 * 5) ** 0.5)
    assert of_scores([1, 2], answers(("p", 1, 1), ("q", 1, 2))) == {}


def test_scores_that_follow_length_alone_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING, logger="bloomery"):
        warn(of_scores([1.0, 2.0, 3.0], answers(("p", 1, 1), ("q", 2, 2), ("r", 3, 3))), 30)
    assert "its rank correlation is 1.00, and that of the length of the answers alone 1.00" in caplog.text
    caplog.clear()
    warn({"accuracy": 1.0, "accuracy_by_length": 1.0, "length_correlation": 1.0}, 1)
    assert caplog.messages[0].startswith("1 held out: what is told of them says little")


def test_scored_answers_that_teach_nothing_are_counted(base, tmp_path):
    tokenizer = checkpoints.load_tokenizer(base)
    config = RewardModelConfig(**SMALL, epochs=1, validation_share=1e-9)
    rows = [
        scored_row("say ab", "ab", 1.0),
        scored_row("say cd", "cd", 3.0),
        scored_row("say ef", " ", 2.0),
        scored_row("say gh", "g" * 100, 2.0),
        scored_row("say ij", "i<|eos|>j", 2.0),
    ]
    artifact.write_rows(tmp_path / "s", "preference/3", Preference.table(rows))
    artifact.write_rows(tmp_path / "one", "preference/3", Preference.table(rows[:1]))
    with usable_scores(tokenizer, tmp_path / "s", config) as (kept, _, told):
        described_rows = described(tmp_path / "s", kept)
        assert [answer[:2] for answer in described_rows] == [(3, 1), (3, 3)]  # the answer, and its end
        assert described_rows[0].asked == content_id(identity(rows[0]["messages"], ""))
        # Of mean 2 and deviation 1.
        assert [row["score"] for row in prepared(kept, given(tmp_path / "s", kept))] == [-1, 1]
    reasons = ("empty", "end_inside", "too_long")
    assert told == {"too_long": 1, "too_long_fraction": 0.2, **{f"dropped_{reason}": 1 for reason in reasons}}
    with pytest.raises(DataError, match="of 1 scored answers no two with different scores are left"):
        reward_model(config, preferences=tmp_path / "one", base_model=base, reward_model=tmp_path / "m")
    with pytest.raises(DataError, match=r"the scored answer say gh .* is \d+ tokens long with its prompt"):
        reward_model(
            config.model_copy(update={"too_long": "error"}),
            preferences=tmp_path / "s",
            base_model=base,
            reward_model=tmp_path / "m",
        )
    cut = config.model_copy(update={"too_long": "truncate_left", "max_length": 5})
    with usable_scores(tokenizer, tmp_path / "s", cut) as (short, _, _):
        assert short.lengths_N3.tolist() == [[2, 3, 0], [2, 3, 0]]


def test_pairs_and_scores_together_are_refused(base, tmp_path):
    rows = [scored_row("say ab", "ab", 1.0), preference_row("say cd", "cd", "dc")]
    artifact.write_rows(tmp_path / "p", "preference/3", Preference.table(rows))
    config = RewardModelConfig(**SMALL, epochs=1)
    with pytest.raises(DataError, match="found 1 pairs and 1 scored answers, and it learns from one of them"):
        reward_model(config, preferences=tmp_path / "p", base_model=base, reward_model=tmp_path / "m")
