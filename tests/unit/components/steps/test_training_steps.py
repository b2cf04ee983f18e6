"""The training steps on a tiny real model: they learn what they are told, and only that."""

import re

import pytest
import torch
from chats import preference_row, prompt_row, write_chats

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import DataError, DivergedError
from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.modelling.preference_pairs import pair_of
from bloomery.components.core.modelling.preference_rows import usable_pairs
from bloomery.components.core.records import Chat, Document, Preference, Prompt, content_id
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.cpt.config import CptConfig
from bloomery.components.cpt.step import run as cpt
from bloomery.components.dpo.config import DpoConfig
from bloomery.components.dpo.measures import answer_likelihoods
from bloomery.components.dpo.step import run as dpo
from bloomery.components.evaluation.config import EvaluationConfig
from bloomery.components.evaluation.step import run as evaluation
from bloomery.components.grpo.config import GrpoConfig
from bloomery.components.grpo.step import run as grpo
from bloomery.components.rejection_sampling.config import RejectionSamplingConfig
from bloomery.components.rejection_sampling.step import run as rejection_sampling
from bloomery.components.rejection_sampling.step import sample
from bloomery.components.sft.config import SftConfig
from bloomery.components.sft.step import run as sft

DOCUMENT = {"source": "s:f#1", "language": "en", "general": False, "time": "", "quality": None}
TASK = {"echo": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 4}}


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def base(tiny_model):
    artifact.seal(tiny_model, "model/1")
    return tiny_model


PAIRS = [(f"say {word}", word) for word in ("ab", "cd", "ef", "gh")]


@pytest.fixture
def tasks(make_tasks):
    rows = [{"task": "echo", "split": "validation", "prompt": p, "reference": a} for p, a in PAIRS]
    return make_tasks(TASK, rows)


@pytest.fixture
def tuned(base, tasks, tmp_path):
    config = SftConfig(learning_rate=1e-2, epochs=60, batch_size=4, max_length=64, num_validations=3)
    learnt = write_chats(tmp_path / "c", PAIRS)
    metrics = sft(config, chats=learnt, tasks=tasks, base_model=base, model=tmp_path / "tuned")
    return tmp_path / "tuned", metrics


def test_sft_learns_its_answers_and_ends_them(tuned):
    folder, metrics = tuned
    assert metrics["sft/loss"] < 0.1 and metrics["sft/validation_loss"] < 0.2
    # Two letters and EOS in each of four answers: the loss is on these alone.
    assert metrics["sft/trained_tokens"] == 12
    answers = Generator.load(folder).generate([chat(prompt) for prompt, _ in PAIRS], max_new_tokens=8)
    assert [answer for (answer,) in answers] == [answer for _, answer in PAIRS]


def test_sft_with_an_adapter_writes_a_plain_merged_checkpoint(base, tasks, tmp_path):
    config = SftConfig(
        learning_rate=1e-2,
        epochs=2,
        batch_size=4,
        max_length=64,
        adapter={"kind": "dora", "rank": 2},
        num_validations=1,
    )
    sft(config, chats=write_chats(tmp_path / "c", PAIRS), tasks=tasks, base_model=base, model=tmp_path / "m")
    checkpoints.check(tmp_path / "m")
    network, _ = checkpoints.load(tmp_path / "m")
    assert not any("lora" in name for name, _ in network.named_parameters())


def test_sft_counts_what_is_too_long_and_refuses_when_nothing_fits(base, tasks, tmp_path):
    long = write_chats(tmp_path / "c", [*PAIRS, ("x" * 100, "y")])
    config = SftConfig(learning_rate=1e-3, epochs=1, batch_size=4, max_length=64, num_validations=0)
    metrics = sft(config, chats=long, tasks=tasks, base_model=base, model=tmp_path / "m")
    assert metrics["sft/too_long"] == 1 and metrics["sft/too_long_fraction"] == 0.2 and metrics["sft/chats"] == 4
    with pytest.raises(DataError, match="none of the 5 chats fits in sft.max_length = 4"):
        sft(config.model_copy(update={"max_length": 4}), chats=long, tasks=tasks, base_model=base, model=tmp_path / "n")


def test_sft_keeps_the_end_of_what_is_too_long_or_stops_at_it(base, tasks, tmp_path):
    # With its role marks, the first chat is 100 + 3 tokens long and its answer 1 + EOS; of the second nothing but an
    # answer longer than any row is left.
    long = write_chats(tmp_path / "c", [*PAIRS, ("x" * 100, "y"), ("q", "z" * 100)])
    config = SftConfig(learning_rate=1e-3, epochs=1, batch_size=4, max_length=64, num_validations=0)
    cut = config.model_copy(update={"too_long": "truncate_left"})
    metrics = sft(cut, chats=long, tasks=tasks, base_model=base, model=tmp_path / "m")
    assert metrics["sft/too_long"] == 2 and metrics["sft/chats"] == 6
    assert metrics["sft/trained_tokens"] == 12 + 2 + 64
    stop = config.model_copy(update={"too_long": "error"})
    with pytest.raises(DataError, match="chat [0-9a-f]{16} is 104 tokens long and sft.max_length is 64"):
        sft(stop, chats=long, tasks=tasks, base_model=base, model=tmp_path / "n")


def test_a_chat_without_a_token_to_train_is_counted_and_left_out(base, tasks, tmp_path):
    rows = [
        {"id": str(index), "messages": messages, "tools": "", "task": "echo", "origin": "seed", "parent": ""}
        for index, messages in enumerate((chat("say ab", "ab"), chat("only asked"), chat("say end", "a<|eos|>b")))
    ]
    artifact.write_rows(tmp_path / "c", "chat/2", Chat.table(rows))
    config = SftConfig(learning_rate=1e-3, epochs=1, batch_size=4, max_length=64, num_validations=0)
    metrics = sft(config, chats=tmp_path / "c", tasks=tasks, base_model=base, model=tmp_path / "m")
    assert metrics["sft/without_loss"] == 1 and metrics["sft/end_inside"] == 1 and metrics["sft/chats"] == 1
    artifact.write_rows(tmp_path / "d", "chat/2", Chat.table(rows[1:]))
    with pytest.raises(DataError, match=r"\(0 too long, 1 without one, 1 that .*\); give chats in which the assistant"):
        sft(config, chats=tmp_path / "d", tasks=tasks, base_model=base, model=tmp_path / "n")


def test_another_learning_rate_tokenises_nothing_again(base, tasks, tmp_path, monkeypatch):
    monkeypatch.setenv("BLOOMERY_STORE", str(tmp_path / "store"))
    config = SftConfig(learning_rate=1e-3, epochs=1, batch_size=4, max_length=64, num_validations=0)
    source = write_chats(tmp_path / "c", PAIRS)
    for name, rate in (("m", 1e-3), ("n", 2e-3)):
        sft(config.model_copy(update={"learning_rate": rate}), chats=source, tasks=tasks, base_model=base,
            model=tmp_path / name)  # fmt: skip
    assert len(list((tmp_path / "store" / "tokens").iterdir())) == 1


def test_sft_reads_the_texts_of_perplexity_tasks_whole(base, make_tasks, tmp_path):
    texts = {**TASK, "plain": {"role": "general", "splits": {}, "verifier": {"kind": "perplexity"}}}
    text = "the town lies by a river"
    tasks = make_tasks(texts, [{"task": "plain", "split": "train", "prompt": "", "reference": text}])
    config = SftConfig(learning_rate=1e-2, epochs=60, batch_size=8, max_length=64, num_validations=0)
    metrics = sft(config, chats=write_chats(tmp_path / "c", PAIRS), tasks=tasks, base_model=base, model=tmp_path / "m")
    _, tokenizer = checkpoints.load(base)
    # Every token of the text and its end, beside two letters and EOS in each of four answers.
    assert metrics["sft/texts"] == 1
    assert metrics["sft/trained_tokens"] == 12 + len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1
    ((nats, count),) = Generator.load(tmp_path / "m").log_likelihood([text], max_length=64)
    assert nats / count > -0.5


def test_the_same_seed_gives_the_same_weights(base, tasks, tmp_path):
    config = SftConfig(learning_rate=1e-3, epochs=3, batch_size=2, max_length=64, num_validations=0)
    source = write_chats(tmp_path / "c", PAIRS)
    for name in ("a", "b"):
        sft(config, chats=source, tasks=tasks, base_model=base, model=tmp_path / name)
    assert artifact.read_manifest(tmp_path / "a").digest == artifact.read_manifest(tmp_path / "b").digest


def test_no_training_is_reported_to_the_hub(tuned):
    from huggingface_hub.utils import _telemetry

    assert _telemetry._TELEMETRY_THREAD is None


@pytest.mark.parametrize(
    ("weight", "told"),
    [
        (3e38, r"not finite at optimiser step 1; .* Its batch has 4 rows, with a loss that is not finite: '<\|user"),
        (float("inf"), "the weights are not finite before optimiser step 1: model.norm.weight holds NaN or infinity"),
    ],
)
def test_a_diverging_run_stops_before_the_weights_are_spoilt(weight, told, base, tasks, tmp_path):
    import shutil

    broken = shutil.copytree(base, tmp_path / "broken")
    network, tokenizer = checkpoints.load(broken)
    with torch.no_grad():
        network.model.norm.weight.fill_(weight)
    checkpoints.save(broken, network, tokenizer)
    config = SftConfig(learning_rate=1e-3, epochs=1, batch_size=4, max_length=64, num_validations=0)
    with pytest.raises(DivergedError, match=told):
        sft(config, chats=write_chats(tmp_path / "c", PAIRS), tasks=tasks, base_model=broken, model=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_cpt_lowers_the_perplexity_of_held_out_domain_text(base, tmp_path):
    def row(text, general):
        return {**DOCUMENT, "id": content_id(text), "text": text, "general": general}

    rows = [row(f"the shop sells item {n} on day {n % 7}", False) for n in range(120)]
    rows += [row(f"general words number {n}", True) for n in range(60)]
    artifact.write_rows(tmp_path / "d", "document/2", Document.table(rows))
    config = CptConfig(
        learning_rate=5e-3, epochs=2, batch_size=4, max_length=64, replay_share=0.2, validation_share=0.1
    )
    metrics = cpt(config, documents=tmp_path / "d", base_model=base, model=tmp_path / "m")
    assert metrics["cpt/domain_perplexity_after"] < 0.2 * metrics["cpt/domain_perplexity_before"]
    assert metrics["cpt/replay_fraction"] == pytest.approx(0.2, abs=0.03)
    assert "cpt/general_perplexity_after" in metrics


def test_rejection_sampling_keeps_right_answers_and_pairs_them_with_wrong_ones(tuned, tasks, tmp_path):
    rows = [("say ab", "ab"), ("say cd", "cd"), ("say zz", "zz"), ("say " + 300 * "a", "aa")]
    prompts = [prompt_row("echo", "unlabelled", *row) for row in rows]
    artifact.write_rows(tmp_path / "p", "prompt/2", Prompt.table(prompts))
    seeds = write_chats(tmp_path / "s", [("say ab", "ab")])
    out = {name: tmp_path / "rs" / name for name in ("sampled_chats", "preferences", "rejects")}
    metrics = rejection_sampling(
        RejectionSamplingConfig(num_samples=16, temperature=1.5),
        base_model=tuned[0],
        chats=seeds,
        prompts=tmp_path / "p",
        tasks=tasks,
        **out,
    )
    kept = artifact.read_table(out["sampled_chats"], "chat/2").to_pylist()
    # The seed stays, its prompt is not answered again, and nobody can say zz.
    assert [(row["messages"][0]["content"], row["origin"]) for row in kept] == [
        ("say ab", "seed"),
        ("say cd", "sampled"),
    ]
    rejects = artifact.read_table(out["rejects"], "reject/1").to_pylist()
    assert {row["text"][:6]: row["reason"] for row in rejects} == {"say zz": "no_right_sample", "say aa": "too_long"}
    for pair in artifact.read_table(out["preferences"], "preference/3").to_pylist():
        reference = dict(rows)[pair["messages"][0]["content"]]
        assert pair["chosen"][0]["content"] == reference and pair["rejected"][0]["content"] != reference
    assert metrics["rejection_sampling/pass_at_k"] == pytest.approx(2 / 3)
    assert metrics["rejection_sampling/prompts"] == 4 and metrics["rejection_sampling/too_long"] == 1


@pytest.mark.parametrize("abstain", ["I do not know.", {"en": "I do not know.", "ko": "잘 모르겠습니다."}])
def test_where_every_sample_was_wrong_the_polite_refusal_is_preferred(base, tasks, tmp_path, abstain):
    rows = [("say zz", "zz", "en"), ("zz 말해", "zz", "ko"), ("dis zz", "zz", "fr")]  # an untrained model says no zz
    prompts = [prompt_row("echo", "unlabelled", p, reference, group=group) for p, reference, group in rows]
    artifact.write_rows(tmp_path / "p", "prompt/2", Prompt.table(prompts))
    out = {name: tmp_path / "rs" / name for name in ("sampled_chats", "preferences", "rejects")}
    config = RejectionSamplingConfig(num_samples=2, abstain=abstain)
    metrics = rejection_sampling(config, base_model=base, prompts=tmp_path / "p", tasks=tasks, **out)
    pairs = artifact.read_table(out["preferences"], "preference/3").to_pylist()
    told = {pair["messages"][0]["content"]: pair["chosen"][0]["content"] for pair in pairs}
    if isinstance(abstain, str):
        assert told == {prompt: abstain for prompt, _, _ in rows}
    else:
        assert told == {"say zz": abstain["en"], "zz 말해": abstain["ko"]}
    assert metrics["rejection_sampling/abstentions"] == len(pairs) == metrics["rejection_sampling/preferences"]
    assert all(pair["rejected"][0]["content"] != pair["chosen"][0]["content"] for pair in pairs)
    with pytest.raises(ValueError, match="expected a sentence"):
        RejectionSamplingConfig(abstain={"en": " "})


def test_a_model_that_learns_to_say_so_still_answers_what_it_knows(tuned, make_tasks, tmp_path):
    unknown = [("say zz", "zz"), ("say qz", "qz"), ("say zq", "zq"), ("say qq", "qq")]
    asked = [{"task": "echo", "split": "unlabelled", "prompt": p, "reference": a} for p, a in [*PAIRS, *unknown]]
    before, after = tuned[0], tmp_path / "dpo"
    out = {name: tmp_path / "rs" / name for name in ("sampled_chats", "preferences", "rejects")}
    config = RejectionSamplingConfig(num_samples=16, temperature=1.0, abstain="?")
    metrics = rejection_sampling(config, base_model=before, tasks=make_tasks(TASK, asked, "asked"), **out)
    assert metrics["rejection_sampling/pass_at_k"] == 0.5 and metrics["rejection_sampling/abstentions"] == 4
    training = DpoConfig(learning_rate=5e-3, epochs=40, batch_size=16, max_length=64, validation_share=1e-9)
    dpo(training, preferences=out["preferences"], base_model=before, model=after)
    prompts = [chat(prompt) for prompt, _ in [*PAIRS, *unknown]]
    first, last = (Generator.load(model).generate(prompts, max_new_tokens=4) for model in (before, after))
    assert first[:4] == last[:4] == [[answer] for _, answer in PAIRS]
    assert ["?"] not in first and last[4:] == [["?"]] * 4


@pytest.mark.parametrize("reference", ["[a-m]", r"\s*|[a-m]"])  # of which the second takes an empty answer for right
def test_an_empty_answer_is_counted_and_neither_accepted_nor_paired(base, make_tasks, tmp_path, reference):
    task = {"echo": {**TASK["echo"], "verifier": {"kind": "regex"}, "max_new_tokens": 1}}
    row = {"task": "echo", "split": "unlabelled", "prompt": "say ab", "reference": reference}
    known = make_tasks(task, [row])
    config = RejectionSamplingConfig(num_samples=400, temperature=1.5, pairs_per_prompt=400, accepted_per_prompt=400)
    config = config.model_copy(update={"corrections_per_prompt": 400, "correction": "Again?"})
    (turns,) = sample(Generator.load(base), Tasks(known).to_sample_from("domain"), Tasks(known), config)
    answers = [turn["content"] for turn in turns]
    out = {name: tmp_path / "rs" / name for name in ("sampled_chats", "preferences", "rejects")}
    metrics = rejection_sampling(config, base_model=base, tasks=known, **out)
    chats = artifact.read_table(out["sampled_chats"], "chat/2").to_pylist()
    pairs = artifact.read_table(out["preferences"], "preference/3").to_pylist()
    assert any(not answer.strip() for answer in answers) and len(chats) > 1 and len(pairs) > 1
    assert all(turn["content"].strip() for chat in chats for turn in chat["messages"])
    assert all(pair[side][0]["content"].strip() for pair in pairs for side in ("chosen", "rejected"))
    right = sum(re.fullmatch(reference, answer.strip()) is not None for answer in answers)
    assert metrics["rejection_sampling/pass_at_1"] == pytest.approx(right / 400)


def test_a_wrong_answer_is_asked_again_and_put_right(base, make_tasks, tmp_path):
    task = {"echo": {**TASK["echo"], "verifier": {"kind": "regex"}, "max_new_tokens": 2}}
    row = {"task": "echo", "split": "unlabelled", "prompt": "say ab", "reference": "(?s)[a-z].*"}
    out = {name: tmp_path / "rs" / name for name in ("sampled_chats", "preferences", "rejects")}
    config = RejectionSamplingConfig(num_samples=60, temperature=1.5, corrections_per_prompt=2, correction="Again?")
    metrics = rejection_sampling(config, base_model=base, tasks=make_tasks(task, [row]), **out)
    plain, *again = artifact.read_table(out["sampled_chats"], "chat/2").to_pylist()
    assert metrics["rejection_sampling/corrections"] == len(again) == 2
    for made in again:
        assert made["origin"] == "corrected" and made["task"] == "echo" and made["parent"] == plain["parent"]
        asked, wrong, user, right = made["messages"]
        assert [asked, right] == plain["messages"] and (user["role"], user["content"]) == ("user", "Again?")
        assert wrong["role"] == "assistant" and not wrong["content"][:1].islower()
    assert again[0]["messages"][1] != again[1]["messages"][1] and again[0]["id"] != again[1]["id"]


def test_the_answer_alone_is_judged_of_a_model_that_thinks_first(base, make_tasks, tmp_path):
    traces = [(prompt, f"<think>it is {answer}</think>{answer}") for prompt, answer in PAIRS]
    asked = {"templates": [{"prompt": "{q}", "answer": "{a}"}], "splits": {"test": {"path": ""}}, "max_new_tokens": 30}
    splits = ("unlabelled", "test")
    rows = [{"task": "echo", "split": split, "prompt": p, "reference": a} for p, a in PAIRS for split in splits]
    given = {"tasks": make_tasks({"echo": {**TASK["echo"], **asked}}, rows)}
    training = {"learning_rate": 1e-2, "batch_size": 4, "max_length": 64, "num_validations": 0}
    learnt = write_chats(tmp_path / "c", traces)
    sft(SftConfig(**training, epochs=60), **given, chats=learnt, base_model=base, model=tmp_path / "sft")
    given["base_model"] = tmp_path / "sft"
    out = {name: tmp_path / "rs" / name for name in ("sampled_chats", "preferences", "rejects")}
    sampled = rejection_sampling(RejectionSamplingConfig(num_samples=16, temperature=0.5), **given, **out)
    kept = artifact.read_table(out["sampled_chats"], "chat/2").to_pylist()
    references = dict(PAIRS)
    assert len(kept) == 4 and 0.5 < sampled["rejection_sampling/pass_at_1"] < 1
    for row in kept:
        ask, turn = row["messages"]
        assert re.fullmatch(f"<think>.+</think>{references[ask['content']]}", turn["content"])
    for pair in artifact.read_table(out["preferences"], "preference/3").to_pylist():
        reference, (chosen,), (rejected,) = references[pair["messages"][0]["content"]], pair["chosen"], pair["rejected"]
        assert chosen["content"].endswith(f"</think>{reference}") and rejected["content"].startswith("<think>")
        assert not rejected["content"].endswith(f"</think>{reference}")
    config = GrpoConfig(learning_rate=1e-5, epochs=2, batch_size=32, max_length=64, temperature=0.5)
    reinforced = grpo(config, **given, model=tmp_path / "grpo")
    assert reinforced["grpo/reward_first"] > 0.5 and reinforced["grpo/answer_tokens_first"] > 20
    for name in ("sft", "grpo"):
        measured = {"model": tmp_path / name, "tasks": given["tasks"], "results": tmp_path / f"{name}-results"}
        assert evaluation(EvaluationConfig(repeats=1), **measured)["evaluation/echo.test.accuracy"] == 1
        results = artifact.read_table(measured["results"], "eval_result/2").to_pylist()
        assert sorted(row["response"] for row in results) == sorted(references.values())
    # The loss of what was sampled is on two letters and EOS of each, or on the trace too.
    for is_whole, tokens in ((False, 4 * 3), (True, sum(len(row["messages"][1]["content"]) + 1 for row in kept))):
        again = SftConfig(**training, epochs=1, train_reasoning=is_whole)
        learnt = sft(again, **given, chats=out["sampled_chats"], model=tmp_path / f"{is_whole}")
        assert learnt["sft/trained_tokens"] == tokens


def test_an_answer_of_min_score_is_right_and_the_best_is_kept(base, make_tasks, tmp_path):
    task = {"echo": {**TASK["echo"], "verifier": {"kind": "chrf"}, "max_new_tokens": 2}}
    row = {"task": "echo", "split": "unlabelled", "prompt": "say ab", "reference": "ab"}
    tasks = make_tasks(task, [row])
    artifact.write_rows(tmp_path / "p", "prompt/2", Prompt.table([prompt_row(**row)]))
    seeds = write_chats(tmp_path / "s", [])
    known = Tasks(tasks)

    def sampled(min_score):
        out = {name: tmp_path / str(min_score) / name for name in ("sampled_chats", "preferences", "rejects")}
        config = RejectionSamplingConfig(num_samples=600, temperature=1.5, min_score=min_score)
        rejection_sampling(config, base_model=base, chats=seeds, prompts=tmp_path / "p", tasks=tasks, **out)
        kept = artifact.read_table(out["sampled_chats"], "chat/2").to_pylist()
        pairs = artifact.read_table(out["preferences"], "preference/3").to_pylist()
        score = lambda text: known.verify("echo", text, "ab")[0]  # noqa: E731
        return [score(row["messages"][1]["content"]) for row in kept], [
            (score(pair["chosen"][0]["content"]), score(pair["rejected"][0]["content"])) for pair in pairs
        ]

    assert sampled(1.0) == ([], [])  # an untrained model of 260 tokens says no two letters in order
    (best,), pairs = sampled(0.1)
    assert 0.1 <= best < 1.0 and pairs
    assert all(rejected < 0.1 <= chosen <= best for chosen, rejected in pairs)


def test_dpo_widens_the_margin_on_pairs_it_has_not_seen(tuned, tmp_path):
    rows = [
        preference_row(f"{p} {n}", a, r)
        for n in range(10)
        for (p, a), r in zip(PAIRS, ("ba", "dc", "fe", "hg"), strict=True)
    ]
    artifact.write_rows(tmp_path / "p", "preference/3", Preference.table(rows))
    config = DpoConfig(learning_rate=1e-4, epochs=3, batch_size=4, max_length=64, validation_share=0.25)
    metrics = dpo(config, preferences=tmp_path / "p", base_model=tuned[0], model=tmp_path / "m")
    assert metrics["dpo/margin_after"] > metrics["dpo/margin_before"]


def test_dpo_without_pairs_passes_the_model_on(base, tmp_path):
    artifact.write_rows(tmp_path / "p", "preference/3", Preference.table([]))
    config = DpoConfig(learning_rate=1e-4, epochs=1, max_length=64)
    assert dpo(config, preferences=tmp_path / "p", base_model=base, model=tmp_path / "m") == {"dpo/pairs": 0.0}
    assert artifact.read_manifest(tmp_path / "m").digest == artifact.read_manifest(base).digest


def test_dpo_leaves_out_and_counts_pairs_that_teach_nothing(tuned, tmp_path):
    rows = [preference_row(f"say {n}", "ab", "ba") for n in range(12)]
    useless = [("x" * 80, "y"), ("y", "x" * 80), ("same", "same"), ("", "y"), ("y", " ")]
    rows += [preference_row(f"p{n}", *answers) for n, answers in enumerate(useless)]
    artifact.write_rows(tmp_path / "p", "preference/3", Preference.table(rows))
    config = DpoConfig(learning_rate=1e-4, epochs=1, batch_size=4, max_length=64, validation_share=0.01)
    metrics = dpo(config, preferences=tmp_path / "p", base_model=tuned[0], model=tmp_path / "m")
    assert metrics["dpo/dropped_too_long"] == metrics["dpo/too_long"] == 2
    assert metrics["dpo/dropped_identical"] == 1 and metrics["dpo/dropped_empty"] == 2
    assert metrics["dpo/pairs"] == 12
    artifact.write_rows(tmp_path / "q", "preference/3", Preference.table(rows[12:]))
    with pytest.raises(DataError, match="none of the 5 preference pairs .*: 2 empty, 1 identical, 2 too_long"):
        dpo(config, preferences=tmp_path / "q", base_model=tuned[0], model=tmp_path / "n")


def test_a_pair_that_is_too_long_loses_the_beginning_of_its_prompt_or_stops_the_run(base, tmp_path):
    _, tokenizer = checkpoints.load(base)

    def usable(config, *rows):
        artifact.write_rows(tmp_path / f"{len(rows)}", "preference/3", Preference.table(rows))
        with usable_pairs(tokenizer, tmp_path / f"{len(rows)}", config, "dpo") as (kept, _, told):
            return list(kept), told

    config = DpoConfig(learning_rate=1e-4, epochs=1, max_length=20, validation_share=1e-9)
    row = preference_row("0123456789012345", "ab", "longer")  # 18 tokens of prompt, and 3 or 7 of answer
    (pair,), told = usable(config, row, preference_row("p", "a", "b"))
    assert told["dropped_too_long"] == 1 and tokenizer.decode(pair.prompt) == "<|user|>p<|assistant|>"
    cut = config.model_copy(update={"too_long": "truncate_left"})
    (pair,), told = usable(cut, row)
    assert len(pair.prompt) == 13 and tokenizer.decode(pair.prompt) == "456789012345<|assistant|>"
    assert tokenizer.decode(pair.rejected) == "longer<|eos|>" and told["too_long"] == 1
    with pytest.raises(DataError, match="is 25 tokens long with its prompt and dpo.max_length is 20"):
        usable(config.model_copy(update={"too_long": "error"}), row)


def test_log_likelihoods_count_the_answer_and_its_end_alone(base):
    network, tokenizer = checkpoints.load(base)
    pair, _ = pair_of(tokenizer, preference_row("p", "ab", "longer answer"))
    ((chosen, _),) = answer_likelihoods(network, [pair])
    ids = tokenizer.apply_chat_template(chat("p", "ab"), return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        nats = torch.log_softmax(network(ids).logits[0, :-1].float(), -1).gather(-1, ids[0, 1:, None])[:, 0]
    assert chosen == pytest.approx(nats[-3:].sum().item(), rel=1e-4)  # a, b, EOS
