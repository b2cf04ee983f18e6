"""A small model learns from a larger one that has learnt to talk."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from chats import write_chats
from conftest import WORDS
from safetensors.torch import load_file, save_file

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.components.core.modelling import batches, checkpoints, fine_tuning
from bloomery.components.core.modelling.fine_tuning import labelled_rows
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.modelling.token_shards import IGNORED
from bloomery.components.distillation.config import DistillationConfig
from bloomery.components.distillation.step import run as distillation
from bloomery.components.distillation.teaching import Lessons, caught, measured

TASK = {"echo": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 8}}
PAIRS = [
    (f"say {WORDS[a]}{WORDS[b]}", WORDS[(3 * a + 5 * b) % 8] * (1 + (a + b) % 3)) for a in range(8) for b in range(8)
]
SETTINGS = {"teacher": {"stage": "big"}, "learning_rate": 2e-2, "epochs": 4, "batch_size": 16, "max_length": 64}


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def untrained(folder: Path, tokenizer, **sizes: int) -> Path:
    """An untrained Llama checkpoint of other sizes than the tiny model's, with its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    given = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, **sizes}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        **given,
    )
    checkpoints.save(folder, LlamaForCausalLM(config), tokenizer)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory, talking_model):
    """One layer of half the width, one head for two."""
    return untrained(tmp_path_factory.mktemp("small") / "model", checkpoints.load_tokenizer(talking_model))


@pytest.fixture
def distil(tmp_path, talking_model, small, make_tasks):
    chats = write_chats(tmp_path / "chats", PAIRS)
    held_out = [("say abab", "ab"), ("say cdop", "cdcd"), ("say ghgh", "mn"), ("say efab", "op")]
    rows = [{"task": "echo", "split": "validation", "prompt": p, "reference": a} for p, a in held_out]
    tasks = make_tasks(TASK, rows)

    def go(*, base=small, teacher=talking_model, name="m", **settings):
        config = DistillationConfig(**{**SETTINGS, **settings})
        out = tmp_path / name
        return out, distillation(config, chats=chats, tasks=tasks, base_model=base, teacher=teacher, model=out)

    return go


def answers(folder: Path) -> list[str]:
    """What the model says to the prompts of PAIRS, greedily."""
    return [one for (one,) in Generator.load(folder).generate([chat(prompt) for prompt, _ in PAIRS], max_new_tokens=8)]


def test_a_student_comes_closer_to_a_better_teacher(distil, small):
    out, told = distil(epochs=15, batch_size=8)
    assert 0 < told["distillation/kl_after"] < 0.5 * told["distillation/kl_before"]
    assert told["distillation/agreement_after"] > told["distillation/agreement_before"] + 0.2
    assert told["distillation/chats"] == 64 and told["distillation/validation_loss"] < 3
    assert told["distillation/parent_parameters"] > told["distillation/parameters"]
    assert told["distillation/parent_prefill_seconds"] > 0
    words, said = {word * times for word in WORDS for times in (1, 2, 3)}, answers(out)
    assert set(said) <= words and not words & set(answers(small))


WAYS = {
    "hot, by the answers too": {"temperature": 2.0, "alpha": 0.5},
    "on its own answers": {"on_policy_share": 1.0, "divergence": "jsd", "beta": 0.1, "max_new_tokens": 6},
    "by states and relations": {"features": 1.0, "attention": 1.0, "gradient_accumulation_steps": 2, "epochs": 6},
    "packed": {"packing": True, "attention": 0.5, "prompt_loss_weight": 0.5, "batch_size": 4},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_brings_a_student_of_another_width_and_depth_closer(distil, small, way):
    out, told = distil(**WAYS[way], num_validations=2)
    assert 0 < told["distillation/kl_after"] < 0.85 * told["distillation/kl_before"]
    assert artifact.read_manifest(out, "model/1").digest
    network, _ = checkpoints.load(out)
    assert network.config.hidden_size == 16 and network.config.num_hidden_layers == 1
    assert answers(out) != answers(small)
    # What was learnt beside is thrown away.
    assert {name.split(".")[0] for name in load_file(out / "model.safetensors")} == {"model", "lm_head"}


def test_an_adapter_of_a_student_of_the_same_width_learns_with_checkpointing(distil, tiny_model):
    artifact.seal(tiny_model, "model/1")
    adapter = {"kind": "lora", "rank": 8, "alpha": 64}
    same = {
        "base": tiny_model,
        "adapter": adapter,
        "features": 1.0,
        "attention": 1.0,
        "num_validations": 0,
        "epochs": 2,
    }
    out, told = distil(**same, gradient_checkpointing=True)
    again, others = distil(**same, name="again")
    assert told["distillation/kl_after"] < told["distillation/kl_before"]
    # Activations that are computed again are the same.
    assert others["distillation/kl_after"] == pytest.approx(told["distillation/kl_after"], rel=1e-3)
    network, _ = checkpoints.load(out)
    assert not any("lora" in name for name, _ in network.named_parameters())


def test_a_model_that_learns_from_itself_stays_as_it_is(distil, talking_model, tmp_path):
    same = shutil.copytree(talking_model, tmp_path / "same")
    weights = load_file(same / "model.safetensors")
    save_file(weights, same / "model.safetensors", {"format": "pt", "note": "the same file would be refused"})
    artifact.seal(same, "model/1")
    _, told = distil(base=same, alpha=1.0, learning_rate=1e-6, epochs=1, num_validations=0)
    assert told["distillation/kl_before"] == pytest.approx(0, abs=1e-6)
    assert told["distillation/agreement_before"] == 1.0 and told["distillation/loss"] < 1e-4


def pair(small, talking_model):
    student, tokenizer = checkpoints.load(small)
    teacher, _ = checkpoints.load(talking_model)
    return student, teacher, tokenizer


def test_what_is_measured_is_the_mean_over_answers_alone(small, talking_model):
    student, teacher, tokenizer = pair(small, talking_model)
    config = DistillationConfig(**SETTINGS)
    chats = [{"messages": messages, "tools": ""} for messages in _messages(PAIRS[:5])]
    rows = labelled_rows(config, tokenizer, chats, "distillation")
    nats, agreed, count = 0.0, 0, 0
    for row in rows:
        ids_1L = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            q_LV, p_LV = (network(input_ids=ids_1L).logits[0].log_softmax(-1) for network in (student, teacher))
        for place, label in enumerate(row["labels"]):
            if label != IGNORED:
                before = place - 1
                nats += (p_LV[before].exp() * (p_LV[before] - q_LV[before])).sum().item()
                agreed += int(p_LV[before].argmax() == q_LV[before].argmax())
                count += 1
    found = measured(student, teacher, rows, 0)
    assert found["kl"] == pytest.approx(nats / count, rel=1e-4) and found["agreement"] == agreed / count
    assert found["kl"] > 0.1


def _messages(pairs):
    from bloomery.components.core.data.chats import chat

    return [chat(*pair) for pair in pairs]


def test_tokens_without_loss_carry_no_gradient(small, talking_model):
    """Of a row of six whose fourth has a label: the first three lead up to it, what comes after is nothing to it."""
    student, teacher, _ = pair(small, talking_model)
    lessons = Lessons(DistillationConfig(**SETTINGS, features=1.0, attention=1.0), teacher)
    lessons.begin(student, student.device)
    ids_BL = torch.tensor([[10, 11, 12, 13, 14, 15]])
    asked_BL = torch.tensor([[False, False, True, False, False]])
    embedded = {"embedded": student.get_input_embeddings()}
    with caught({**lessons.student_modules, **embedded}) as inside:
        student(input_ids=ids_BL)
        told = lessons.of_batch({"input_ids": ids_BL}, inside, asked_BL, ids_BL[:, 1:][asked_BL])
    assert {name: len(values) for name, values in told.items()} == dict.fromkeys(
        ("divergence", "nats", "agreement", "features", "attention"), 1
    )
    for name in ("divergence", "nats", "features", "attention"):
        (grad,) = torch.autograd.grad(told[name].sum(), inside["embedded"], retain_graph=True)
        assert grad[0, 3:].abs().max() == 0 and all(grad[0, place].abs().max() > 0 for place in range(3)), name
    assert all(weight.grad is None for weight in teacher.parameters())


def test_a_teacher_with_the_weights_of_the_student_is_refused(distil, small):
    with pytest.raises(ModelError, match="distillation.teacher: big has the weights of the student, which learns"):
        distil(teacher=small)


def test_a_teacher_with_other_tokens_is_refused(distil, talking_model, tmp_path):
    tokenizer = checkpoints.load_tokenizer(talking_model)
    tokenizer.add_tokens(["<new>"])
    other = untrained(tmp_path / "other", tokenizer)
    with pytest.raises(ModelError, match="token '<new>' is 260 in big and not there in the student"):
        distil(teacher=other)


def test_a_teacher_of_fewer_positions_than_rows_may_have_is_refused(distil):
    with pytest.raises(ConfigError, match="max_length is 300 and the teacher big knows 256 positions"):
        distil(max_length=300)


def test_an_architecture_without_such_vectors_has_no_relations_to_compare(distil, tmp_path, talking_model):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    tokenizer = checkpoints.load_tokenizer(talking_model)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    fused = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=260, max_position_embeddings=256, **sizes))
    checkpoints.save(tmp_path / "fused", fused, tokenizer)
    with pytest.raises(ModelError, match="the last layer of the teacher has no q_proj, k_proj, v_proj,"):
        distil(teacher=tmp_path / "fused", attention=1.0)
    _, told = distil(teacher=tmp_path / "fused", features=0.5, epochs=1)
    assert math.isfinite(told["distillation/kl_after"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"beta": 0.1}, "beta: forward_kl does not read it"),
        ({"alpha": 0}, "alpha: found 0, with which the teacher says nothing"),
        ({"alpha": 0, "features": 1, "on_policy_share": 0.5}, "the student's own answers have no loss"),
        ({"packing": True, "on_policy_share": 0.5}, "packing: rows of several chats cannot be answered"),
        ({"teacher": {}}, "expected one of `stage`"),
    ],
)
def test_settings_that_do_not_fit_are_told(settings, told):
    from bloomery.components.core.config import parse

    with pytest.raises(ConfigError, match=told):
        parse(DistillationConfig, {**SETTINGS, **settings}, where="distillation")


def test_some_batches_are_answered_by_the_student_and_the_same_ones_again(distil, monkeypatch):
    """Which ones, and what is answered, follows from the seed and the place of a batch."""
    seen = []
    collate = batches.collator

    def watching(pad):
        inner = collate(pad)

        def collated(rows):
            made = inner(rows)
            seen.append([row["input_ids"] for row in rows])
            return made

        return collated

    monkeypatch.setattr(fine_tuning.batches, "collator", watching)
    first, _ = distil(on_policy_share=0.5, epochs=2, num_validations=0)
    once, seen[:] = list(seen), []
    again, _ = distil(on_policy_share=0.5, epochs=2, num_validations=0, name="again")
    # Eight batches of chats, two passes over the validation chats, and the batches that were answered.
    assert once == seen and 10 < len(seen) < 18
    assert artifact.read_manifest(first).digest == artifact.read_manifest(again).digest
