"""The engine on a real, tiny model: what a row draws, what it reports, what shares a batch."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque

import pytest

from bloomery.components.core.data.chats import chat
from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.modelling.generation import Generator
from bloomery.monitoring.answer import Answer
from bloomery.monitoring.engine import Engine, QueueFullError, Row, Served, decode, take
from bloomery.monitoring.serving_config import ServingConfig

PROMPTS = ["a", "how many orders are there?", "주문은 몇 건?"]


@pytest.fixture(scope="module")
def served(tiny_model) -> Served:
    import torch

    model, tokenizer = checkpoints.load(tiny_model)
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * 0.3
    return Served(model, tokenizer, "m", "1")


def make(served: Served, prompt: str, max_new_tokens: int = 12, **settings) -> Row:
    return Row(served, served.prompt_tokens(chat(prompt)), max_new_tokens=max_new_tokens, **settings)


def text_of(row: Row, *stops: str) -> Answer:
    answer = Answer(row, stops)
    answer.complete()
    return answer


def test_greedy_rows_are_those_of_the_generator(served):
    rows = [make(served, prompt) for prompt in PROMPTS]
    decode(rows)
    expected = Generator(served.model, served.tokenizer).generate([*map(chat, PROMPTS)], max_new_tokens=12)
    assert [[text_of(row).text] for row in rows] == expected


def test_log_probability_and_entropy_are_the_model_s_own(served):
    import torch

    greedy, sampled = make(served, "a"), make(served, "a", temperature=2.0, top_p=0.5, seed=1)
    decode([greedy, sampled])
    for row in (greedy, sampled):
        ids = torch.tensor([[*row.prompt, *row.tokens]])
        with torch.inference_mode():
            logits = served.model(ids).logits[0, len(row.prompt) - 1 : -1].double().log_softmax(-1)
        own = logits.gather(1, torch.tensor(row.tokens)[:, None])[:, 0]
        assert row.log_probabilities == pytest.approx(own.tolist(), abs=1e-4)
        assert row.entropies == pytest.approx((-(logits.exp() * logits).sum(-1)).tolist(), abs=1e-4)
        assert max(row.entropies) <= math.log(len(served.tokenizer))


def test_a_row_draws_the_same_whatever_shares_its_batch(served):
    def drawn(*others: Row) -> list[int]:
        row = make(served, "a", temperature=1.0, seed="7-0")
        decode([*others, row])
        return row.tokens

    alone = drawn()
    assert drawn(make(served, PROMPTS[1]), make(served, "b", temperature=2.0, top_p=0.9, max_new_tokens=3)) == alone


def test_samples_follow_the_distribution(served):
    import torch

    rows = [make(served, "a", 1, temperature=1.5, top_p=0.8, seed=index) for index in range(2000)]
    decode(rows)
    with torch.inference_mode():
        logits = served.model(torch.tensor([rows[0].prompt])).logits[0, -1]
    ordered, tokens = (logits / 1.5).softmax(-1).sort(descending=True)
    size = int((ordered.cumsum(0) < 0.8).sum()) + 1
    nucleus = ordered[:size] / ordered[:size].sum()
    counts = dict.fromkeys(tokens[:size].tolist(), 0)
    for row in rows:
        counts[row.tokens[0] if row.tokens else served.tokenizer.eos_token_id] += 1
    share = torch.tensor(list(counts.values())) / 2000
    # Seeds are fixed; 4 standard errors of a share of one half.
    assert (share - nucleus).abs().max() < 4 * math.sqrt(0.25 / 2000)


def test_a_cancelled_row_ends_with_the_next_token_and_the_others_go_on(served):
    first, second = make(served, "a"), make(served, "how?")
    lengths = [len(row.tokens) for row in (first, second)]

    def on_step(rows: list[Row]) -> None:
        lengths[:] = [len(row.tokens) for row in rows]
        first.is_cancelled = lengths[0] >= 3

    decode([first, second], on_step)
    assert len(first.tokens) == 3 and first.finish_reason == "stop"
    assert len(second.tokens) == 12 and second.finish_reason == "length"


def test_a_batch_holds_one_model_and_bounded_tokens(served):
    other = served._replace(version="2")
    long = Row(served, [5] * 9000, max_new_tokens=100)
    gone = make(served, "gone")
    gone.is_cancelled = True
    rows = deque([make(served, "a"), gone, make(served, "b"), make(other, "c"), make(other, "d"), long])
    assert [len(take(rows, 32)) for _ in range(3)] == [2, 2, 1] and not rows
    rows = deque(make(served, "a") for _ in range(5))
    assert [len(take(rows, 2)) for _ in range(3)] == [2, 2, 1]


def test_a_full_queue_refuses_and_a_closed_engine_has_answered_everything(served):
    ended = threading.Event()
    engine = Engine(ServingConfig(max_waiting=4, max_batch=2, gather_seconds=0), lambda rows: ended.wait(5))
    rows = [make(served, "a", 3) for _ in range(4)]
    engine.submit(rows)
    with pytest.raises(QueueFullError):
        engine.submit([make(served, "b") for _ in range(4)])
    ended.set()
    engine.close()
    assert all(row.finish_reason and len(row.tokens) <= 3 for row in rows) and engine.num_batches == 2
    with pytest.raises(QueueFullError):
        engine.submit([make(served, "b")])


def test_parts_of_a_text_are_sent_when_nothing_can_change_them(served):
    """Decoded bytes arrive one by one: half a Korean syllable, a trailing space and half a stop are held back."""
    tokens = served.tokenizer("안 녕 STxSTOP more", add_special_tokens=False)["input_ids"]

    async def follow(stops: list[str]) -> tuple[list[str], Answer]:
        row = make(served, "a", 100)
        answer, parts = Answer(row, stops, is_streamed=True), []

        async def feed() -> None:
            for token in tokens:
                row.tokens.append(token)
                answer.changed.set()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            row.finish_reason = "length"
            answer.changed.set()

        feeding = asyncio.ensure_future(feed())
        async for part in answer.parts():
            parts.append(part)
        await feeding
        return parts, answer

    parts, answer = asyncio.run(follow(["STOP"]))
    assert parts[:2] == ["안", " 녕"] and "".join(parts) == answer.text == "안 녕 STx"
    assert answer.finish_reason == "stop" and answer.row.is_cancelled
    parts, answer = asyncio.run(follow([]))
    assert "".join(parts) == answer.text == "안 녕 STxSTOP more" and answer.finish_reason == "length"
