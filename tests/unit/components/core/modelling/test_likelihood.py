"""Likelihoods in pieces are those of the plain logits, whatever an architecture does to them."""

import pytest
import torch
import transformers

from bloomery.components.core.modelling import generation, likelihood
from bloomery.components.core.modelling.likelihood import by_position, log_likelihoods

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Small caps and large scales: an architecture whose step between states and logits is forgotten is then far off.
MODELS = {
    "llama": transformers.LlamaConfig(**SMALL),
    "gemma2": transformers.Gemma2Config(**SMALL, head_dim=16, final_logit_softcapping=0.5),
    "gemma3": transformers.Gemma3TextConfig(**SMALL, head_dim=16, final_logit_softcapping=0.5),
    "granite": transformers.GraniteConfig(**SMALL, logits_scaling=8.0),
    "cohere": transformers.CohereConfig(**SMALL, logit_scale=4.0),
    "gpt2": transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2),
    "tied": transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
}
ROWS = [[3, 4, 5], [7], [], [8, 9, 10, 11, 12, 13, 14, 15, 16], [20, 21], list(range(30, 60))]


def make(name: str):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[name]).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8)  # logits far from zero, where caps bite
    return model


def plain(model, row: list[int], scored: list[bool]) -> tuple[float, int]:
    if len(row) < 2:
        return 0.0, 0
    with torch.no_grad():
        logits_LV = model(torch.tensor([row])).logits[0, :-1].double()
    nats = torch.log_softmax(logits_LV, -1).gather(-1, torch.tensor(row)[1:, None])[:, 0]
    kept = torch.tensor(scored[1:], dtype=torch.bool)
    return float(nats[kept].sum()), int(kept.sum())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("most_tokens", [8_192, 16])
def test_pieces_give_what_the_plain_logits_give(name, most_tokens, monkeypatch):
    monkeypatch.setattr(likelihood, "LOGIT_BYTES", 7 * 4 * 96)  # seven positions at once
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", most_tokens)
    model = make(name)
    scored = [[position % 3 != 1 for position in range(len(row))] for row in ROWS]
    found = log_likelihoods(model, ROWS, scored)
    for (nats, count), row, marks in zip(found, ROWS, scored, strict=True):
        expected, number = plain(model, row, marks)
        assert count == number and nats == pytest.approx(expected, rel=1e-5, abs=1e-5)
    whole = log_likelihoods(model, ROWS)
    assert [count for _, count in whole] == [2, 0, 0, 8, 1, 29]
    assert whole[3][0] == pytest.approx(plain(model, ROWS[3], [True] * 9)[0], rel=1e-5)


def test_positions_are_told_in_parts_each_twice_as_long(monkeypatch):
    monkeypatch.setattr(likelihood, "NEAR", 4)
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 32)
    model = make("llama")
    found = by_position(model, ROWS)
    # Positions 1 to 3, 4 to 7, 8 to 15 and 16 to 29; the rows have 3, 9, 2 and 30 tokens.
    assert {begin: count for begin, (_, count) in found.items()} == {0: 2 + 3 + 1 + 3, 4: 4 + 4, 8: 1 + 8, 16: 14}
    expected = dict.fromkeys(found, 0.0)
    for row in ROWS:
        for at in range(1, len(row)):
            begin = max(begin for begin in expected if begin <= at)
            expected[begin] += plain(model, row[: at + 1], [False] * at + [True])[0]
    assert {begin: nats for begin, (nats, _) in found.items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_head_is_known_of_every_family(name):
    with torch.no_grad():
        assert likelihood.output_head(make(name), [3, 4, 5]) is not None


def test_an_architecture_that_does_something_unknown_is_read_plainly():
    model = make("llama")
    original = model.forward

    def bent(*args, **kwargs):
        output = original(*args, **kwargs)
        output.logits = output.logits.abs()
        return output

    model.forward = bent
    with torch.no_grad():
        assert likelihood.output_head(model, [3, 4, 5]) is None
    ((nats, _),) = log_likelihoods(model, [[3, 4, 5, 6]])
    assert nats == pytest.approx(plain(model, [3, 4, 5, 6], [True] * 4)[0], rel=1e-5)


def test_an_adapter_counts():
    from peft import LoraConfig, get_peft_model

    model = make("llama")
    before = log_likelihoods(model, [ROWS[3]])
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    for parameter in (p for name, p in adapted.named_parameters() if "lora_B" in name):
        torch.nn.init.normal_(parameter)
    ((nats, count),) = log_likelihoods(adapted.eval(), [ROWS[3]])
    expected, _ = plain(adapted, ROWS[3], [True] * 9)
    assert nats == pytest.approx(expected, rel=1e-5) and count == 8
    assert abs(nats - before[0][0]) > 0.1


def test_logits_never_exceed_their_bytes(monkeypatch):
    monkeypatch.setattr(likelihood, "LOGIT_BYTES", 4 * 4 * 96)
    model, seen = make("llama"), []
    model.lm_head.register_forward_hook(lambda module, given, made: seen.append(made.nbytes))
    log_likelihoods(model, [list(range(3, 60))] * 5)
    assert max(seen[2:]) == 4 * 4 * 96  # after the two of the probe
    assert len(seen) == 2 + -(-5 * 56 // 4)


def test_answers_are_sampled_for_no_more_rows_than_their_logits_allow():
    asked = [[1, 2, 3]] * 10
    assert [len(batch) for batch in generation._batches(asked, 4, 1, 0, most_rows=4)] == [4, 4, 2]
    assert [len(batch) for batch in generation._batches(asked, 4, 3, 0, most_rows=7)] == [2] * 5
    assert [len(batch) for batch in generation._batches(asked, 4, 3, 0, most_rows=1)] == [1] * 10
