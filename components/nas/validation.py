"""What a sub-network is worth on rows of the `validation` splits."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import likelihood, templates
from bloomery.components.core.scoring import validation
from bloomery.components.core.scoring.statistics import mean_stderr
from bloomery.components.core.scoring.tasks import Tasks, answered

TEXT_TOKENS = 512
"""Tokens of a text of a perplexity task that are read."""


class Worth(NamedTuple):
    """Of a model on the validation rows."""

    score: float
    """Mean score of the verifiers; NaN where no row has one."""
    stderr: float
    loss: float
    """Nats a token of the right answers, or of the texts where no row has an answer."""

    @property
    def key(self) -> tuple[float, ...]:
        """Larger is better: the score, and of equal scores, or without any, the lower loss."""
        return (-self.loss,) if math.isnan(self.score) else (self.score, -self.loss)


class Validation:
    """The rows that judge every sub-network alike."""

    def __init__(self, tasks: Tasks, tokenizer: Any, count: int) -> None:
        """`count` rows at most, of the lowest ids. Raises: DataError if there is none."""
        self._asked = validation.questions(tasks, (), count)
        self._tasks, self._tokenizer = tasks, tokenizer
        if self._asked:
            self._read = [templates.trained_tokens(tokenizer, answered(vars(row)), row.tools) for row in self._asked]
        else:
            rows = sorted(tasks.prompts("validation"), key=lambda row: row.id)[:count]
            texts = [templates.text_tokens(tokenizer, row.reference)[:TEXT_TOKENS] for row in rows]
            self._read = [(ids, [True] * len(ids)) for ids in texts]
        if not self._read:
            raise DataError("nas: no task has rows in a split `validation`, which judge the sub-networks; add some")

    def worth(self, network: Any) -> Worth:
        """What the loaded model gets, answering greedily."""
        ids, scored = zip(*self._read, strict=True)
        nats = likelihood.log_likelihoods(network, ids, scored)
        loss = -sum(total for total, _ in nats) / max(1, sum(count for _, count in nats))
        scores = validation.scores(network, self._tokenizer, self._tasks, self._asked, "nas")
        score, stderr = mean_stderr(scores) if scores else (math.nan, math.nan)
        return Worth(score, stderr, loss)
