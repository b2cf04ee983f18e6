"""Documents with their middle last."""

import pytest
import torch

from bloomery.components.core import artifact
from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.records import Document, content_id
from bloomery.components.cpt.config import CptConfig
from bloomery.components.cpt.infilling import KNOWN, Marks, infilled, marks
from bloomery.components.cpt.step import run as cpt

MARKS = Marks(prefix=101, suffix=102, middle=103)
END = 99


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


def test_a_models_own_marks_are_taken_and_others_added(tiny_model):
    network, tokenizer = checkpoints.load(tiny_model)
    size = len(tokenizer)
    found = marks(tokenizer, network)
    assert list(found) == tokenizer.convert_tokens_to_ids(list(KNOWN[0])) == [size, size + 1, size + 2]
    table = network.get_input_embeddings().weight
    assert table.shape[0] == size + 3
    torch.testing.assert_close(table[size], table[:size].mean(0))
    assert marks(tokenizer, network) == found and len(tokenizer) == size + 3


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_continued_pre_training_with_infilling_writes_a_checkpoint_that_knows_the_marks(share, tiny_model, tmp_path):
    artifact.seal(tiny_model, "model/1")
    facts = {"source": "s:f#1", "language": "en", "general": False, "time": "", "quality": None}
    texts = [f"def area_{n}(r): return {n} * r * r" for n in range(40)]
    rows = [{**facts, "id": content_id(text), "text": text} for text in texts]
    artifact.write_rows(tmp_path / "d", "document/2", Document.table(rows))
    config = CptConfig(learning_rate=1e-3, epochs=1, batch_size=8, max_length=64, infilling_share=share)
    cpt(config, documents=tmp_path / "d", base_model=tiny_model, model=tmp_path / "m")
    network, tokenizer = checkpoints.load(tmp_path / "m")
    assert (KNOWN[0][0] in tokenizer.get_vocab()) == bool(share)
    assert network.get_input_embeddings().weight.shape[0] == len(tokenizer)
