"""Answers and likelihoods from a model, in batches ordered by length."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bloomery.components.core.modelling import checkpoints, context, templates
from bloomery.components.core.modelling.likelihood import by_position, log_likelihoods, rows_of_logits

MAX_BATCH_TOKENS = 16_384
"""Prompts times (prompt + answer) tokens of one batch; bounds the KV cache: 512 sequences of a short-answer task,
and on two cores larger batches were no faster."""


class Generator:
    """A loaded model that answers chat prompts."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, path: Path, *, dtype: str = "auto") -> Generator:
        """Load a checkpoint folder; ModelError as in `checkpoints.load`."""
        return cls(*checkpoints.load(path, dtype=dtype, on=checkpoints.device()))

    def generate(
        self,
        prompts: Sequence[Sequence[dict[str, Any]]],
        *,
        max_new_tokens: int,
        num_samples: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        tools: Sequence[str] = (),
        composition: int = 0,
        read: Callable[[Any, Sequence[int]], Any] = templates.answer_text,
    ) -> list[list[Any]]:
        """`num_samples` answers to each conversation, in order; `tools`, where given, holds the tools of each. What
        `read` makes of a tokenizer and the tokens of an answer is returned: its text, without reasoning.

        Temperature 0 is greedy. Prompts are answered in order of length, so that a batch holds little padding; the same
        arguments give the same answers. Another `composition` answers the same prompts in smaller batches with other
        neighbours: what then changes is the noise of floating-point sums.
        Raises: DataError if a prompt names a token that the model has no embedding of.
        """
        import torch

        told = zip(prompts, tools or [""] * len(prompts), strict=True)
        asked = [templates.prompt_tokens(self.tokenizer, messages, own) for messages, own in told]
        context.check_embedded(self.model.config, self.tokenizer, lambda: max(map(max, asked), default=-1), "prompts")
        torch.manual_seed(seed)
        found = self.continued(
            asked,
            max_new_tokens=max_new_tokens,
            num_samples=num_samples,
            temperature=temperature,
            top_p=top_p,
            composition=composition,
        )
        ends = templates.end_tokens(self.tokenizer, self.model.generation_config)
        return [[read(self.tokenizer, without_end(ids, ends)) for ids in own] for own in found]

    def continued(
        self,
        asked: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        num_samples: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        composition: int = 0,
        chances_NT: Any = None,
    ) -> list[list[list[int]]]:
        """The token ids of `num_samples` answers to each prompt of token ids, in order, each with the token that ends
        it, where it ends within `max_new_tokens`; see `generate`.

        `chances_NT`, uniform in [0, 1), draws the tokens of the answers, the samples of a prompt one after the other,
        each from a number of its own, so that an answer does not hang on which others are asked for; None: torch's.
        """
        import torch
        from transformers import LogitsProcessorList

        answers: list[list[list[int]]] = [[] for _ in asked]
        ends = templates.end_tokens(self.tokenizer, self.model.generation_config)
        most_rows = rows_of_logits(self.model)
        for batch in _batches(asked, max_new_tokens, num_samples, composition, most_rows):
            ids_BL, mask_BL = left_padded([asked[index] for index in batch], templates.pad_token(self.tokenizer))
            samples = [index * num_samples + sample for index in batch for sample in range(num_samples)]
            drawn_BT = None if chances_NT is None else chances_NT[samples]
            choice = [_choice(temperature, top_p, ids_BL.shape[1], drawn_BT)] if temperature > 0 else []
            with torch.inference_mode():
                output = self.model.generate(
                    input_ids=ids_BL.to(self.model.device).repeat_interleave(num_samples, 0),
                    attention_mask=mask_BL.to(self.model.device).repeat_interleave(num_samples, 0),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,  # the choice has been made when the likeliest token is taken
                    logits_processor=LogitsProcessorList(choice),
                    eos_token_id=ends,
                    pad_token_id=templates.pad_token(self.tokenizer),
                    **without_routers(self.model),
                )
            made = [_ended(ids, ends) for ids in output[:, ids_BL.shape[1] :].tolist()]
            for position, index in enumerate(batch):
                answers[index] = made[position * num_samples : (position + 1) * num_samples]
        return answers

    def log_likelihood(self, texts: Sequence[str], *, max_length: int) -> list[tuple[float, int]]:
        """(sum of log-likelihoods in nats, number of scored tokens) of each text, cut to `max_length` tokens.

        A text is scored from its first token where the tokenizer writes a BOS before it, else from its second.
        """
        return log_likelihoods(self.model, self._cut(texts, max_length))

    def log_likelihood_by_position(self, texts: Sequence[str], *, max_length: int) -> dict[int, tuple[float, int]]:
        """(sum of log-likelihoods in nats, number of scored tokens) of all texts together, as `log_likelihood` reads
        them, by where the tokens stand; see `likelihood.by_position`."""
        return by_position(self.model, self._cut(texts, max_length))

    def _cut(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """The tokens of each text, at most `max_length` and a BOS."""
        rows = [templates.text_tokens(self.tokenizer, text) for text in texts]
        begun = [row[:1] == [self.tokenizer.bos_token_id] for row in rows]
        return [row[: max_length + bos] for row, bos in zip(rows, begun, strict=True)]


def without_routers(model: Any) -> dict[str, bool]:
    """What `generate` has to be told of a mixture of experts that is being trained, and balances its routers: they
    cannot say what they do token by token."""
    return {"output_router_logits": False} if getattr(model.config, "output_router_logits", False) else {}


def without_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """An answer's token ids without the one that ends it, if one does."""
    return ids[:-1] if ids and ids[-1] in ends else ids


def _ended(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Generated ids up to their end; what follows is padding, whichever token that is."""
    return ids[: next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))]


def left_padded(sequences: Sequence[Sequence[int]], pad: int) -> tuple[Any, Any]:
    """(ids, attention mask) [B, L] of `sequences`, which end together; the mask comes from their lengths."""
    import torch

    width = max(map(len, sequences))
    ids_BL = torch.tensor([[pad] * (width - len(ids)) + [*ids] for ids in sequences])
    mask_BL = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences])
    return ids_BL, mask_BL


def _batches(
    asked: Sequence[Sequence[int]], max_new_tokens: int, num_samples: int, composition: int, most_rows: int
) -> Iterator[list[int]]:
    """Indices of `asked` in order of length, as many at once as MAX_BATCH_TOKENS allows, and as logits of `most_rows`
    sequences, each with one vocabulary at a time."""
    chance = random.Random(composition)
    lengths = [len(ids) for ids in asked]
    # Lengths that are blurred by some tokens give each prompt other neighbours at little more padding.
    blurred = [length + (chance.uniform(0, 8) if composition else 0) for length in lengths]
    order = deque(sorted(range(len(asked)), key=lambda index: (blurred[index], asked[index])))
    while order:
        most = MAX_BATCH_TOKENS * (chance.uniform(0.25, 0.75) if composition else 1)
        batch = [order.popleft()]
        longest = lengths[batch[0]]
        while order:
            longest = max(longest, lengths[order[0]])
            sequences = (len(batch) + 1) * num_samples
            if sequences * (longest + max_new_tokens) > most or sequences > most_rows:
                break
            batch.append(order.popleft())
        yield batch


def _choice(temperature: float, top_p: float, begin: int = 0, chances_BT: Any = None) -> Any:
    """A logits processor that draws a token of each row and leaves no other possible; answers begin at `begin`.

    One uniform number a row, of `chances_BT` or, if it is None, of torch's chance, looked up in the cumulated
    probabilities. `torch.multinomial`, which transformers samples with, draws one for every token of the vocabulary on
    one core: 35 % of the time of sampling 6,400 answers from the quickstart's model.
    """
    import torch
    from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

    warpers = [TemperatureLogitsWarper(temperature), *([TopPLogitsWarper(top_p)] if top_p < 1 else [])]

    class Choice(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            for warper in warpers:
                scores = warper(input_ids, scores)
            cumulated_BV = scores.float().softmax(-1).cumsum(-1)
            total_B1 = cumulated_BV[:, -1:]
            if chances_BT is None:
                drawn_B1 = torch.rand_like(total_B1) * total_B1
            else:
                at = input_ids.shape[1] - begin
                drawn_B1 = chances_BT[:, at : at + 1].to(total_B1) * total_B1
            # Rounding may reach the total, and no token would be left.
            drawn_B1 = torch.minimum(drawn_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
            chosen_B1 = torch.searchsorted(cumulated_BV, drawn_B1, right=True)
            return torch.full_like(scores, -torch.inf).scatter(1, chosen_B1, 0.0)

    return Choice()
