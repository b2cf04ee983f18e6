"""Quantisation-aware training: what is trained is what is exported, and the gradient passes through the rounding."""

import pytest
import torch
from chats import write_chats

from bloomery.components.core import artifact
from bloomery.components.core.config import parse
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ConfigError
from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.modelling.calibration import calibration_rows
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.quantisation import int4, qat, rounding
from bloomery.components.quantisation.config import QatConfig, QuantisationConfig

PAIRS = [(f"say {word}", word) for word in ("ab", "cd", "ef", "gh")]
IDS = torch.arange(20)[None]
LESSONS = {"learning_rate": 1e-2, "epochs": 60, "batch_size": 4, "max_length": 64, "num_validations": 1}


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def chats(tmp_path):
    return write_chats(tmp_path / "chats", PAIRS)


@pytest.fixture
def tasks(make_tasks):
    echo = {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 4}
    rows = [{"task": "echo", "split": "validation", "prompt": p, "reference": a} for p, a in PAIRS]
    return make_tasks({"echo": echo}, rows)


def variant(**settings):
    return QuantisationConfig(scheme="int4_weight_only", **settings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("embeddings", [True, False])
def test_the_fake_quantised_model_is_the_exported_one(tiny_model, chats, tmp_path, dtype, embeddings):
    network, tokenizer = checkpoints.load(tiny_model, dtype=dtype)
    checkpoints.save(tmp_path / "m", network, tokenizer)
    int4.export(variant(embeddings=embeddings), tmp_path / "m", chats, tmp_path / "q")
    exported, _ = checkpoints.load(tmp_path / "q")
    assert exported.dtype == getattr(torch, dtype)
    layers = rounding.quantisable(network.float(), embeddings=embeddings)
    before = network(IDS).logits
    with qat.fake_quantised(network, layers, 32):
        assert torch.equal(network(IDS).logits, exported.float()(IDS).logits)
        assert torch.equal(network.lm_head.weight, exported.lm_head.weight)  # the head is tied
    assert torch.equal(network(IDS).logits, before)
    assert network.lm_head.weight is network.model.embed_tokens.weight


def test_the_gradient_passes_straight_through_the_rounding():
    layer = torch.nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-7.5, 1.2, 2.0, 3.0, 4.0, -5.0, 6.0, 7.4]]))
    weight, inputs = layer.weight, torch.arange(8.0)[None]
    with qat.fake_quantised(layer, {"": layer}, 8):
        out = layer(inputs)
        out.sum().backward()
        # The step is 1: -8, 1, 2, 3, 4, -5, 6, 7 are multiplied with 0 to 7, and their gradients are the inputs.
        assert out.item() == 1 + 4 + 9 + 16 - 25 + 36 + 49
    assert layer.weight is weight and torch.equal(weight.grad, inputs)


def test_a_trained_variant_answers_in_four_bits_and_has_the_loss_that_training_saw(tiny_model, chats, tasks, tmp_path):
    details = int4.export(variant(qat=LESSONS), tiny_model, chats, tmp_path / "q", tasks=tasks)
    assert details["trained_tokens"] == 12 and details["validation_loss"] < 0.2
    generator = Generator.load(tmp_path / "q")
    answers = generator.generate([chat(prompt) for prompt, _ in PAIRS], max_new_tokens=8)
    assert [answer for (answer,) in answers] == [answer for _, answer in PAIRS]
    rows = calibration_rows(generator.tokenizer, [{"messages": chat(*pair), "tools": ""} for pair in PAIRS])
    loss = int4._answer_loss(generator.model, rows)
    assert loss == pytest.approx(details["validation_loss"], rel=1e-4)


def test_equal_training_gives_equal_bytes_and_narrow_models_stay_narrow(tiny_model, chats, tasks, tmp_path):
    network, tokenizer = checkpoints.load(tiny_model, dtype="bfloat16")
    checkpoints.save(tmp_path / "m", network, tokenizer)
    lessons = {**LESSONS, "epochs": 2, "optimizer": "muon", "keep": "last"}
    for name in ("a", "b"):
        int4.export(variant(qat=lessons), tmp_path / "m", chats, tmp_path / name, tasks=tasks)
        artifact.seal(tmp_path / name, "model/1")
    assert artifact.read_manifest(tmp_path / "a").digest == artifact.read_manifest(tmp_path / "b").digest
    trained, _ = checkpoints.load(tmp_path / "a")
    assert trained.dtype == torch.bfloat16


def test_a_trained_variant_is_named_and_what_cannot_be_trained_is_told():
    lessons = {"max_length": 64}
    assert variant(qat=lessons, group_size=64, kv_cache_bits=8).name == "int4_weight_only_g64_qat_kv8"
    assert variant(qat=lessons).qat == QatConfig(max_length=64, learning_rate=2e-5, epochs=1)
    with pytest.raises(ConfigError, match=r"^qat: .*is for int4_weight_only; remove qat from int8_weight_only$"):
        parse(QuantisationConfig, {"scheme": "int8_weight_only", "qat": lessons})
    with pytest.raises(ConfigError, match=r"^qat.adapter: .*remove adapter$"):
        parse(QuantisationConfig, {"scheme": "int4_weight_only", "qat": {**lessons, "adapter": {"rank": 4}}})
