"""Soft prompts: nothing but their embeddings is learnt, and what is served reads the very tokens that were trained."""

from __future__ import annotations

import pytest
import torch
from chats import preference_row, write_chats

from bloomery.components.core import artifact
from bloomery.components.core.config import parse
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ConfigError
from bloomery.components.core.modelling import checkpoints, soft_prompts, templates
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.records import Preference
from bloomery.components.cpt.config import CptConfig
from bloomery.components.distillation.config import DistillationConfig
from bloomery.components.dpo.config import DpoConfig
from bloomery.components.dpo.step import run as dpo
from bloomery.components.grpo.config import GrpoConfig
from bloomery.components.reward_model.config import RewardModelConfig
from bloomery.components.sft.config import SftConfig
from bloomery.components.sft.step import run as sft
from bloomery.monitoring.engine import Row, Served, decode

PAIRS = [(f"say {word}", "ab") for word in ("ab", "cd", "ef", "gh")]
SOFT = {"kind": "prompt", "tokens": 8}
NEW = [*range(260, 268)]
"""The tiny vocabulary has 260 tokens."""
SETTINGS = {"learning_rate": 0.3, "epochs": 12, "batch_size": 4, "max_length": 64}


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def learn(talking_model, tmp_path_factory):
    """Fine-tune a base with some settings; returns (folder of the new model, metrics)."""
    from bloomery.components.core.records import Prompt

    tasks = tmp_path_factory.mktemp("tasks")
    (tasks / "tasks.json").write_text("{}")
    artifact.write_rows(tasks, "prompt/2", Prompt.table([]))
    artifact.seal(tasks, "tasks/1")

    def run(base=talking_model, **settings):
        folder = tmp_path_factory.mktemp("learnt")
        chats = write_chats(folder / "c", PAIRS)
        config = parse(SftConfig, {**SETTINGS, "num_validations": 0, **settings}, where="sft")
        return folder / "m", sft(config, chats=chats, tasks=tasks, base_model=base, model=folder / "m")

    return run


@pytest.fixture(scope="module")
def prompted(learn):
    """A model with a learnt prompt, beginning as one word."""
    return learn(adapter={**SOFT, "text": "ab"})[0]


def weights(folder):
    return dict(checkpoints.load(folder)[0].named_parameters())


@pytest.mark.parametrize(("kind", "rate"), [("prompt", 0.3), ("p_tuning", 1e-2)])
def test_the_new_rows_alone_are_learnt(kind, rate, learn, talking_model):
    folder, metrics = learn(adapter={**SOFT, "kind": kind}, learning_rate=rate)
    assert metrics["sft/loss"] < 0.95
    said = [
        Generator.load(path).generate([chat("say ab")], max_new_tokens=8)[0][0] for path in (talking_model, folder)
    ]
    assert said == ["ababab", "ab"]
    old, new = weights(talking_model), weights(folder)
    assert new.keys() - old.keys() == {"lm_head.weight"}  # taken apart from the embeddings; no LSTM is left
    table, head = new.pop("model.embed_tokens.weight"), new.pop("lm_head.weight")
    assert torch.equal(table[:260], old["model.embed_tokens.weight"]) and table.shape == head.shape == (268, 32)
    assert torch.equal(head[:260], old["model.embed_tokens.weight"]) and len(head[260:].unique(dim=0)) == 1
    assert all(torch.equal(weight, old[name]) for name, weight in new.items())
    assert not (folder / "adapter").exists()


def test_it_begins_as_a_text_or_as_common_tokens(talking_model):
    network, tokenizer = checkpoints.load(talking_model)
    table = network.get_input_embeddings().weight.detach().clone()
    soft_prompts.added(network, tokenizer, 4, text="abc")
    rows = network.get_input_embeddings().weight[260:]
    ids = tokenizer("abca")["input_ids"]
    assert torch.equal(rows, table[ids]) and torch.equal(network.soft_prompt(), rows)
    drawn = soft_prompts._begin(tokenizer, 4, "", seed=1)
    assert not set(drawn) & {0, 1, 2, 3} and drawn == soft_prompts._begin(tokenizer, 4, "", seed=1)


def test_training_evaluation_and_serving_read_the_same_tokens(prompted, talking_model):
    network, tokenizer = checkpoints.load(prompted)
    plain = checkpoints.load_tokenizer(talking_model)
    ids, trained = templates.trained_tokens(tokenizer, chat("say ab", "ef"))
    old, same = templates.trained_tokens(plain, chat("say ab", "ef"))
    assert ids == [*NEW, *old] and trained == [False] * 8 + same
    asked = templates.prompt_tokens(tokenizer, chat("say ab"))
    assert asked == Served(network, tokenizer, "m", "1").prompt_tokens(chat("say ab")) == ids[: len(asked)]
    turns = [*chat("say ab", "ef"), *chat("say cd")]
    assert templates.prompt_tokens(tokenizer, turns).count(NEW[0]) == 1  # once a chat, not once a turn
    # What transformers, and so vLLM, makes of it by itself.
    told = [{"role": "user", "content": "say ab"}]
    assert tokenizer.apply_chat_template(told, add_generation_prompt=True)["input_ids"] == asked


def test_the_new_tokens_are_never_chosen(prompted):
    network, tokenizer = checkpoints.load(prompted)
    served = Served(network, tokenizer, "m", "1")
    rows = [
        Row(served, served.prompt_tokens(chat("say ab")), max_new_tokens=60, temperature=50, seed=seed)
        for seed in range(4)
    ]
    decode(rows)
    drawn = [token for row in rows for token in row.tokens]
    assert len(drawn) > 100 and not set(drawn) & set(NEW)
    # Engines that do not read `suppress_tokens` find them as likely as the least likely token of all.
    ids, trained = templates.trained_tokens(tokenizer, chat("say ab", "ab"))
    with torch.inference_mode():
        likely = network(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
    assert likely[trained.index(True) - 1 : -1, NEW].max() < 1e-3


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]\n{{ message['content'] }}{% endfor %}\n\n",
        "{% for message in messages %}{% set said = message['content'] %}{% if loop.first %}{% set said = bos_token + "
        "said %}{% endif %}{{ said }}\n{% endfor %}",
        "\n  {%- for message in messages %}{{ message['content'] }}{% endfor %}\n",
    ],
)
@pytest.mark.parametrize("begin", ["<s>", ""])
def test_a_template_writes_them_first_or_after_bos(template, begin):
    from transformers.utils.chat_template_utils import render_jinja_template

    def rendered(text):
        return render_jinja_template([[{"role": "user", "content": "x y "}]], chat_template=text, bos_token=begin)[0][0]

    plain, own = rendered(template), rendered(soft_prompts._begun(template, "<1><2>"))
    written = begin if begin and plain.startswith(begin) else ""
    assert own == written + "<1><2>" + plain.removeprefix(written)


def test_a_bos_that_opens_turns_is_no_beginning(talking_model):
    network, tokenizer = checkpoints.load(talking_model)
    tokenizer.bos_token = "<|user|>"  # as in SmolLM2
    plain = templates.prompt_tokens(tokenizer, chat("a"))
    assert templates.prompt_tokens(soft_prompts.added(network, tokenizer, 8), chat("a")) == [*NEW, *plain]


def test_rows_that_pad_the_vocabulary_are_taken_and_a_head_of_its_own_is_kept(talking_model, tmp_path):
    network, tokenizer = checkpoints.load(talking_model)
    soft_prompts._take_head_apart(network)
    network.resize_token_embeddings(272, mean_resizing=False)
    checkpoints.save(tmp_path / "m", network, tokenizer)
    network, tokenizer = checkpoints.load(tmp_path / "m")
    head = network.lm_head.weight.detach().clone()
    own = soft_prompts.added(network, tokenizer, 4)
    assert len(own) == 264 and network.get_input_embeddings().weight.shape[0] == 272
    assert torch.equal(network.lm_head.weight[:260], head[:260])
    assert len(network.lm_head.weight[260:].unique(dim=0)) == 1


def test_a_second_prompt_stands_before_the_first(prompted, learn):
    folder, _ = learn(prompted, adapter={**SOFT, "tokens": 2}, epochs=2)
    tokenizer = checkpoints.load_tokenizer(folder)
    assert templates.prompt_tokens(tokenizer, chat("a"))[:10] == [268, 269, *NEW]
    assert tokenizer.convert_ids_to_tokens([267, 268]) == ["<|soft_8|>", "<|soft_9|>"]
    assert checkpoints.load(folder)[0].generation_config.suppress_tokens == [*NEW, 268, 269]


def test_dpo_learns_one_too(talking_model, tmp_path):
    rows = [preference_row(prompt, answer, "ababab") for prompt, answer in PAIRS]
    artifact.write_rows(tmp_path / "p", "preference/3", Preference.table(rows))
    config = DpoConfig(**{**SETTINGS, "epochs": 4}, adapter=SOFT, validation_share=1e-9)
    metrics = dpo(config, preferences=tmp_path / "p", base_model=talking_model, model=tmp_path / "m")
    assert metrics["dpo/pairs"] == 4
    old, new = weights(talking_model), weights(tmp_path / "m")
    assert all(torch.equal(old[name], weight) for name, weight in new.items() if ".layers." in name)
    assert checkpoints.load_tokenizer(tmp_path / "m").convert_tokens_to_ids("<|soft_8|>") == 267


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        (SftConfig, {"adapter": {"kind": "prefix"}}, "prefix puts keys and values .* take prompt or p_tuning"),
        (SftConfig, {"adapter": {**SOFT, "rank": 4}}, "rank: prompt has no such thing"),
        (SftConfig, {"adapter": {"rank": 4, "text": "a"}}, "text: lora has no such thing"),
        (SftConfig, {"adapter": {"kind": "p_tuning", "text": "a"}}, "text: p_tuning has no such thing"),
        (SftConfig, {"adapter": SOFT, "too_long": "truncate_left"}, "cuts the beginning of a chat, .* drop or error"),
        (SftConfig, {"adapter": SOFT, "prompt_loss_weight": 0.5}, "prompt_loss_weight: found 0.5"),
        (SftConfig, {"adapter": SOFT, "optimizer": "muon"}, "optimizer: muon is for matrices of layers"),
        (DpoConfig, {"adapter": SOFT, "too_long": "truncate_left"}, "cuts the beginning of a chat"),
        (GrpoConfig, {"adapter": SOFT}, "beta: found 0.04, .* set beta to 0"),
        (CptConfig, {"adapter": SOFT}, "which sft, dpo and grpo train alone; take lora"),
        (RewardModelConfig, {"adapter": SOFT}, "which sft, dpo and grpo train alone; take lora"),
        (DistillationConfig, {"adapter": SOFT, "teacher": {"stage": "start"}}, "which sft, dpo and grpo train alone"),
    ],
)
def test_what_cannot_be_served_as_it_was_trained_is_refused(kind, settings, told):
    given = {**SETTINGS, "batch_size": 8, **settings}
    with pytest.raises(ConfigError, match=told):
        parse(kind, given, where="stage")


def test_an_architecture_whose_head_is_always_the_embeddings_is_told(talking_model):
    network, tokenizer = checkpoints.load(talking_model)
    network.config.model_type = "gemma3_text"
    with pytest.raises(ConfigError, match="needs a head apart from the embeddings, .* gemma3_text; take lora"):
        soft_prompts.added(network, tokenizer, 2)
