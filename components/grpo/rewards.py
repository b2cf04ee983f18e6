"""What answers are worth, as functions that TRL's trainers call with the tokens of a step's answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import soft_prompts, templates
from bloomery.components.core.modelling.generation import without_end
from bloomery.components.core.modelling.reward_models import RewardModel
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.grpo.config import RewardWeights


class Rewards:
    """The rewards of one training. Each takes the prompts and answers of a step as token ids, and the columns of their
    rows, and returns one number an answer."""

    def __init__(
        self, weights: RewardWeights, tokenizer: Any, ends: Sequence[int], tasks: Tasks, scorer: RewardModel | None
    ) -> None:
        self.weights = weights
        self.tokenizer = tokenizer
        self.ends = ends
        self.tasks = tasks
        self.scorer = scorer
        self.unread: set[int] = set()
        """Tokens of soft prompts that the reward model does not know: it reads the chats as it learnt them, without."""
        if scorer is not None:
            known = scorer.tokenizer.get_vocab()
            self.unread = {index for token, index in soft_prompts.tokens_of(tokenizer).items() if token not in known}
            own = {token: index for token, index in tokenizer.get_vocab().items() if index not in self.unread}
            if own != known:
                token, _ = min(own.items() ^ known.items(), key=lambda pair: (pair[1], pair[0]))
                raise ModelError(
                    f"grpo: the reward model has other tokens than the model that is trained, the first is {token!r}; "
                    "train it on a model of this chain that has the same"
                )

    def chosen(self) -> list[tuple[Callable[..., list[float]], float]]:
        """(reward, weight) of those that count, and of the verifier in any case: what else is rewarded is held against
        it."""
        given = [
            (self.verifier, self.weights.verifier),
            (self.reward_model, self.weights.reward_model if self.scorer else 0.0),
            (self.length, self.weights.length),
            (self.format, self.weights.format),
        ]
        return [given[0], *((reward, weight) for reward, weight in given[1:] if weight)]

    def verifier(self, completion_ids: list[list[int]], task: list[str], reference: list[str], **_: Any) -> list[float]:
        """The score of the task's verifier, of the answer as evaluation would see it: within `max_new_tokens`."""
        known: dict[tuple[str, str, str], float] = {}
        scores = []
        for ids, name, wanted in zip(completion_ids, task, reference, strict=True):
            kept = ids[: self.tasks.configs[name].max_new_tokens]
            key = (name, templates.answer_text(self.tokenizer, without_end(kept, self.ends)), wanted)
            if key not in known:  # of several equal answers one is verified
                known[key] = self.tasks.verify(*key)[0]
            scores.append(known[key])
        return scores

    def reward_model(self, prompts: list[list[int]], completion_ids: list[list[int]], **_: Any) -> list[float]:
        """The score of the reward model."""
        assert self.scorer is not None
        rows = ([*asked, *ids] for asked, ids in zip(prompts, completion_ids, strict=True))
        return self.scorer.scores([[token for token in row if token not in self.unread] for row in rows])

    def length(self, completion_ids: list[list[int]], task: list[str], **_: Any) -> list[float]:
        """0 up to `length_from` of the task's `max_new_tokens`, from there linearly to -1."""
        scores = []
        for ids, name in zip(completion_ids, task, strict=True):
            share = len(ids) / self.tasks.configs[name].max_new_tokens
            over = (share - self.weights.length_from) / (1 - self.weights.length_from)
            scores.append(-min(1.0, max(0.0, over)))
        return scores

    def format(self, completion_ids: list[list[int]], **_: Any) -> list[float]:
        """1 for what is written as `format_pattern` says."""
        texts = (self.tokenizer.decode(without_end(ids, self.ends)) for ids in completion_ids)
        pattern = re.compile(self.weights.format_pattern, re.DOTALL)
        return [float(bool(pattern.fullmatch(text.strip()))) for text in texts]
