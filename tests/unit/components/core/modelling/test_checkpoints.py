import itertools
import json
import os
import re
import shutil
import signal
import sys
from multiprocessing import get_context

import hub
import pytest
import torch
from published import SHARDS, in_the_makers_form_too, sharded, weights_in
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from bloomery.components.core import artifact, s3
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ModelError, ServiceError
from bloomery.components.core.modelling import checkpoints, faults, generation, inspection, tensor_files
from bloomery.components.core.modelling.generation import Generator
from bloomery.pipelines.cli import app


@pytest.fixture
def copy(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "copy")


def edit(folder, **changes):
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    for key, value in changes.items():
        settings.pop(key, None) if value is None else settings.update({key: value})
    file.write_text(json.dumps(settings))


def test_a_good_checkpoint_passes(tiny_model):
    checkpoints.check(tiny_model)
    _, tokenizer = checkpoints.load(tiny_model)
    checkpoints.check_template(tokenizer, tiny_model)


def test_every_fault_of_a_checkpoint_is_named_at_once(copy):
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    (copy / "chat_template.jinja").unlink()
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        checkpoints.check(copy)
    told = str(caught.value)
    assert "pytorch_model.bin" in told and "no chat template" in told and "no tokenizer.json" in told


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(ModelError, match="no config.json"):
        checkpoints.check(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.replace("{%- endfor -%}", ""), "syntax error"),
        (lambda t: t.replace("<|eos|>", "</s>"), "is no token of the tokenizer"),
        (lambda t: "hello", "leaves out what the assistant says"),
    ],
)
def test_a_template_that_cannot_be_made_right_is_refused(copy, change, told):
    file = copy / "chat_template.jinja"
    file.write_text(change(file.read_text()))
    _, tokenizer = checkpoints.load(copy)
    with pytest.raises(ModelError, match=told) as caught:
        checkpoints.check_template(tokenizer, copy)
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize("quantised", [True, False])
def test_what_can_be_asked_and_not_trained_is_told_so(copy, quantised):
    if quantised:
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(
            json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes"}})
        )
    else:
        (copy / "model.safetensors").rename(copy / "model.gguf")
    checkpoints.check(copy)
    with pytest.raises(ModelError, match=r"quantised \(bitsandbytes\)" if quantised else "are a GGUF"):
        checkpoints.check(copy, to_train=True)


def rewritten(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def linked_to_nothing(file):
    file.unlink()
    file.symlink_to("gone")


FAULTS = {
    "adapter": (
        lambda f: (f / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}'),
        "org/base",
    ),
    "encoder": (lambda f: rewritten(f, architectures=["BertForMaskedLM"]), "BertForMaskedLM, which does not go on"),
    "padding read as text": (lambda f: rewritten(f, model_type="rwkv"), "reads the padding of a batch as text"),
    "seq2seq": (lambda f: rewritten(f, is_encoder_decoder=True), "an encoder and a decoder"),
    "code": (lambda f: rewritten(f, model_type="mine", auto_map={"AutoConfig": "c.C"}), "trust_remote_code is off"),
    "sees both ways": (lambda f: rewritten(f, model_type="bert", architectures=["BertLMHeadModel"]), "what follows"),
    "pictures": (lambda f: rewritten(f, model_type="llava"), "has no causal language model of that type"),
    "unknown": (lambda f: rewritten(f, model_type="mine"), "has no causal language model of that type"),
    "json": (lambda f: (f / "config.json").write_text("{"), "config.json is no JSON"),
    "list": (lambda f: (f / "config.json").write_text("[]"), "config.json holds no JSON object"),
    "ends": (lambda f: (f / "generation_config.json").write_text("{"), "generation_config.json is no JSON"),
    "index": (
        lambda f: (sharded(f), (f / "model.safetensors.index.json").write_text("[]")),
        "index.json holds no JSON object",
    ),
    "the maker's own form": (
        lambda f: (f / "model.safetensors").rename(f / "consolidated.safetensors"),
        "found consolidated.safetensors; expected model.safetensors, or model.safetensors.index.json with",
    ),
    "no vocabulary": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json and no other vocabulary"),
    "link": (lambda f: linked_to_nothing(f / "model.safetensors"), "is a link to gone, which is not there"),
    "shards": (
        lambda f: sharded(f).unlink(),
        "names 2 files of weights and 1 are missing: model-00002-of-00002.safetensors",
    ),
    "cut": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "and should have",
    ),
    "pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "lfs pull",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_no_base_model_gets_one_message(copy, name):
    spoil, told = FAULTS[name]
    spoil(copy)
    with pytest.raises(ModelError, match=told) as caught:
        checkpoints.check(copy)
    assert "\n" not in str(caught.value)


def test_tokens_without_an_embedding_are_refused_unless_no_text_holds_them(copy):
    _, tokenizer = checkpoints.load(copy)
    tokenizer.add_tokens(["<picture>"])
    tokenizer.save_pretrained(copy)
    checkpoints.load(copy)
    tokenizer.chat_template = tokenizer.chat_template + "<picture>"
    tokenizer.save_pretrained(copy)
    with pytest.raises(ModelError, match="'<picture>' stand for nothing"):
        checkpoints.load(copy)


def test_padding_with_the_end_of_a_turn_changes_no_answer_and_no_gradient(tiny_model):
    model, tokenizer = checkpoints.load(tiny_model)
    asked = [chat("a"), chat("abcdefgh")]
    before = Generator(model, tokenizer).generate(asked, max_new_tokens=8)
    tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
    assert Generator(model, tokenizer).generate(asked, max_new_tokens=8) == before
    # torch would leave the pad token's embedding as it is, and here it is what ends a turn.
    ids = torch.tensor([[5, tokenizer.eos_token_id, 6]])
    model.model(input_ids=ids).last_hidden_state.sum().backward()
    assert model.get_input_embeddings().weight.grad[tokenizer.eos_token_id].abs().sum() > 0


def test_what_ends_a_turn_stands_in_the_exported_generation_config(tiny_model, tmp_path):
    model, tokenizer = checkpoints.load(tiny_model)
    model.generation_config.eos_token_id = 7
    model.generation_config.temperature = 0.6  # published so, without do_sample
    checkpoints.save(tmp_path / "m", model, tokenizer)
    stored = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert stored["eos_token_id"] == [tokenizer.eos_token_id, 7]


def test_a_written_tokenizer_does_not_say_how_it_was_loaded(tiny_model, tmp_path, monkeypatch):
    checkpoints.load_tokenizer(tiny_model).save_pretrained(tmp_path / "one")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded = checkpoints.load_tokenizer(tiny_model)
    loaded.save_pretrained(tmp_path / "two")
    one, two = (json.loads((tmp_path / name / "tokenizer_config.json").read_text()) for name in ("one", "two"))
    assert one == two and not {"is_local", "local_files_only"} & set(one)


def test_answers_do_not_depend_on_the_batch(tiny_model):
    generator = Generator.load(tiny_model)
    prompts = ["a", "a much longer question than the first one", "질문"]
    together = generator.generate([*map(chat, prompts)], max_new_tokens=8)
    alone = [generator.generate([chat(prompt)], max_new_tokens=8)[0] for prompt in prompts]
    assert together == alone


def test_sampling_is_repeatable_and_gives_as_many_as_asked(tiny_model):
    generator = Generator.load(tiny_model)
    first = generator.generate([chat("a"), chat("b")], max_new_tokens=6, num_samples=3, temperature=1.0, seed=5)
    assert [len(answers) for answers in first] == [3, 3]
    assert first == generator.generate([chat("a"), chat("b")], max_new_tokens=6, num_samples=3, temperature=1.0, seed=5)
    assert first != generator.generate([chat("a"), chat("b")], max_new_tokens=6, num_samples=3, temperature=1.0, seed=6)


def test_log_likelihood_is_that_of_the_plain_forward_pass(tiny_model):
    import torch

    generator = Generator.load(tiny_model)
    text = "hello 세계"
    ids = generator.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = generator.model(input_ids=ids, labels=ids).loss.item()
    (nats, count), _ = generator.log_likelihood([text, "a longer text that pads the first one"], max_length=256)
    assert count == ids.shape[1] - 1
    assert nats == pytest.approx(-loss * count, rel=1e-4)


def test_publish_and_fetch_bring_back_the_same_files(tiny_model, tmp_path):
    artifact.seal(tiny_model, "model/1")
    uri = checkpoints.publish(tiny_model, str(tmp_path / "store"))
    assert uri == checkpoints.publish(tiny_model, str(tmp_path / "store"))
    checkpoints.fetch(uri, tmp_path / "back")
    assert artifact.read_manifest(tmp_path / "back").digest == artifact.read_manifest(tiny_model).digest
    with pytest.raises(ModelError, match="is not there"):
        checkpoints.fetch(str(tmp_path / "nowhere"), tmp_path / "none")


def test_a_publication_that_is_killed_leaves_nothing_that_would_be_taken_for_one(tiny_model, tmp_path):
    artifact.seal(tiny_model, "model/1")
    files = [file.name for file in tiny_model.iterdir()]

    def publish(most: int) -> None:
        """Publish, and be killed before one more file than `most` is there."""
        links = itertools.count()

        def kill(event: str, _: object) -> None:
            if event == "os.link" and next(links) == most:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        checkpoints.publish(tiny_model, str(tmp_path / "models"))

    for number in range(len(files) + 1):
        process = get_context("fork").Process(target=publish, args=(number,))
        process.start()
        process.join()
        assert process.exitcode == (0 if number == len(files) else -signal.SIGKILL)
        found = list((tmp_path / "models").glob("[!.]*"))
        assert len(found) == (number == len(files))
    assert sorted(file.name for file in found[0].iterdir()) == sorted(files)


def test_on_s3_a_checkpoint_is_published_whole_or_not_at_all(tiny_model, object_store, tmp_path):
    manifest = artifact.seal(tiny_model, "model/1")
    object_store.fail("503", "PUT .*model.safetensors", times=5)
    with pytest.raises(ServiceError):
        checkpoints.publish(tiny_model, object_store.uri)
    assert not any(name.endswith(artifact.MANIFEST) for name in object_store.objects())
    object_store.fail("reset", "PUT .*model.safetensors")
    uri = checkpoints.publish(tiny_model, f"{object_store.uri}/")
    s3.put_text(f"{uri}/README.md", "a card")
    writes = sum(request.startswith("PUT") for request in object_store.requests)
    assert checkpoints.publish(tiny_model, object_store.uri) == uri
    assert sum(request.startswith("PUT") for request in object_store.requests) == writes
    object_store.fail("torn", "GET .*model.safetensors")
    checkpoints.fetch(uri, tmp_path / "back")
    assert artifact.file_digest(tmp_path / "back" / "model.safetensors") == manifest.files["model.safetensors"].sha256
    assert artifact.read_manifest(tmp_path / "back") == manifest and (tmp_path / "back" / "README.md").is_file()
    weights = f"{uri}/model.safetensors".removeprefix("s3://bucket/")
    object_store.client.delete_object(Bucket="bucket", Key=weights)
    with pytest.raises(ModelError, match="is not whole: .*no such object; publish it again"):
        checkpoints.fetch(uri, tmp_path / "half")
    with pytest.raises(ModelError, match="is not there"):
        checkpoints.fetch("s3://bucket/nowhere", tmp_path / "none")


def test_sampled_tokens_follow_the_softmax_at_a_temperature_within_the_nucleus():
    torch.manual_seed(3)
    scores = torch.log(torch.tensor([0.5, 0.3, 0.2, 0.0])).expand(4000, 4)
    # Squared probabilities at temperature 1/2: .25, .09, .04 of .38; a nucleus of .75 keeps the first two.
    cases = {(1.0, 1.0): [0.5, 0.3, 0.2, 0], (0.5, 1.0): [0.658, 0.237, 0.105, 0], (1.0, 0.75): [0.625, 0.375, 0, 0]}
    for (temperature, top_p), expected in cases.items():
        chosen = generation._choice(temperature, top_p)(None, scores)
        assert (chosen == 0).sum(1).eq(1).all() and chosen.isinf().sum(1).eq(3).all()
        shares = chosen.argmax(1).bincount(minlength=4) / 4000
        assert torch.allclose(shares, torch.tensor(expected), atol=0.025), (temperature, top_p)
        assert shares[3] == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 3}, r"9 of the weights that config.json wants .* model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, r"9 are none that config.json tells of, .*: model.layers.1.input_layernorm.weight"),
        ({"num_hidden_layers": 10**9}, r"20 tensors in all, and the config wants 1000000000 layers"),
        ({"num_hidden_layers": -1}, r"num_hidden_layers is -1; expected a whole number above 0"),
        ({"num_hidden_layers": "two"}, r"num_hidden_layers is 'two'; expected a whole number above 0"),
        ({"intermediate_size": 32}, r"6 have another shape: .*down_proj.weight \(\[32, 64\] instead of \[32, 32\]\)"),
        ({"num_attention_heads": 3}, r"config.json does not make a model: .*"),
    ],
)
def test_no_weight_is_a_random_number_or_left_out_in_silence(copy, changes, told):
    assert inspection.look(copy)["refused"] == []
    rewritten(copy, **changes)
    assert any(re.search(told, reason) for reason in inspection.look(copy)["refused"])
    runner = CliRunner().invoke(app, ["check", str(copy)])
    assert runner.exit_code == 4 and re.search(told, runner.stdout)


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"intermediate_size": 32}])
def test_what_loads_otherwise_than_it_was_written_is_refused(copy, changes):
    rewritten(copy, **changes)
    with pytest.raises(ModelError, match="config.json and the weights do not belong together"):
        checkpoints.load(copy)


def test_what_a_language_model_goes_without_is_not_missed(copy):
    """A tied head that is stored, frequencies of old files, and a head that guesses further tokens."""
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    weights["mtp.layers.0.weight"] = torch.ones(2, 2)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert inspection.look(copy)["refused"] == []
    checkpoints.load(copy)
    save_file({**weights, "model.more.weight": torch.ones(2)}, copy / "model.safetensors", {"format": "pt"})
    (reason,) = inspection.look(copy)["refused"]
    assert "1 are none that config.json tells of, and would be left out: model.more.weight" in reason


def test_only_the_weights_that_are_loaded_count(copy, tiny_model):
    in_the_makers_form_too(copy)
    assert checkpoints.num_parameters(copy) == checkpoints.num_parameters(tiny_model)
    assert {file.name for file in checkpoints.weight_files(copy)} == SHARDS
    assert {tensor.file.name for tensor in tensor_files.stored(copy).values()} == SHARDS
    assert checkpoints.num_bytes(copy) == sum((copy / name).stat().st_size for name in SHARDS)
    ours, theirs = checkpoints.load(copy)[0].state_dict(), checkpoints.load(tiny_model)[0].state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert CliRunner().invoke(app, ["check", str(copy)]).exit_code == 0
    artifact.link_tree(copy, copy.parent / "linked", ignore=faults.unread)
    assert weights_in(copy.parent / "linked") == SHARDS


def test_a_single_file_comes_before_an_index_and_a_gguf(copy):
    """As transformers looks for them."""
    single = shutil.copyfile(copy / "model.safetensors", copy.parent / "single")
    sharded(copy)
    shutil.copyfile(single, copy / "model.safetensors")
    (copy / "model.gguf").write_bytes(b"GGUF")
    assert checkpoints.weight_files(copy) == [copy / "model.safetensors"]
    checkpoints.check(copy, to_train=True)
    (copy / "model.safetensors").unlink()
    assert {file.name for file in checkpoints.weight_files(copy)} == SHARDS
    (copy / "model.safetensors.index.json").unlink()
    assert checkpoints.weight_files(copy) == [copy / "model.gguf"]


def test_the_makers_own_form_is_not_fetched_from_a_hub(copy, tmp_path, monkeypatch):
    in_the_makers_form_too(copy)
    with hub.serving(copy) as endpoint:
        hub.ask(monkeypatch, endpoint, tmp_path / "hub")
        fetched = checkpoints.named("base_model", "org/model", "main")
    assert weights_in(fetched) == SHARDS
    checkpoints.load(fetched)


def test_a_file_is_no_checkpoint(copy):
    with pytest.raises(ModelError, match="is a file; give the folder"):
        checkpoints.named("base_model", str(copy / "model.safetensors"), "main")
