"""`bloomery advise`: every combination of answers is a recipe, and what is said follows from what was answered."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import yaml
from published import LLAMA_8B

from bloomery.components.core.modelling import cards, shapes
from bloomery.pipelines import recipe
from bloomery.pipelines.advise import Advice, advise, described, written
from bloomery.pipelines.advise_decisions import Answers, Measured

NO_DATA = {"examples": 0, "document_tokens": 0, "pairs": 0}
ANSWERS = {
    **NO_DATA,
    "model": "org/model",
    "goal": "behaviour",
    "fresh": "stable",
    "verifier": "none",
    "serve_on": "cpu",
    "serve_memory": 0,
    "latency": 0,
    "privacy": "open",
    "languages": "en",
}
MODEL = {**LLAMA_8B, "max_position_embeddings": 8192}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> shapes.Shape:
    """That of Llama 3 8B."""
    folder = tmp_path_factory.mktemp("llama")
    (folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    return shapes.read(folder)


def asked(measured: Measured = Measured(), **changes) -> Advice:
    return advise(Answers(**{**ANSWERS, **changes}), measured)


def stages(advice: Advice) -> dict[str, dict]:
    """The settings of each stage, by its name."""
    entries = [(s, {}) if isinstance(s, str) else next(iter(s.items())) for s in advice.recipe["stages"]]
    return {settings.get("as", step): settings for step, settings in entries}


def said(advice: Advice, subject: str) -> str:
    return " ".join(one.advice for one in advice.recommendations if one.subject == subject)


def test_every_combination_of_answers_is_a_recipe(llama):
    grid = {
        "goal": ["facts", "behaviour", "form"],
        "fresh": ["weekly", "yearly", "stable"],
        "examples": [0, 20, 300, 200_000],
        "document_tokens": [0, 2_000_000, 50_000_000],
        "pairs": [0, 900],
        "verifier": ["none", "exact", "sql_execution"],
        "general": ["", "general.jsonl"],
        "serve_on": ["cpu", "L4"],
        "serve_memory": [0, 2],
    }
    machines = [
        Measured(),
        Measured(llama, cards.named("H100"), cards.named("L4")),
        Measured(llama, cards.Card("memory", 8e9, 0, 0, is_gpu=False), longest=300, lacks_template=True),
    ]
    found: dict[str, tuple[Answers, Advice]] = {}
    for values, machine in zip(itertools.product(*grid.values()), itertools.cycle(machines), strict=False):
        answers = Answers(**{**ANSWERS, **dict(zip(grid, values, strict=True))})
        advice = advise(answers, machine)
        assert advice.recommendations and all(all(one) for one in advice.recommendations)
        found.setdefault(json.dumps(advice.recipe), (answers, advice))
    assert len(found) > 300
    for _, advice in found.values():
        read = recipe.parse_recipe(json.loads(json.dumps(advice.recipe)), Path("/nowhere"))
        assert [stage.name for stage in read.stages if stage.name != "chat_curation"] == list(stages(advice))
    for answers, advice in list(found.values())[::20]:
        assert yaml.safe_load(written(answers, advice)) == advice.recipe


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"examples": 2_000, "verifier": "exact", "serve_memory": 4, "latency": 50},
        {"goal": "facts", "document_tokens": 20_000_000, "examples": 800, "pairs": 700, "general": "g.jsonl"},
    ],
)
def test_what_is_written_loads_and_compiles(changes, tmp_path):
    from kfp import compiler

    from bloomery.pipelines.post_training import build

    answers = Answers(**{**ANSWERS, **changes})
    advice = advise(answers)
    (tmp_path / "advised.yaml").write_text(written(answers, advice), encoding="utf-8")
    loaded = recipe.load(str(tmp_path / "advised.yaml"))
    compiler.Compiler().compile(build(loaded), str(tmp_path / "pipeline.yaml"))
    text = written(answers, advice).split("\n")
    assert text[0].startswith("# yaml-language-server: $schema=/") and Path(text[0].partition("=")[2]).is_file()
    for number, line in enumerate(text):
        assert len(line) <= 120
        if line.startswith("  - "):  # a stage, whose reason stands above it
            assert text[number - 1].startswith("  # ")


def test_facts_of_the_week_are_looked_up():
    advice = asked(goal="facts", fresh="weekly", document_tokens=50_000_000, examples=500)
    assert "RAG" in said(advice, "retrieval") and "RAFT" in said(advice, "retrieval")
    assert list(stages(advice)) == ["sft"]
    assert "2312.05934" in advice.recommendations[0].source


def test_stable_knowledge_in_many_documents_is_read_then_used():
    advice = asked(goal="facts", fresh="stable", document_tokens=50_000_000, examples=500)
    assert list(stages(advice)) == ["data_curation", "dedup", "cpt", "sft"]
    assert "adapter" not in stages(advice)["cpt"] and stages(advice)["sft"]["adapter"]["kind"] == "lora"
    assert "Train on the documents (all weights)" in said(advice, "documents")
    alone = asked(goal="facts", fresh="stable", document_tokens=50_000_000)
    assert list(stages(alone)) == ["data_curation", "dedup", "cpt"]
    few = asked(goal="facts", fresh="stable", document_tokens=9_999_999, examples=500)
    assert list(stages(few)) == ["sft"] and "9,999,999 tokens are few" in said(few, "documents")
    assert "RAG" in said(few, "retrieval")


def test_a_form_with_few_examples_is_prompted_first(llama):
    advice = asked(goal="form", examples=49)
    assert "prompt with your best examples" in said(advice, "prompting")
    task = advice.recipe["tasks"]["examples"]
    assert task["shots"] == 4 and task["splits"]["train"]["share"] == [0.0, 0.5] and "chats" not in advice.recipe
    # 8,192 tokens of context, 256 of them for the answer: 7,936 / 2,500 is room for a question and two examples.
    for longest, shots in ((2_500, 2), (4_000, None)):
        known = asked(Measured(llama, longest=longest), goal="form", examples=49)
        assert known.recipe["tasks"]["examples"].get("shots") == shots
    more = asked(goal="form", examples=50)
    assert not said(more, "prompting") and "shots" not in more.recipe["tasks"]["examples"]
    assert "50 examples with LoRA" in said(more, "examples")


def test_parts_of_the_examples_are_disjoint_and_whole():
    advice = asked(examples=1_000, verifier="exact")
    splits = advice.recipe["tasks"]["examples"]["splits"]
    parts = [advice.recipe["chats"][0], splits["unlabelled"], splits["validation"], splits["test"]]
    # 200 of 1,000 are asked at the end, 5 % watched, and of the rest three in four are learnt from.
    assert [part["share"] for part in parts] == [[0.0, 0.56], [0.56, 0.75], [0.75, 0.8], [0.8, 1.0]]


def test_what_a_program_can_tell_is_sampled():
    assert list(stages(asked(examples=300, verifier="exact"))) == ["sft", "rejection_sampling", "sft_2"]
    on_gpu = Measured(card=cards.named("T4"))
    assert list(stages(asked(on_gpu, examples=300, verifier="numeric"))) == ["sft", "grpo"]
    few = asked(examples=199, verifier="exact")
    assert list(stages(few)) == ["sft"] and "Collect questions: with 200" in said(few, "own answers")


def test_preferences_come_last_and_few_of_them_are_not_learnt_from():
    advice = asked(examples=300, pairs=500, verifier="exact")
    assert list(stages(advice)) == ["sft", "grpo", "dpo"]
    assert list(stages(asked(pairs=500))) == ["dpo"]
    few = asked(examples=300, pairs=499)
    assert list(stages(few)) == ["sft"] and "collect 500" in said(few, "preferences")
    assert "preferences" not in few.recipe


def test_memory_decides_how_it_is_trained(llama):
    def chosen(card: str, examples: int = 300) -> dict:
        return stages(asked(Measured(llama, cards.named(card)), examples=examples))["sft"]

    # 8.03 B weights are 16.1 GB in bf16: under LoRA no room in 15.4 and enough in 80; 4.5 GB in four bits.
    assert chosen("H100")["adapter"]["kind"] == "lora"
    assert chosen("T4")["adapter"]["kind"] == "qlora" and chosen("T4")["gradient_checkpointing"]
    assert "QLoRA" in said(asked(Measured(llama, cards.named("T4")), examples=300), "examples")
    # With 200,000 examples all weights are wanted, of which one card does not hold 16 bytes each.
    assert chosen("H100", 200_000)["adapter"]["kind"] == "lora"
    assert "adapter" not in stages(asked(examples=200_000))["sft"]
    small = cards.Card("memory", 8e9, 0, 0, is_gpu=False)
    assert "does not fit whatever is changed" in said(asked(Measured(llama, small), examples=300), "memory")


@pytest.mark.parametrize(
    ("memory", "latency", "serve_on", "scheme", "told"),
    [
        # 16.06 GB in 16 bits, 8.03 in 8, 4.02 in 4, each a fifth more; 300 GB/s read 16.06 GB in 53.5 ms.
        (20, 0, "L4", "int8_weight_only", "16 bits fit"),
        (19, 0, "L4", "int8_weight_only", "Serve it in 8 bits"),
        (9, 0, "L4", "int4_weight_only", "Serve it in 4 bits"),
        (0, 54, "L4", "int8_weight_only", "16 bits fit"),
        (0, 53, "L4", "int8_weight_only", "Serve it in 8 bits"),
        (0, 20, "L4", "int4_weight_only", "Serve it in 4 bits"),
        (0, 10, "L4", "int4_weight_only", "Take a smaller model, or distil"),
        (4, 0, "cpu", "gguf_q4_k_m", "Take a smaller model, or distil"),
        (5, 0, "cpu", "gguf_q4_k_m", "Serve it in 4 bits"),
        (10, 0, "cpu", "gguf_q8_0", "Serve it in 8 bits"),
        (0, 10, "cpu", "gguf_q8_0", "The gate refuses a model that takes more than 10 ms"),
    ],
)
def test_what_answers_decides_the_bits(llama, memory, latency, serve_on, scheme, told):
    serving = None if serve_on == "cpu" else cards.named(serve_on)
    measured = Measured(llama, cards.named("H100"), serving)
    advice = asked(measured, examples=300, serve_memory=memory, latency=latency, serve_on=serve_on)
    assert told in said(advice, "serving")
    assert advice.recipe["quantisation"] == [{"scheme": scheme}]
    gate = advice.recipe.get("promotion", {}).get("gate", {})
    assert gate.get("max_decode_seconds_per_token") == (latency / 1e3 if latency else None)
    if memory:
        assert gate["max_bytes"] == int(memory * 1e9 / 1.2)


def test_privacy_languages_and_forgetting_are_answered():
    assert not said(asked(), "privacy") and not said(asked(), "Korean")
    assert "own machines" in said(asked(privacy="inside"), "privacy")
    assert "placeholders" not in said(asked(privacy="inside"), "privacy")
    assert "placeholders" in said(asked(privacy="personal"), "privacy")
    assert "Measure the tokenizer" in said(asked(languages="ko,en"), "Korean")
    assert "this one makes 7.7" in said(asked(Measured(tokens_a_word={"ko": 7.66}), languages="ko"), "Korean")
    assert "fit for Korean: 2.6" in said(asked(Measured(tokens_a_word={"ko": 2.6}), languages="ko"), "Korean")
    assert "--general" in said(asked(), "forgetting") and not said(asked(general="g.jsonl"), "forgetting")


def test_every_piece_of_advice_is_told_with_its_reason_and_source():
    advice = asked(goal="facts", fresh="weekly", privacy="personal", languages="ko", verifier="exact", pairs=5)
    text = described(advice)
    assert text.count("Why: ") == text.count("Source: ") == len(advice.recommendations)
    assert max(map(len, text.split("\n"))) <= 100
