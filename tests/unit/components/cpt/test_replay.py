"""Texts and exercises that are replayed, in continued pre-training and in fine-tuning, by one setting."""

import pytest

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat
from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.modelling.token_shards import Tokens
from bloomery.components.core.records import Chat, Document, content_id
from bloomery.components.cpt.config import CptConfig
from bloomery.components.cpt.step import run as cpt
from bloomery.components.sft.config import SftConfig
from bloomery.components.sft.step import run as sft

FACTS = {"source": "s:f#1", "language": "en", "time": "", "quality": None}
TEXT = {"plain": {"role": "general", "splits": {}, "verifier": {"kind": "perplexity"}}}


@pytest.fixture
def base(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("BLOOMERY_STORE", str(tmp_path / "store"))
    artifact.seal(tiny_model, "model/1")
    return tiny_model


@pytest.fixture
def documents(tmp_path):
    """400 characters to learn in 20 documents, 200 of general text in 10; one held out of each."""
    texts = [(f"the shop sells no {n:02}", False) for n in range(20)]
    texts += [(f"the town lies at  {n:02}", True) for n in range(10)]
    rows = [
        {**FACTS, "id": f"{'0' if n in (0, 20) else 'f'}{n:015x}", "text": text, "general": general}
        for n, (text, general) in enumerate(texts)
    ]
    artifact.write_rows(tmp_path / "d", "document/2", Document.table(rows))
    return tmp_path / "d"


def mixed(folder):
    """Four chats to learn and ten exercises, of 8 characters each, and an exercise that is too long for a block."""
    told = [("seed", f"say {n}{n}", f"{n}{n}") for n in "abcd"]
    told += [("replay", "say " + 9 * "long ", "so")]
    told += [("replay", f"add {n}{n}", f"{n}{n}") for n in range(10)]
    rows = [
        {"id": content_id(*one), "messages": chat(*one[1:]), "tools": "", "task": "t", "origin": one[0], "parent": ""}
        for one in told
    ]
    artifact.write_rows(folder, "chat/2", Chat.table(rows))
    return folder


def tokens_of(tmp_path):
    (folder,) = (tmp_path / "store" / "tokens").iterdir()
    return Tokens(folder)


def test_exercises_stand_whole_in_blocks_of_their_own_with_a_loss_on_their_answers(base, documents, tmp_path):
    # Beside 380 characters of 19 documents a fifth of all are 95, of which 76 are exercises and 19 a text: one of 51
    # characters, which is too long for a block, and four of 8, with which they are reached.
    settings = {"replay_share": 0.2, "replay_exercises": 0.8, "max_length": 32, "batch_size": 8}
    config = CptConfig(learning_rate=1e-3, epochs=1, **settings)
    metrics = cpt(config, documents=documents, base_model=base, model=tmp_path / "m", chats=mixed(tmp_path / "c"))
    assert metrics["cpt/exercises"] == 4 and metrics["cpt/too_long"] == 1
    assert metrics["cpt/replay_fraction"] == pytest.approx((20 + 4 * 8) / (20 + 4 * 8 + 380))
    tokens, tokenizer = tokens_of(tmp_path), checkpoints.load_tokenizer(base)
    assert tokens.num_rows == 19 + 1 + 4
    blocks = tokens.blocks(32, whole=4)[:]
    texts = [tokenizer.decode(ids) for ids in blocks["input_ids"]]
    # A document is 21 tokens with its end: 420 fill 13 blocks, and a last one to 4 tokens. An exercise is 11.
    assert [len(ids) for ids in blocks["input_ids"]] == [32] * 13 + [4] + [22, 22]
    assert texts[-2:] == [
        "".join(f"<|user|>add {n}{n}<|assistant|>{n}{n}<|eos|>" for n in pair) for pair in ((0, 1), (2, 3))
    ]
    masked = [[token for token in row if token != -100] for row in blocks["labels"]]
    assert tokenizer.decode(masked[-2]) == "00<|eos|>11<|eos|>" and masked[:-2] == blocks["input_ids"][:-2]


def test_texts_alone_are_replayed_unless_exercises_are_asked_for(base, documents, tmp_path):
    config = CptConfig(learning_rate=1e-3, epochs=1, batch_size=8, max_length=32, replay_share=0.2)
    assert config.idle_inputs == {"chats"} and not config.needed_inputs
    metrics = cpt(config, documents=documents, base_model=base, model=tmp_path / "m", chats=mixed(tmp_path / "c"))
    assert "cpt/exercises" not in metrics and metrics["cpt/replay_fraction"] == pytest.approx(100 / 480)
    tokens = tokens_of(tmp_path)
    assert tokens.num_rows == 19 + 5 and "labels" not in tokens.rows().column_names
    asked = config.model_copy(update={"replay_exercises": 0.5})
    assert asked.needed_inputs == {"chats"} and not asked.idle_inputs
    with pytest.raises(ValueError, match="replay_exercises: a part of nothing"):
        CptConfig(learning_rate=1e-3, epochs=1, max_length=32, replay_share=0, replay_exercises=0.5)


@pytest.mark.parametrize(
    ("settings", "exercises", "texts"),
    # 32 characters are to be learnt, as many are replayed: of 131 of exercises and 30 of texts 26 and 6; or, by what is
    # told, 32 of exercises. The first exercise has 51 characters.
    [({}, 11, 3), ({"replay_share": 0.5}, 1, 1), ({"replay_share": 0.9, "replay_exercises": 0.4}, 10, 3),
     ({"replay_share": 0.5, "replay_exercises": 1.0}, 1, 0)],
)  # fmt: skip
def test_fine_tuning_replays_by_the_same_setting(settings, exercises, texts, base, make_tasks, tmp_path):
    read = [{"task": "plain", "split": "train", "prompt": "", "reference": f"the town {n}"} for n in "abc"]
    config = SftConfig(learning_rate=1e-3, epochs=1, batch_size=8, max_length=64, num_validations=0, **settings)
    given = {"chats": mixed(tmp_path / "c"), "tasks": make_tasks(TEXT, read)}
    metrics = sft(config, **given, base_model=base, model=tmp_path / "m")
    assert metrics["sft/chats"] == 4 + exercises and metrics["sft/texts"] == texts
    assert metrics.get("sft/not_replayed", 0.0) == 14 - exercises - texts
    replayed = 51 * (exercises > 0) + 8 * (exercises - 1) + 10 * texts
    assert metrics["sft/replay_fraction"] == pytest.approx(replayed / (replayed + 32))
    assert tokens_of(tmp_path).num_rows == 4 + exercises + texts


def test_texts_of_the_domain_are_learnt_and_not_replayed(base, make_tasks, tmp_path):
    """32 characters of chats and 88 of the domain's texts are to be learnt, and as many replayed: of 131 of exercises
    and 30 of texts 97.6 and 22.4, which are reached by the exercise of 51 with six of 8, and by all three texts."""
    tasks = {**TEXT, "shop": {**TEXT["plain"], "role": "domain"}}
    read = [{"task": "plain", "split": "train", "prompt": "", "reference": f"the town {n}"} for n in "abc"]
    read += [{"task": "shop", "split": "train", "prompt": "", "reference": f"{n}" * 44} for n in "de"]
    config = SftConfig(learning_rate=1e-3, epochs=1, batch_size=8, max_length=64, num_validations=0, replay_share=0.5)
    given = {"chats": mixed(tmp_path / "c"), "tasks": make_tasks(tasks, read)}
    metrics = sft(config, **given, base_model=base, model=tmp_path / "m")
    assert metrics["sft/texts"] == 5 and metrics["sft/chats"] == 4 + 7
    assert metrics["sft/not_replayed"] == 4
    replayed = 51 + 6 * 8 + 30
    assert metrics["sft/replay_fraction"] == pytest.approx(replayed / (replayed + 120))


def test_what_is_replayed_is_in_every_epoch_of_a_mixture(base, make_tasks, tmp_path):
    settings = {"replay_share": 0.9, "mixing": {"temperature": 2}}
    config = SftConfig(learning_rate=1e-3, epochs=1, batch_size=8, max_length=64, num_validations=0, **settings)
    metrics = sft(config, chats=mixed(tmp_path / "c"), tasks=make_tasks({}, []), base_model=base, model=tmp_path / "m")
    assert metrics["sft/share_t"] == 1 and metrics["sft/chats"] == 15
    assert tokens_of(tmp_path).groups.tolist() == [0] * 4 + [-1] * 11
