"""More positions by a scaled RoPE, which the checkpoint tells all that load it."""

import json
import math
import shutil

import pytest
import torch

from bloomery.components.core import artifact, tracking
from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.modelling.context import context_tokens
from bloomery.components.core.records import Document
from bloomery.components.cpt.config import CptConfig, RopeScalingConfig
from bloomery.components.cpt.long_context import check, scaled
from bloomery.components.cpt.step import run as cpt

PLAIN = [10_000.0 ** (-2 * n / 16) for n in range(8)]
"""Frequencies of the tiny model, whose heads are 16 wide."""


def rope(kind, factor=4.0):
    return RopeScalingConfig(rope_type=kind, factor=factor)


def frequencies(folder):
    network, _ = checkpoints.load(folder)
    return network.model.rotary_emb.inv_freq.tolist(), network.model.rotary_emb.attention_scaling


def test_linear_presses_all_positions_together(tiny_model, tmp_path):
    found, sharpened = frequencies(scaled(tiny_model, rope("linear"), tmp_path / "m"))
    assert found == pytest.approx([frequency / 4 for frequency in PLAIN]) and sharpened == 1


def test_yarn_keeps_fast_frequencies_and_sharpens_attention(tiny_model, tmp_path):
    found, sharpened = frequencies(scaled(tiny_model, rope("yarn"), tmp_path / "m"))
    # In 256 positions a frequency turns 256 f / 2 pi times: 40.7, 12.9, 4.1, 1.3 and less. What turns more than 32
    # times stays, what turns less than once is divided by 4, and those between are between.
    assert found[0] == pytest.approx(PLAIN[0]) and found[4:] == pytest.approx([one / 4 for one in PLAIN[4:]])
    assert all(plain / 4 < one < plain for one, plain in zip(found[1:4], PLAIN[1:4], strict=True))
    assert sharpened == pytest.approx(0.1 * math.log(4) + 1)


def test_llama3_divides_slow_frequencies_alone(tiny_model, tmp_path):
    found, sharpened = frequencies(scaled(tiny_model, rope("llama3"), tmp_path / "m"))
    # Four turns are enough to stay, one to be divided.
    assert found[:3] == pytest.approx(PLAIN[:3]) and found[4:] == pytest.approx([one / 4 for one in PLAIN[4:]])
    assert PLAIN[3] / 4 < found[3] < PLAIN[3] and sharpened == 1


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_what_is_scaled_is_scaled_further_by_its_own_type(kind, tiny_model, tmp_path):
    stored = json.loads((tiny_model / "config.json").read_text())
    once = scaled(tiny_model, rope(kind, 2.0), tmp_path / "once")
    twice = scaled(once, rope(kind, 2.0), tmp_path / "twice")
    assert frequencies(twice) == frequencies(scaled(tiny_model, rope(kind), tmp_path / "m"))
    assert json.loads((twice / "config.json").read_text())["max_position_embeddings"] == 1024
    assert json.loads((tiny_model / "config.json").read_text()) == stored  # whose files are linked, not changed
    other = "linear" if kind == "yarn" else "yarn"
    with pytest.raises(ModelError, match=f"found RoPE of type {kind} in the config of this llama; {other} scales"):
        scaled(once, rope(other), tmp_path / "other")


def test_a_config_of_older_words_is_read(tiny_model, tmp_path):
    older = shutil.copytree(tiny_model, tmp_path / "older")
    told = json.loads((older / "config.json").read_text())
    del told["rope_parameters"]
    told |= {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    (older / "config.json").write_text(json.dumps(told))
    found, _ = frequencies(scaled(older, rope("linear"), tmp_path / "m"))
    assert found == pytest.approx([500.0 ** (-2 * n / 16) / 8 for n in range(8)])


def test_what_has_no_rope_that_can_be_scaled_is_refused(tmp_path):
    from transformers import Gemma3TextConfig, GPT2Config

    GPT2Config().save_pretrained(tmp_path / "gpt2")
    Gemma3TextConfig().save_pretrained(tmp_path / "gemma3")
    for name in ("gpt2", "gemma3"):
        with pytest.raises(ModelError, match=f"found no RoPE that is one for all layers in the config of this {name}"):
            scaled(tmp_path / name, rope("yarn"), tmp_path / "m")
    with pytest.raises(ModelError, match="Linear of transformers does not turn positions by its rope_parameters"):
        check(torch.nn.Linear(1, 1), rope("yarn"))


@pytest.fixture
def documents(tmp_path):
    """Long documents, of which two are held out; a token is a byte."""
    facts = {"source": "s:f#1", "language": "en", "time": "", "quality": None, "general": False}
    texts = ["".join(f"{start + n} is before {start + n + 1}. " for n in range(25)) for start in range(12)]
    rows = [{**facts, "id": f"{'0' if n < 2 else 'f'}{n:015x}", "text": text} for n, text in enumerate(texts)]
    artifact.write_rows(tmp_path / "d", "document/2", Document.table(rows))
    return tmp_path / "d"


def test_rows_longer_than_the_positions_are_refused(tiny_model, documents, tmp_path):
    artifact.seal(tiny_model, "model/1")
    config = CptConfig(learning_rate=1e-3, epochs=1, max_length=257, replay_share=0)
    with pytest.raises(ConfigError, match="cpt: rows have up to 257 tokens and the model knows 256 positions"):
        cpt(config, documents=documents, base_model=tiny_model, model=tmp_path / "m")
    more = config.model_copy(update={"rope_scaling": rope("yarn", 1.5), "max_length": 385})
    with pytest.raises(ConfigError, match="cpt: rows have up to 385 tokens and the model knows 384 positions"):
        cpt(more, documents=documents, base_model=tiny_model, model=tmp_path / "m")


def test_a_longer_context_is_learnt_measured_by_position_and_written(tiny_model, documents, tmp_path):
    artifact.seal(tiny_model, "model/1")
    settings = {"max_length": 384, "batch_size": 4, "rope_scaling": rope("yarn", 1.5), "replay_share": 0}
    config = CptConfig(learning_rate=1e-2, epochs=4, **settings)
    with tracking.track("cpt", {}) as tracker:
        metrics = cpt(config, documents=documents, base_model=tiny_model, model=tmp_path / "m")
    rows = tracker.shown["perplexity_by_position"]["domain"]
    assert [begin for begin, *_ in rows] == [0, 32, 64, 128, 256] and "general" not in tracker.shown
    # Of two held-out documents the first 384 tokens, of which the first has nothing before it.
    assert [count for *_, count in rows] == [2 * 31, 2 * 32, 2 * 64, 2 * 128, 2 * 128]
    assert all(metrics[f"cpt/domain_perplexity_from_{begin}"] == after for begin, _, after, _ in rows)
    assert all(after < 0.7 * before for _, before, after, _ in rows)
    nats = sum(count * math.log(after) for *_, after, count in rows)
    whole = math.exp(nats / sum(count for *_, count in rows))
    assert metrics["cpt/domain_perplexity_after"] == pytest.approx(whole)

    network, tokenizer = checkpoints.load(tmp_path / "m")
    assert context_tokens(network.config, tokenizer) == tokenizer.model_max_length == 384
    told = json.loads((tmp_path / "m" / "config.json").read_text())
    expected = {"rope_type": "yarn", "factor": 1.5, "original_max_position_embeddings": 256, "rope_theta": 10_000.0}
    assert told["rope_parameters"] == expected and told["max_position_embeddings"] == 384
    assert {path.name for path in tmp_path.iterdir()} == {"d", "m"}  # nothing is left beside it
