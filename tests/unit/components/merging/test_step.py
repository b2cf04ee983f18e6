"""Models that were trained from one base, merged each way: written, loaded again, answering and trained further."""

import json
import shutil

import pytest
import torch
from chats import prompt_row, write_chats
from safetensors.torch import load_file, save_file

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.components.core.modelling import checkpoints, tensor_files
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.modelling.named_models import NamedModel
from bloomery.components.core.records import Document, Prompt, content_id
from bloomery.components.cpt.config import CptConfig
from bloomery.components.cpt.step import run as cpt
from bloomery.components.merging.config import MergingConfig
from bloomery.components.merging.step import run
from bloomery.components.sft.config import SftConfig
from bloomery.components.sft.step import run as sft

LETTERS = [("say ab", "ab"), ("say cd", "cd")]
DIGITS = [("count 1", "12"), ("count 3", "34")]
TASK = {"echo": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 4}}


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_model):
    """base, and two models that were fine-tuned from it, each on two questions of its own."""
    home = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_model, home / "base")
    artifact.seal(home / "base", "model/1")
    tasks = home / "tasks"
    tasks.mkdir()
    (tasks / "tasks.json").write_text(json.dumps(TASK))
    row = prompt_row(task="echo", split="test", prompt="say ab", reference="ab")
    artifact.write_rows(tasks, "prompt/2", Prompt.table([row]))
    artifact.seal(tasks, "tasks/1", rows=1)
    config = SftConfig(learning_rate=1e-2, epochs=60, batch_size=4, max_length=64, num_validations=0, keep="last")
    for name, pairs in (("letters", LETTERS), ("digits", DIGITS)):
        learnt = write_chats(home / f"{name}_chats", pairs)
        sft(config, chats=learnt, tasks=tasks, base_model=home / "base", model=home / name)
    return home


@pytest.fixture
def merge(models, tmp_path):
    def go(*, base="base", outside=None, **settings):
        out = tmp_path / f"merged-{len(list(tmp_path.iterdir()))}"
        given = settings.get("models", [piece["of"] for piece in settings.get("slices", []) if "of" in piece])
        names = list(dict.fromkeys(one["stage"] for one in given if "stage" in one))
        brought = dict(zip(("first", "second", "third", "fourth"), (models / name for name in names), strict=False))
        config = MergingConfig.model_validate(settings)
        return out, run(config, base_model=models / base, model=out, outside=outside, **brought)

    return go


def weights(folder):
    return load_file(folder / "model.safetensors")


def answers(folder, pairs):
    return [a for (a,) in Generator.load(folder).generate([chat(p) for p, _ in pairs], max_new_tokens=4)]


BOTH = [{"stage": "letters"}, {"stage": "digits"}]
WAYS = {
    "linear": {"models": BOTH},
    "slerp": {"models": BOTH, "t": 0.5},
    "task_arithmetic": {"models": BOTH, "scale": 0.8},
    "ties": {"models": BOTH, "density": 0.5},
    "dare_linear": {"models": BOTH, "density": 0.5},
    "dare_ties": {"models": BOTH, "density": 0.5},
    "passthrough": {
        "slices": [{"layers": [0, 2], "of": {"stage": "letters"}}, {"layers": [1, 2], "of": {"stage": "digits"}}]
    },
    "depth_up_scaling": {"removed_layers": 1},
}


@pytest.mark.parametrize("method", WAYS)
def test_every_way_writes_a_model_that_loads_and_answers(merge, models, method):
    out, metrics = merge(method=method, **WAYS[method])
    assert artifact.read_manifest(out, "model/1").digest
    network, tokenizer = checkpoints.load(out)
    assert network.config.tie_word_embeddings and len(tokenizer) == 260
    layers = {"passthrough": 3, "depth_up_scaling": 2}.get(method, 2)
    assert network.config.num_hidden_layers == len(network.model.layers) == metrics["merging/layers"] == layers
    assert all(torch.isfinite(weight).all() for weight in network.parameters())
    assert len(answers(out, LETTERS)) == 2
    assert metrics["merging/parameters"] == sum(weight.numel() for weight in network.parameters())
    again, _ = merge(method=method, **WAYS[method])
    assert artifact.read_manifest(again).digest == artifact.read_manifest(out).digest


def nats(folder, pairs):
    """Nats a token of chats, question and answer."""
    texts = [f"<|user|>{question}<|assistant|>{answer}<|eos|>" for question, answer in pairs]
    scores = Generator.load(folder).log_likelihood(texts, max_length=64)
    return -sum(value for value, _ in scores) / sum(count for _, count in scores)


def test_a_merged_model_knows_something_of_both(merge, models):
    assert answers(models / "letters", LETTERS) == ["ab", "cd"] and answers(models / "digits", DIGITS) == ["12", "34"]
    out, metrics = merge(method="task_arithmetic", models=BOTH, scale=0.5)
    before, after = ([nats(folder, pairs) for pairs in (LETTERS, DIGITS)] for folder in (models / "base", out))
    assert all(x < y for x, y in zip(after, before, strict=True)) and metrics["merging/relative_change"] > 0.01
    alone, _ = merge(method="task_arithmetic", models=BOTH[:1])
    assert answers(alone, LETTERS) == ["ab", "cd"]


def test_each_tensor_is_what_its_method_says(merge, models):
    base, first, second = (weights(models / name) for name in ("base", "letters", "digits"))
    name = "model.layers.1.mlp.up_proj.weight"
    assert base.keys() == first.keys() == second.keys() and "lm_head.weight" not in base  # tied
    merged = weights(merge(method="linear", models=[{**BOTH[0], "weight": 3}, BOTH[1]])[0])
    torch.testing.assert_close(merged[name], 0.75 * first[name] + 0.25 * second[name])
    added = weights(merge(method="task_arithmetic", models=[BOTH[0], {**BOTH[1], "weight": -1}], scale=0.5)[0])
    torch.testing.assert_close(added[name], base[name] + 0.5 * (first[name] - second[name]))
    dropped = weights(merge(method="dare_linear", models=BOTH[:1], density=0.25)[0])
    difference, moved = (first[name] - base[name]), (dropped[name] - base[name])
    is_kept = moved != 0
    assert 0.2 < is_kept.float().mean() < 0.3
    torch.testing.assert_close(moved[is_kept], 4 * difference[is_kept], atol=1e-6, rtol=1e-4)
    other = weights(merge(method="dare_linear", models=BOTH[:1], density=0.25, seed=5)[0])
    assert not torch.equal(other[name], dropped[name])


def test_parts_of_a_tensor_leave_no_trace(merge, monkeypatch):
    digests = []
    for part in (tensor_files.PART, 777):
        monkeypatch.setattr(tensor_files, "PART", part)
        out = merge(method="dare_ties", models=BOTH, density=0.5)[0]
        ties = merge(method="ties", models=BOTH, density=0.3)[0]
        digests.append([artifact.read_manifest(folder).files["model.safetensors"].sha256 for folder in (out, ties)])
    assert digests[0] == digests[1]


def test_layers_stand_where_the_slices_put_them(merge, models):
    out, metrics = merge(method="passthrough", **WAYS["passthrough"])
    made, first, second, base = (
        weights(folder) for folder in (out, *(models / n for n in ("letters", "digits", "base")))
    )
    rest = "mlp.down_proj.weight"
    for index, source, number in ((0, first, 0), (1, first, 1), (2, second, 1)):
        assert torch.equal(made[f"model.layers.{index}.{rest}"], source[f"model.layers.{number}.{rest}"])
    assert torch.equal(made["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert metrics["merging/models"] == 2 and "model.layers.3.mlp.down_proj.weight" not in made


def test_depth_up_scaling_overlaps_two_copies_and_continued_pre_training_heals_it(merge, models, tmp_path):
    # Four layers, of which one is left out of each copy: 0 1 2, then 1 2 3.
    four, _ = merge(method="passthrough", slices=[{"layers": [0, 2]}, {"layers": [0, 2], "of": {"stage": "digits"}}])
    out, metrics = merge(base=four, method="depth_up_scaling", removed_layers=1)
    made, source = weights(out), weights(four)
    name = "self_attn.q_proj.weight"
    assert metrics["merging/layers"] == 6
    for index, number in enumerate((0, 1, 2, 1, 2, 3)):
        assert torch.equal(made[f"model.layers.{index}.{name}"], source[f"model.layers.{number}.{name}"])
    texts = [f"number {n} is followed by number {n + 1} on every page" for n in range(60)]
    more = {"source": "s:f#1", "language": "en", "general": False, "time": "", "quality": None}
    rows = [{"id": content_id(text), "text": text, **more} for text in texts]
    artifact.write_rows(tmp_path / "docs", "document/2", Document.table(rows))
    config = CptConfig(learning_rate=5e-3, epochs=3, batch_size=4, max_length=64, validation_share=0.2)
    told = cpt(config, documents=tmp_path / "docs", base_model=out, model=tmp_path / "healed")
    assert told["cpt/domain_perplexity_after"] < 0.5 * told["cpt/domain_perplexity_before"]
    healed = weights(tmp_path / "healed")
    assert healed.keys() == made.keys()
    # Copies of one layer are trained apart.
    assert not torch.equal(healed[f"model.layers.1.{name}"], healed[f"model.layers.3.{name}"])


def changed(models, tmp_path, change, name="other"):
    """A copy of `letters` from outside, after `change` of its folder: (artifact, named model)."""
    named = NamedModel(model=f"/somewhere/{name}")
    folder = tmp_path / "outside" / named.folder
    shutil.copytree(models / "letters", folder)
    change(folder)
    artifact.seal(tmp_path / "outside", "models/1")
    return tmp_path / "outside", {"model": named.model}


def rewritten(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def reshaped(folder, change):
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def more_tokens(folder):
    tokenizer = checkpoints.load_tokenizer(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)


UNLIKE = {
    "a tensor less": (
        lambda f: reshaped(f, lambda held: held.pop("model.layers.1.mlp.up_proj.weight")),
        "/somewhere/other has no tensor layers.1.mlp.up_proj.weight, which the stage's own model has",
    ),
    "another shape": (
        lambda f: reshaped(f, lambda held: held.update({"model.norm.weight": torch.ones(16)})),
        "norm.weight is [16] in /somewhere/other and [32] in the stage's own model",
    ),
    "another number of heads": (
        lambda f: rewritten(f / "config.json", num_attention_heads=4, num_key_value_heads=4, head_dim=8),
        "num_attention_heads is 4 in /somewhere/other and 2 in the stage's own model",
    ),
    "another vocabulary": (more_tokens, "the vocabularies differ: token '<new>' is 260 in /somewhere/other and not"),
    "not a number": (
        lambda f: reshaped(f, lambda held: held["model.norm.weight"].fill_(float("nan"))),
        "model.norm.weight would hold numbers that are not finite",
    ),
    "quantised": (
        lambda f: rewritten(f / "config.json", quantization_config={"quant_method": "gptq"}),
        "the weights are quantised (gptq)",
    ),
}


@pytest.mark.parametrize("fault", UNLIKE)
def test_models_that_do_not_fit_are_refused_by_name(merge, models, tmp_path, fault):
    change, told = UNLIKE[fault]
    outside, named = changed(models, tmp_path, change)
    with pytest.raises(ModelError) as error:
        merge(method="linear", models=[BOTH[0], named], outside=outside)
    assert told in str(error.value), str(error.value)
    assert not list(tmp_path.glob(f"merged-*/{artifact.MANIFEST}"))


def test_the_base_has_no_difference_to_itself(merge, tmp_path):
    with pytest.raises(ModelError, match="the stage letters has the very weights of the stage's own model.*`from`"):
        merge(base="letters", method="ties", models=BOTH, density=0.2)
    assert not list(tmp_path.glob(f"merged-*/{artifact.MANIFEST}"))


def test_other_dtypes_files_and_settings_are_merged_into_those_of_the_base(merge, models, tmp_path, caplog):
    def as_published(folder):
        """In 16 bits, without the prefix, with a tied head and frequencies beside the weights, in two files."""
        held = {n.removeprefix("model."): w.bfloat16() for n, w in weights(folder).items()}
        held |= {"lm_head.weight": held["embed_tokens.weight"].clone(), "layers.0.rotary_emb.inv_freq": torch.ones(8)}
        (folder / "model.safetensors").unlink()
        names = sorted(held)
        files = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
        for file, own in files.items():
            save_file({name: held[name] for name in own}, folder / file, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, own in files.items() for name in own}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        rewritten(folder / "config.json", dtype="bfloat16", rms_norm_eps=1e-4)
        (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}<|eos|>")

    outside, named = changed(models, tmp_path, as_published)
    out, _ = merge(method="linear", models=[named, BOTH[1]], outside=outside)
    made, first, second = (weights(folder) for folder in (out, models / "letters", models / "digits"))
    assert made.keys() == second.keys() and {w.dtype for w in made.values()} == {torch.float32}
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(made[name], (first[name].bfloat16().float() + second[name]) / 2)
    told = caplog.text
    assert "another rms_norm_eps than" in told and "another chat template than" in told
    # And into 16 bits, where those are the base's.
    half = tmp_path / "outside" / NamedModel(model=named["model"]).folder
    artifact.seal(half, "model/1")
    back, _ = merge(base=half, method="slerp", models=BOTH, t=0.25)
    stored = tensor_files.stored(back)
    assert {one.dtype for one in stored.values()} == {"BF16"} and "lm_head.weight" not in stored
    assert len(list(back.glob("*.safetensors"))) == 1 and not (back / "model.safetensors.index.json").exists()
    assert checkpoints.load(back)[0].dtype == torch.bfloat16


def test_layers_that_are_not_there_are_refused(merge):
    with pytest.raises(ConfigError, match=r"found layers \[1, 3\]; the stage's own model has 2"):
        merge(method="passthrough", slices=[{"layers": [1, 3]}])
    with pytest.raises(ConfigError, match="removed_layers: found 2; the stage's own model has 2 layers"):
        merge(method="depth_up_scaling", removed_layers=2)


def test_a_model_that_is_named_and_not_given_is_told(models, tmp_path):
    named = [{"stage": "letters"}, {"stage": "digits"}, {"model": "org/name"}]
    config = MergingConfig.model_validate({"method": "linear", "models": named})
    with pytest.raises(ConfigError, match="digits, org/name: named in the settings, and not among the inputs"):
        run(config, base_model=models / "base", model=tmp_path / "out", first=models / "letters")
