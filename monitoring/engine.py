"""Answers in batches: requests that wait together are decoded together, each with sampling of its own.

B is the rows of a batch, L tokens of a prompt, V the vocabulary.

The chat template, the padding and the greedy choice are those of `core/modelling/generation.py`, so that what was
evaluated is what is served. A request stays with the model that it was taken for: while the champion changes, the old
one answers what it had, and no answer comes half from each.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bloomery.components.core.modelling import adapter_folders, templates
from bloomery.components.core.modelling.context import check_embedded, context_tokens
from bloomery.components.core.modelling.generation import MAX_BATCH_TOKENS, left_padded
from bloomery.monitoring.serving_config import ServingConfig

logger = logging.getLogger(__name__)


class Served(NamedTuple):
    """A loaded model under its name in the registry, or one of the adapters on it under its own."""

    model: Any
    tokenizer: Any
    name: str
    version: str
    """Of the registered model, also where an adapter on it answers."""
    adapter: str | None = None
    """PEFT's name of the adapter that answers; '': none of those that are there; None: the model as it was loaded."""

    @property
    def context_tokens(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return context_tokens(self.model.config, self.tokenizer)

    @property
    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        return templates.end_tokens(self.tokenizer, getattr(self.model, "generation_config", None))

    def prompt_tokens(self, messages: Sequence[dict[str, Any]], tools: str = "") -> list[int]:
        """The token ids of a conversation, as the model is asked to go on with it. Raises: DataError if it names a
        token that the model has no embedding of."""
        ids = templates.prompt_tokens(self.tokenizer, messages, tools)
        check_embedded(self.model.config, self.tokenizer, lambda: max(ids, default=-1), "messages")
        return ids


class Row:
    """One answer in the making; its lists are appended to by the thread that decodes, and may be read by any."""

    def __init__(
        self,
        served: Served,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | str | None = None,
    ) -> None:
        """Temperature 0 is greedy; the same `seed` draws the same answer, whatever else is in the batch."""
        self.served = served
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_p = top_p
        self.random = random.Random(seed)
        self.tokens: list[int] = []
        """Ids of the answer, without its end."""
        self.log_probabilities: list[float] = []
        """Of each token, in nats, at temperature 1."""
        self.entropies: list[float] = []
        """Of the distribution that each token was chosen from, in nats, at temperature 1."""
        self.finish_reason = ""
        """`stop` (an end or cancelled), `length` or `error`; '' while more may come."""
        self.is_cancelled = False
        """Set by whoever needs no more tokens: the row ends with the next."""


class QueueFullError(Exception):
    """As many rows wait as may."""


class Engine:
    """Decodes waiting rows in a thread of its own.

    `on_step` is called from that thread after every token with the rows of the batch.
    """

    def __init__(self, config: ServingConfig, on_step: Callable[[list[Row]], None]) -> None:
        self._config = config
        self._on_step = on_step
        self._waiting: deque[Row] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self.num_batches = 0
        """Batches decoded so far."""
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Rows that no batch has taken yet."""
        return len(self._waiting)

    def submit(self, rows: Sequence[Row]) -> None:
        """Queue rows. Raises: QueueFullError, and then none is queued."""
        with self._changed:
            if self._is_closed or len(self._waiting) + len(rows) > self._config.max_waiting:
                raise QueueFullError
            self._waiting.extend(rows)
            self._changed.notify()

    def close(self) -> None:
        """Answer what waits, and take no more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            self.num_batches += 1
            try:
                decode(batch, self._on_step)
            except Exception:  # one batch that does not fit in memory must not end the service
                logger.exception("a batch of %d rows was not answered", len(batch))
                for row in batch:
                    row.finish_reason = row.finish_reason or "error"
                self._on_step(batch)

    def _next_batch(self) -> list[Row] | None:
        """The rows that have waited longest and make a batch; None when all is done."""
        config = self._config
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                self._changed.wait_for(
                    lambda: len(self._waiting) >= config.max_batch or self._is_closed, config.gather_seconds
                )
                if not self._waiting:
                    return None
                if batch := take(self._waiting, config.max_batch):
                    return batch


def take(waiting: deque[Row], limit: int) -> list[Row]:
    """Remove the first rows of `waiting` that make a batch: of one model and adapter, at most `limit`, within
    MAX_BATCH_TOKENS."""
    batch: list[Row] = []
    longest = 0
    while waiting and len(batch) < limit:
        row = waiting[0]
        if not row.is_cancelled:
            longest = max(longest, len(row.prompt) + row.max_new_tokens)
            is_over = (len(batch) + 1) * longest > MAX_BATCH_TOKENS
            if batch and (is_over or row.served is not batch[0].served):
                break
            batch.append(row)
        waiting.popleft()
    return batch


def decode(rows: list[Row], on_step: Callable[[list[Row]], None] = lambda rows: None) -> None:
    """Answer `rows`, all of one model and adapter, as one batch; `on_step` is called after every token."""
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    model, tokenizer = rows[0].served.model, rows[0].served.tokenizer
    pad, ends = templates.pad_token(tokenizer), rows[0].served.ends
    ids_BL, mask_BL = left_padded([row.prompt for row in rows], pad)
    choice = _Choice(rows)

    def progress(input_ids: Any, scores: Any, **_: Any) -> Any:
        choice.record(input_ids[:, -1].tolist(), ends)
        on_step(rows)
        return torch.tensor([bool(row.finish_reason) for row in rows], device=input_ids.device)

    with torch.inference_mode(), adapter_folders.active(model, rows[0].served.adapter):
        model.generate(
            input_ids=ids_BL.to(model.device),
            attention_mask=mask_BL.to(model.device),
            max_new_tokens=max(row.max_new_tokens for row in rows),
            do_sample=False,  # the choice has been made when the likeliest token is taken
            logits_processor=LogitsProcessorList([choice]),
            stopping_criteria=StoppingCriteriaList([progress]),
            eos_token_id=ends,
            pad_token_id=pad,
        )


class _Choice:
    """A logits processor that draws a token for each row by the row's own settings and leaves no other possible."""

    def __init__(self, rows: list[Row]) -> None:
        import torch

        self._rows = rows
        self._sampled = [index for index, row in enumerate(rows) if row.temperature > 0]
        drawn = [rows[index] for index in self._sampled]
        self._temperature_B1 = torch.tensor([[row.temperature] for row in drawn])
        self._top_p_B1 = torch.tensor([[row.top_p] for row in drawn])
        self._log_probabilities: list[float] = []
        self._entropies: list[float] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        log_probabilities_BV = scores.log_softmax(-1)
        chosen_B1 = scores.argmax(-1, keepdim=True)
        if self._sampled:
            chosen_B1[self._sampled] = self._draw(scores[self._sampled])
            scores = torch.full_like(scores, -torch.inf).scatter(1, chosen_B1, 0.0)
        self._log_probabilities = log_probabilities_BV.gather(1, chosen_B1)[:, 0].tolist()
        self._entropies = torch.special.entr(log_probabilities_BV.exp()).sum(-1).tolist()
        return scores

    def record(self, tokens: list[int], ends: Sequence[int]) -> None:
        """Add the chosen token to every row that has not ended, and end those that are done."""
        for index, (row, token) in enumerate(zip(self._rows, tokens, strict=True)):
            if row.finish_reason:
                continue
            if token in ends or row.is_cancelled:
                row.finish_reason = "stop"
                continue
            row.tokens.append(token)
            row.log_probabilities.append(self._log_probabilities[index])
            row.entropies.append(self._entropies[index])
            if len(row.tokens) == row.max_new_tokens:
                row.finish_reason = "length"

    def _draw(self, scores_BV: Any) -> Any:
        """One token a row, by one uniform number looked up in the cumulated probabilities."""
        import torch

        device = scores_BV.device
        probabilities_BV = (scores_BV / self._temperature_B1.to(device)).softmax(-1)
        ordered_BV, tokens_BV = probabilities_BV.sort(dim=-1, descending=True, stable=True)
        before_BV = ordered_BV.cumsum(-1) - ordered_BV
        # Nucleus (Holtzman et al., 2020): the fewest tokens that reach top_p, the likeliest always among them.
        ordered_BV = ordered_BV.masked_fill(before_BV >= self._top_p_B1.to(device).clamp_min(1e-9), 0.0)
        cumulated_BV = ordered_BV.cumsum(-1)
        total_B1 = cumulated_BV[:, -1:]
        drawn_B1 = torch.tensor([[self._rows[index].random.random()] for index in self._sampled], device=device)
        # Rounding may reach the total, and no token would be left.
        drawn_B1 = torch.minimum(drawn_B1 * total_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
        return tokens_BV.gather(1, torch.searchsorted(cumulated_BV, drawn_B1, right=True))
