"""GGUF: weights, tokenizer and template in one file that other software serves."""

import json
import shutil

import pytest
import torch
from chats import write_chats
from gguf_server import LlamaCpp

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat, for_template
from bloomery.components.core.modelling import checkpoints, gguf_tokenizer, soft_prompts, templates
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.cpt.config import RopeScalingConfig
from bloomery.components.cpt.long_context import scaled
from bloomery.components.quantisation.config import CannotRun, QuantisationConfig
from bloomery.components.quantisation.export import export
from bloomery.components.quantisation.gguf import plain_template

PAIRS = [("What's 12345 in 2019?", "don't know"), ("가격은 35,000원 ①인가요?\n\n  두 줄", "네, 그렇습니다.")]
STEPS = "1\n\n2\n\n3"
"""Two line ends before a digit that stands alone are one token of `base`."""
UNSEEN = "unseen words, 처음 보는 말 1,234.5 🙂\t끝"
QUESTION = for_template(chat("안녕? It's 2 o'clock"))


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    return write_chats(tmp_path_factory.mktemp("chats") / "chats", PAIRS)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The same with rows of super-blocks, but for those of ffn_down, and layers enough for a mix."""
    sizes = {"hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 8, "initializer_range": 0.05}
    return llama(tmp_path_factory.mktemp("wide") / "model", **sizes)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("qwen2") / "model", "Qwen2")


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("qwen3") / "model", "Qwen3", head_dim=32)


def llama(folder, kind="Llama", **sizes):
    """A Llama, or its kin, with fewer key heads than query heads, an output head of its own, more embeddings than
    tokens, and a byte-level BPE tokenizer that was learned on `PAIRS` and cuts numbers into digits."""
    import transformers
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
    from tokenizers import models as tokenizer_models

    from tests.tiny import TEMPLATE

    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|eos|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text for pair in PAIRS for text in pair] * 3, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|eos|>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    settings = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "initializer_range": 0.3,
        **sizes,
    }
    settings = getattr(transformers, f"{kind}Config")(
        vocab_size=len(fast) + 3,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        **settings,
    )
    network = getattr(transformers, f"{kind}ForCausalLM")(settings)
    for weight in network.parameters():
        if weight.ndim == 1 and kind != "Llama":
            torch.nn.init.normal_(weight, 1.0, 0.3)  # biases and norms, all zeros or ones, would be right anywhere
    checkpoints.save(folder, network, fast)
    return folder


@pytest.mark.parametrize(
    ("model", "scheme", "bits", "error"),
    [
        ("base", "gguf_q8_0", 8.5, 0.01),
        ("base", "gguf_q4_0", 4.5, 0.12),
        ("base", "gguf_q4_k_m", 5.5, 0.06),
        ("wide", "gguf_q6_k", 6.5, 0.02),
        ("qwen2", "gguf_q8_0", 8.5, 0.01),
        ("qwen3", "gguf_q8_0", 8.5, 0.01),
        ("wide", "gguf_q4_k_m", 4.5, 0.08),
    ],
)
def test_the_file_holds_the_weights_where_transformers_had_them(request, model, chats, tmp_path, scheme, bits, error):
    base = request.getfixturevalue(model)
    export(QuantisationConfig(scheme=scheme), base, chats, tmp_path / "m")
    before, _ = checkpoints.load(base)
    after, _ = checkpoints.load(tmp_path / "m")
    for name, weight in before.state_dict().items():
        assert float((after.state_dict()[name] - weight).norm() / weight.norm()) < error
    assert after.config.rope_parameters["rope_theta"] == 5000.0 and not after.config.tie_word_embeddings
    packed = sum(weight.numel() * bits / 8 for weight in before.state_dict().values() if weight.ndim == 2)
    assert packed < checkpoints.num_bytes(tmp_path / "m") < packed * 1.3


def types(file):
    """Type of each matrix in a GGUF by name."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    return {t.name: t.tensor_type.name for t in reader.tensors if len(t.shape) == 2}, reader


def test_q4_k_m_is_the_mix_of_llama_quantize(wide, chats, tmp_path):
    from gguf import LlamaFileType

    export(QuantisationConfig(scheme="gguf_q4_k_m"), wide, chats, tmp_path / "m")
    found, reader = types(tmp_path / "m/model.gguf")
    assert reader.fields["general.file_type"].contents() == LlamaFileType.MOSTLY_Q4_K_M
    assert found.pop("output.weight") == "Q6_K" and found.pop("token_embd.weight") == "Q4_K"
    for name, kind in found.items():
        more_bits = name.split(".")[1] in "0367"  # of 8 layers the first, the last, and every third from 3
        down = {False: "Q5_0", True: "Q8_0"} if "ffn_down" in name else {False: "Q4_K", True: "Q6_K"}
        assert kind == down[more_bits and ("ffn_down" in name or "attn_v" in name)], name


def test_a_soft_prompt_is_written_and_read_there_too(chats, tmp_path):
    """Of tied embeddings, whose head is taken apart, and of a template that begins with BOS."""
    network, tokenizer = checkpoints.load(llama(tmp_path / "tied", tie_word_embeddings=True))
    tokenizer.bos_token = "<|pad|>"
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    own = soft_prompts.added(network, tokenizer, 3, seed=1)
    checkpoints.save(tmp_path / "soft", soft_prompts.folded(network), own)
    export(QuantisationConfig(scheme="gguf_q8_0"), tmp_path / "soft", chats, tmp_path / "q")
    asked = templates.prompt_tokens(own, chat("안녕?"))
    assert asked[:4] == [0, *own.convert_tokens_to_ids([f"<|soft_{index}|>" for index in (1, 2, 3)])]
    server = LlamaCpp(tmp_path / "q" / "model.gguf")
    assert server.tokens(server.rendered(for_template(chat("안녕?")))) == asked
    with torch.inference_mode():
        likely = network(input_ids=torch.tensor([asked])).logits[0, -1].log_softmax(-1)
    first = server.first_token(asked)[0]
    assert first["id"] == int(likely.argmax()) and first["logprob"] == pytest.approx(float(likely.max()), abs=0.2)


@pytest.mark.parametrize("tokenizer_writes", [True, False])
@pytest.mark.parametrize("template_writes", [True, False])
def test_one_bos_begins_what_is_asked_where_it_is_served_from(chats, tmp_path, tokenizer_writes, template_writes):
    """Llama 3 has it in both, Zephyr in the tokenizer, DeepSeek V2 in the template."""
    from gguf import GGUFReader
    from tokenizers import processors

    network, tokenizer = checkpoints.load(llama(tmp_path / "plain"))
    tokenizer.bos_token = "<|pad|>"
    if tokenizer_writes:
        begin = processors.TemplateProcessing("<|pad|> $A", special_tokens=[("<|pad|>", 0)])
        tokenizer.backend_tokenizer.post_processor = begin
    if template_writes:
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    checkpoints.save(tmp_path / "bos", network, tokenizer)
    export(QuantisationConfig(scheme="gguf_q8_0"), tmp_path / "bos", chats, tmp_path / "m")

    fields = GGUFReader(tmp_path / "m/model.gguf").fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is tokenizer_writes
    _, own = checkpoints.load(tmp_path / "m")
    asked = templates.prompt_tokens(own, QUESTION)
    assert asked.count(0) == (tokenizer_writes or template_writes) and 0 not in asked[1:]
    ids, _ = templates.trained_tokens(own, [*QUESTION, {"role": "assistant", "content": "네"}])
    assert ids[: len(asked)] == asked
    server = LlamaCpp(tmp_path / "m/model.gguf")
    assert server.tokens("안녕") == templates.text_tokens(own, "안녕")
    told = server.ask("/v1/chat/completions", messages=QUESTION, max_tokens=1)
    assert told["usage"]["prompt_tokens"] == len(asked)
    assert server.tokens(server.rendered(QUESTION)) == asked


def test_q4_k_m_takes_tied_embeddings_for_the_head(chats, tmp_path):
    tied = llama(tmp_path / "tied", tie_word_embeddings=True)
    export(QuantisationConfig(scheme="gguf_q4_k_m"), tied, chats, tmp_path / "m")
    found, _ = types(tmp_path / "m/model.gguf")
    assert found["token_embd.weight"] == "Q8_0" and "output.weight" not in found
    assert [found[f"blk.{layer}.attn_v.weight"] for layer in (0, 1)] == ["Q5_0", "Q8_0"]


def test_what_is_loaded_answers_as_its_parent(base, chats, tmp_path):
    export(QuantisationConfig(scheme="gguf_q8_0"), base, chats, tmp_path / "m")
    (before, tokenizer), (after, _) = checkpoints.load(base), checkpoints.load(tmp_path / "m")
    ids = tokenizer.apply_chat_template(QUESTION, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.inference_mode():
        expected, found = (network(ids).logits.softmax(-1) for network in (before, after))
    assert float((expected - found).abs().max()) < 0.1
    assert len(Generator.load(tmp_path / "m").generate([chat("안녕")], max_new_tokens=3)) == 1


def test_the_tokenizer_inside_is_the_one_outside(base, chats, tmp_path):
    from transformers import AutoTokenizer

    export(QuantisationConfig(scheme="gguf_q8_0"), base, chats, tmp_path / "m")
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "m/model.gguf", tmp_path / "alone")
    inside = AutoTokenizer.from_pretrained(tmp_path / "alone", gguf_file="model.gguf")
    outside = AutoTokenizer.from_pretrained(base)
    for text in (*PAIRS[0], *PAIRS[1], UNSEEN, "<|user|>a<|assistant|>b<|eos|>"):
        ids = outside(text)["input_ids"]
        assert inside(text)["input_ids"] == ids and inside.decode(ids) == outside.decode(ids)
    assert inside.eos_token == "<|eos|>" and inside.pad_token == "<|pad|>" and inside.bos_token is None
    for add in (True, False):
        told = [of.apply_chat_template(QUESTION, add_generation_prompt=add) for of in (inside, outside)]
        assert told[0] == told[1]


def test_digits_that_stand_alone_are_no_other_tokenizer(base, tmp_path):
    chats = write_chats(tmp_path / "chats", [("Which?", STEPS)])
    export(QuantisationConfig(scheme="gguf_q8_0"), base, chats, tmp_path / "m")
    _, tokenizer = checkpoints.load(base)
    assert len(tokenizer(STEPS)["input_ids"]) == 5
    assert gguf_tokenizer.load(tmp_path / "m/model.gguf")(STEPS)["input_ids"] == tokenizer(STEPS)["input_ids"]


def test_what_ends_a_turn_ends_it_in_llama_cpp_too(base, chats, tmp_path):
    from gguf import GGUFReader

    other = shutil.copytree(base, tmp_path / "other")
    template = other / "chat_template.jinja"
    template.write_text(
        template.read_text().replace("<|eos|>", "<|user|>")
    )  # EOS ends a text, and another token a turn
    export(QuantisationConfig(scheme="gguf_q8_0"), other, chats, tmp_path / "m")
    fields = GGUFReader(tmp_path / "m/model.gguf").fields
    _, tokenizer = checkpoints.load(other)
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    assert fields["tokenizer.ggml.eos_token_id"].contents() == user != tokenizer.eos_token_id
    assert fields["tokenizer.ggml.eot_token_id"].contents() == user


@pytest.mark.parametrize(
    ("model", "scheme"),
    [
        ("base", "gguf_q8_0"),
        ("base", "gguf_q4_k_m"),
        ("wide", "gguf_q4_k_m"),
        ("wide", "gguf_q6_k"),
        ("qwen2", "gguf_q8_0"),
        ("qwen3", "gguf_q8_0"),
        ("qwen3", "gguf_q4_k_m"),
    ],
)
def test_llama_cpp_reads_and_answers_as_the_checkpoint(request, model, scheme, chats, tmp_path):
    export(QuantisationConfig(scheme=scheme), request.getfixturevalue(model), chats, tmp_path / "m")
    llama_cpp = LlamaCpp(tmp_path / "m/model.gguf")
    network, tokenizer = checkpoints.load(tmp_path / "m")
    text = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    assert llama_cpp.rendered(QUESTION) == text
    for each in (*PAIRS[0], *PAIRS[1], STEPS, UNSEEN, text):
        assert llama_cpp.tokens(each) == tokenizer(each)["input_ids"]
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected = network(ids).logits[0, -1].log_softmax(-1).tolist()
    found = llama_cpp.first_token(ids[0].tolist())
    assert [entry["logprob"] for entry in found] == pytest.approx([expected[e["id"]] for e in found], abs=0.3)
    assert found[0]["id"] == expected.index(max(expected))


@pytest.mark.parametrize(
    ("kind", "family", "scheme"),
    [
        ("linear", "Llama", "gguf_q8_0"),
        ("yarn", "Llama", "gguf_q8_0"),
        ("yarn", "Qwen2", "gguf_q8_0"),
        ("llama3", "Llama", "gguf_q8_0"),
        ("yarn", "Llama", "int8_weight_only"),
    ],
)
def test_every_variant_turns_positions_as_its_parent(kind, family, scheme, chats, tmp_path):
    plain = llama(tmp_path / "plain", family, max_position_embeddings=64)
    longer = scaled(plain, RopeScalingConfig(rope_type=kind, factor=4.0), tmp_path / "longer")
    export(QuantisationConfig(scheme=scheme), longer, chats, tmp_path / "m")
    (parent, tokenizer), (variant, _), (unscaled, _) = map(checkpoints.load, (longer, tmp_path / "m", plain))
    assert variant.config.max_position_embeddings == 256
    assert torch.equal(variant.model.rotary_emb.inv_freq, parent.model.rotary_emb.inv_freq)
    if scheme.startswith("gguf"):
        ids = tokenizer(9 * UNSEEN)["input_ids"][:200]
        llama_cpp = LlamaCpp(tmp_path / "m/model.gguf")
        with torch.inference_mode():
            expected, other = (
                network(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for network in (variant, unscaled)
            )
        found = {one["id"]: one["logprob"] for one in llama_cpp.first_token(ids)}
        assert found == pytest.approx({token: float(expected[token]) for token in found}, abs=0.3)
        assert max(abs(value - float(other[token])) for token, value in found.items()) > 1


def test_a_llama_3_of_another_family_is_no_variant(qwen2, chats, tmp_path):
    longer = scaled(qwen2, RopeScalingConfig(rope_type="llama3", factor=4.0), tmp_path / "longer")
    with pytest.raises(CannotRun, match="qwen2 with RoPE llama3"):
        export(QuantisationConfig(scheme="gguf_q8_0"), longer, chats, tmp_path / "m")


def test_embeddings_stay_in_16_bits_where_told(base, chats, tmp_path):
    export(QuantisationConfig(scheme="gguf_q8_0", embeddings=False), base, chats, tmp_path / "m")
    before, after = (checkpoints.load(folder)[0].state_dict() for folder in (base, tmp_path / "m"))
    name = "model.embed_tokens.weight"
    assert torch.equal(after[name], before[name].half().float())
    assert not torch.equal(after["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])


@pytest.mark.parametrize("scheme", ["gguf_q4_0", "gguf_q4_k_m"])
def test_equal_exports_have_equal_bytes(wide, chats, tmp_path, scheme):
    for again in ("1", "2"):
        export(QuantisationConfig(scheme=scheme), wide, chats, tmp_path / again)
    assert artifact.file_digest(tmp_path / "1/model.gguf") == artifact.file_digest(tmp_path / "2/model.gguf")


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        (
            "config.json",
            lambda c: c["rope_parameters"].update(rope_type="dynamic", factor=2.0),
            "llama with RoPE dynamic",
        ),
        (
            "config.json",
            lambda c: c["rope_parameters"].update(rope_type="yarn", factor=1.0, beta_fast=16.0),
            "llama with RoPE yarn",
        ),
        (
            "tokenizer.json",
            lambda c: c["pre_tokenizer"]["pretokenizers"].pop(),
            "BPE after Digits",
        ),
        (
            "tokenizer.json",
            lambda c: c["model"]["merges"].clear(),
            "gguf_q8_0: the tokenizer is byte-level BPE without a merge",
        ),
        (
            "tokenizer.json",
            lambda c: c.update(normalizer={"type": "Lowercase"}),
            "that are not the",
        ),
    ],
)
def test_what_the_file_cannot_hold_is_no_variant(base, chats, tmp_path, file, change, reason):
    copy = shutil.copytree(base, tmp_path / "copy")
    content = json.loads((copy / file).read_text())
    change(content)
    (copy / file).write_text(json.dumps(content))
    with pytest.raises(CannotRun, match=reason):
        export(QuantisationConfig(scheme="gguf_q8_0"), copy, chats, tmp_path / "m")


def test_what_is_written_otherwise_is_no_variant(tmp_path, chats):
    windows = llama(tmp_path / "w", "Qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=0)
    with pytest.raises(CannotRun, match="the model is qwen2 with sliding windows; a GGUF is written of llama, qwen2 "):
        export(QuantisationConfig(scheme="gguf_q8_0"), windows, chats, tmp_path / "m")
    other = llama(tmp_path / "other", "Mistral")
    with pytest.raises(CannotRun, match="the model is mistral; a GGUF is written of llama, qwen2 and qwen3, with the"):
        export(QuantisationConfig(scheme="gguf_q8_0"), other, chats, tmp_path / "m")


def test_rows_that_are_no_multiple_of_a_block_are_no_variant(tmp_path, chats, base):
    from transformers import LlamaConfig, LlamaForCausalLM

    _, tokenizer = checkpoints.load(base)
    settings = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    checkpoints.save(tmp_path / "odd", LlamaForCausalLM(settings), tokenizer)
    with pytest.raises(CannotRun, match="rows of 48, no multiple of 32"):
        export(QuantisationConfig(scheme="gguf_q8_0"), tmp_path / "odd", chats, tmp_path / "m")


def test_the_template_loses_its_marks_and_nothing_else():
    marked = "{% if generation %}a{% endif %}\n  {%- generation -%} b {%+ endgeneration +%}{% generation %}c"
    assert plain_template(marked) == "{% if generation %}a{% endif %}\n  {%- if true -%} b {%+ endif +%}{% if true %}c"
