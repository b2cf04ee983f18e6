"""What the trainers are told: nothing is cut by them, and their loss holds bounded logits."""

import pytest
import torch
from chats import write_chats
from transformers import LlamaConfig, LlamaForCausalLM

from bloomery.components.core.data.chats import chat
from bloomery.components.core.modelling import checkpoints, training
from bloomery.components.core.modelling.fine_tuning import FineTuningConfig, fine_tune, rows_at_once

SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="with an accelerator TRL's own tiles are in place")
@pytest.mark.parametrize(
    ("vocabulary", "tokens"),
    [(2_048, 4_096), (32_768, 512), (49_152, 512), (152_000, 512)],  # 64 MiB / 4 bytes / columns, at most 4,096
)
def test_a_tile_of_the_loss_takes_64_mebibytes(vocabulary, tokens):
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    with torch.device("meta"):
        network = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **SMALL))
    training._bound_loss(network)
    assert chunked_logprob.TOKEN_CHUNK_SIZE == tokens
    assert utils._CHUNKED_LOGPROB_CHUNK_SIZE == 32_768  # the columns that the bound counts with


def test_small_tiles_give_the_loss_and_gradients_of_large_ones(monkeypatch):
    from trl.kernels import chunked_logprob
    from trl.trainer.utils import add_fused_lm_head

    found = []
    for tokens in (4_096, 7):
        monkeypatch.setattr(chunked_logprob, "TOKEN_CHUNK_SIZE", tokens)
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=60, **SMALL))
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        ids = torch.arange(3, 43)[None]
        loss = model(input_ids=ids, labels=ids, fused_lm_head=True).loss
        loss.backward()
        found.append((loss.detach(), model.lm_head.weight.grad))
    torch.testing.assert_close(found[0], found[1])


def test_a_loss_of_some_tokens_is_that_of_all_positions_masked(monkeypatch):
    from trl.trainer import utils
    from trl.trainer.utils import add_fused_lm_head

    found = []
    for compact in (False, True):
        monkeypatch.setattr(utils, "_use_triton", lambda device, compact=compact: compact)
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=60, **SMALL))
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        ids = torch.arange(3, 43).view(2, 20)
        labels = ids.clone()
        labels[:, :13] = -100
        labels[1, 16:] = -100
        output = model(input_ids=ids, labels=labels, fused_lm_head=True)
        output.loss.backward()
        assert output.log_probs.shape == (2, 19) and output.label_mask.sum() == 10
        found.append((output.loss.detach(), output.log_probs.detach(), model.model.norm.weight.grad))
    torch.testing.assert_close(found[0], found[1])


def test_validation_batches_hold_64_rows_or_8192_tokens():
    row = {"input_ids": [1] * 128}
    assert rows_at_once([row]) == 64
    assert rows_at_once([row, {"input_ids": [1] * 2_048}]) == 4
    assert rows_at_once([{"input_ids": [1] * 20_000}]) == 1


@pytest.mark.parametrize("alpha", [None, 5.0])
def test_noise_is_added_to_embeddings_in_training_alone(alpha, tiny_model, tmp_path):
    """NEFTune's is uniform between -alpha / sqrt(L d) and alpha / sqrt(L d) (arXiv 2310.05914, algorithm 1)."""
    network, tokenizer = checkpoints.load(tiny_model)
    clean, noise = [], {True: [], False: []}  # of training, and of validation
    network.get_input_embeddings().register_forward_hook(lambda module, given, made: clean.append(made.detach()))

    def watch(module, given):
        noise[module.training].append(given[0].detach() - clean.pop())

    network.model.layers[0].register_forward_pre_hook(watch)
    pairs = [(f"say {word}", word) for word in ("ab", "cd", "ef", "gh")]
    config = FineTuningConfig(
        learning_rate=1e-3, epochs=4, batch_size=4, max_length=64, num_validations=2, neftune_alpha=alpha
    )
    watched = [{"messages": chat(*pair), "tools": ""} for pair in pairs]
    given = {"chats": write_chats(tmp_path / "c", pairs), "texts": [], "watched": watched, "where": "sft"}
    trained, _ = fine_tune(config, network, tokenizer, **given)
    assert len(noise[True]) == 4 and len(noise[False]) >= 2
    assert not any(added.any() for added in noise[False])
    most = (alpha or 0) / (11 * 32) ** 0.5  # rows of 1 + 6 + 1 + 2 + 1 tokens, 32 wide
    for added in noise[True]:
        assert added.shape == (4, 11, 32) and added.abs().max() <= most
        assert added.std().item() == pytest.approx(most / 3**0.5, rel=0.05) and abs(added.mean()) <= most / 20
    # The trained network has none left.
    noise[True].clear()
    trained.train()(input_ids=torch.arange(4, 20)[None])
    assert not noise[True][0].any()
