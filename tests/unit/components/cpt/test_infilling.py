"""Documents with their middle last."""

import copy
import lzma

import outside
import pytest
import torch
from tokenizers import processors

from bloomery.components.core import artifact
from bloomery.components.core.errors import ConfigError
from bloomery.components.core.modelling import checkpoints, soft_prompts, templates
from bloomery.components.core.modelling.token_shards import Tokens
from bloomery.components.core.records import Document, content_id
from bloomery.components.cpt.config import CptConfig
from bloomery.components.cpt.infilling import KNOWN, Marks, infilled, marks
from bloomery.components.cpt.step import _encode
from bloomery.components.cpt.step import run as cpt

MARKS = Marks(prefix=101, suffix=102, middle=103)
END = 99
CONFIG = CptConfig(learning_rate=1e-3, epochs=1, batch_size=8, max_length=64, infilling_share=1)


def test_nothing_is_lost_and_the_end_stays():
    documents = [[*range(1, length), END] for length in range(4, 60)]
    made = [infilled(ids, 1.0, MARKS, seed=17) for ids in documents]
    for ids, row in zip(documents, made, strict=True):
        assert row[-1] == END and row[0] == MARKS.prefix
        assert sorted(set(row) - set(MARKS)) == sorted(ids)
        *text, _ = row
        at_suffix, at_middle = text.index(MARKS.suffix), text.index(MARKS.middle)
        prefix, suffix, middle = text[1:at_suffix], text[at_suffix + 1 : at_middle], text[at_middle + 1 :]
        if at_suffix == 1:  # suffix first, and then the beginning and the middle as one; or an empty beginning
            assert middle + suffix == ids[:-1]
        else:
            assert prefix + middle + suffix == ids[:-1]
    assert 10 < sum(row[1] == MARKS.suffix for row in made) < 46


def test_a_share_of_documents_is_cut_the_same_ones_each_time():
    documents = [[n, n + 1, n + 2, n + 3, END] for n in range(1_000)]
    made = [infilled(ids, 0.3, MARKS, seed=17) for ids in documents]
    cut = [row != ids for row, ids in zip(made, documents, strict=True)]
    assert 250 < sum(cut) < 350
    assert made == [infilled(ids, 0.3, MARKS, seed=17) for ids in documents]
    assert made != [infilled(ids, 0.3, MARKS, seed=18) for ids in documents]
    assert infilled([1, 2, END], 1.0, MARKS, seed=17) == [1, 2, END]  # too short to be cut


def test_the_token_that_begins_a_text_stays_before_the_marks(tiny_model):
    bos, (prefix, suffix, middle) = 98, MARKS
    made = {tuple(infilled([bos, 1, 2, 3, END], 1.0, MARKS, seed, bos)) for seed in range(200)}
    cuts = [(first, second) for first in range(4) for second in range(first, 4)]
    text = [1, 2, 3]
    parts = [(text[:first], text[first:second], text[second:]) for first, second in cuts]
    assert made == {
        *((bos, prefix, *begin, suffix, *end, middle, *gap, END) for begin, gap, end in parts),
        *((bos, prefix, suffix, *end, middle, *begin, *gap, END) for begin, gap, end in parts),
    }
    assert infilled([bos, 1, 2, END], 1.0, MARKS, 17, bos) == [bos, 1, 2, END]  # too short to be cut

    network, tokenizer = checkpoints.load(tiny_model)
    tokenizer.bos_token = "<|user|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<|user|> $A", special_tokens=[("<|user|>", tokenizer.bos_token_id)]
    )
    found = marks(tokenizer, network, CONFIG)
    read = _encode(tokenizer, CONFIG, found, False, ("domain_characters", ["The sky is blue."])).ids.tolist()
    asked = templates.text_tokens(tokenizer, f"{KNOWN[0][0]}The")
    assert read[:2] == asked[:2] == [tokenizer.bos_token_id, found.prefix] and read[-1] == tokenizer.eos_token_id


def test_a_models_own_marks_are_taken_and_others_added(tiny_model):
    network, tokenizer = checkpoints.load(tiny_model)
    size = len(tokenizer)
    found = marks(tokenizer, network, CONFIG)
    assert list(found) == tokenizer.convert_tokens_to_ids(list(KNOWN[0])) == [size, size + 1, size + 2]
    table = network.get_input_embeddings().weight
    assert table.shape[0] == size + 3
    torch.testing.assert_close(table[size], table[:size].mean(0))
    assert marks(tokenizer, network, CONFIG) == found and len(tokenizer) == size + 3


def test_marks_in_rows_that_pad_the_embeddings_begin_as_the_mean_too(tiny_model):
    network, tokenizer = checkpoints.load(tiny_model)
    network.resize_token_embeddings(size := len(tokenizer) + 12, mean_resizing=False)
    before = network.get_input_embeddings().weight.detach().clone()
    found = marks(tokenizer, network, CONFIG)
    table = network.get_input_embeddings().weight
    torch.testing.assert_close(table[list(found)], before[: found.prefix].mean(0).expand(3, -1))
    assert table.shape[0] == size and torch.equal(table[found.middle + 1 :], before[found.middle + 1 :])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"adapter": {"rank": 2}}, "which an adapter leaves as they are, so that all three stayed the same"),
        ({"trained": "bias"}, "which trained: bias leaves"),
        ({"trained": "head"}, "which trained: head leaves"),
    ],
)
def test_marks_that_would_not_be_learnt_are_refused(settings, told, tiny_model):
    network, tokenizer = checkpoints.load(tiny_model)
    config = CONFIG.model_validate({**CONFIG.model_dump(), **settings})
    if config.trained == "head":  # that of the tiny model is its embedding
        marks(copy.deepcopy(tokenizer), copy.deepcopy(network), config)
        soft_prompts._take_head_apart(network)
    with pytest.raises(ConfigError, match=f"found 1, and the model has no tokens for it; .* {told}"):
        marks(tokenizer, network, config)
    assert marks(tokenizer, network, CONFIG) == marks(tokenizer, network, config)  # which takes those of the model


@pytest.mark.parametrize("names", KNOWN)
def test_the_marks_of_every_family_are_its_own(names, tiny_model):
    network, tokenizer = checkpoints.load(tiny_model)
    tokenizer.add_tokens(list(names))
    found = marks(tokenizer, network, CONFIG)
    assert tokenizer.convert_ids_to_tokens(list(found)) == list(names)
    # Nothing is added, neither to the tokenizer nor to the model, whose embeddings are its publisher's to give.
    assert len(tokenizer) == max(found) + 1 and network.get_input_embeddings().weight.shape[0] == min(found)


@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3"])
def test_published_tokenizers_have_marks(name, tiny_model, tmp_path):
    for file in outside.folder("BLOOMERY_DATA", "tokenizers", name).iterdir():
        content = file.read_bytes()
        (tmp_path / file.name.removesuffix(".xz")).write_bytes(
            lzma.decompress(content) if file.suffix == ".xz" else content
        )
    tokenizer = checkpoints.load_tokenizer(tmp_path)
    found = marks(tokenizer, None, CONFIG)
    expected = {"qwen3": KNOWN[0], "deepseek_v3": KNOWN[2]}[name]
    assert tokenizer.convert_ids_to_tokens(list(found)) == list(expected) and len(set(found)) == 3
    # Written into a text they are one token each, so that an editor can ask with them.
    assert tokenizer("".join(expected), add_special_tokens=False)["input_ids"] == list(found)


@pytest.mark.parametrize(("share", "own"), [(0.0, False), (0.5, False), (0.5, True)])
def test_continued_pre_training_reads_documents_with_the_marks_of_the_model_or_its_own(
    share, own, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setenv("BLOOMERY_STORE", str(tmp_path / "store"))
    base, names = tmp_path / "base", KNOWN[1 if own else 0]
    network, tokenizer = checkpoints.load(tiny_model)
    size = len(tokenizer)
    if own:  # as StarCoder has them
        tokenizer.add_tokens(list(names), special_tokens=True)
        network.resize_token_embeddings(len(tokenizer))
    checkpoints.save(base, network, tokenizer)
    facts = {"source": "s:f#1", "language": "en", "general": False, "time": "", "quality": None}
    texts = [f"def area_{n}(r): return {n} * r * r" for n in range(40)]
    rows = [{**facts, "id": content_id(text), "text": text} for text in texts]
    artifact.write_rows(tmp_path / "d", "document/2", Document.table(rows))
    config = CONFIG.model_copy(update={"infilling_share": share})
    cpt(config, documents=tmp_path / "d", base_model=base, model=tmp_path / "m")
    network, tokenizer = checkpoints.load(tmp_path / "m")
    added = [name for family in KNOWN for name in family if name in tokenizer.get_vocab()]
    assert added == (list(names) if share else [])
    assert network.get_input_embeddings().weight.shape[0] == len(tokenizer) == size + len(added)
    (folder,) = (tmp_path / "store" / "tokens").iterdir()
    read = Tokens(folder).rows()["input_ids"][:]
    cut = [row for row in read if set(row) & set(range(size, size + 3))]
    assert all(set(range(size, size + 3)) < set(row) and row[0] == size for row in cut)
    assert 8 < len(cut) < 32 if share else not cut
