"""The text of an answer while it is being decoded, and what of it stands in the prediction log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from bloomery.components.core.data.chats import Turn, as_json, as_text
from bloomery.components.core.modelling import templates
from bloomery.components.core.records import Prediction
from bloomery.monitoring.chat_api import ApiError
from bloomery.monitoring.engine import Row


class Answer:
    """One answer as its client sees it: without special tokens, stripped as evaluation strips it, cut at a stop."""

    def __init__(self, row: Row, stops: Sequence[str] = (), *, is_streamed: bool = False) -> None:
        self.row = row
        self.text = ""
        """The whole text, once it is finished."""
        self.num_tokens = 0
        """Tokens that the text was made of."""
        self.finish_reason = ""
        self.changed = asyncio.Event()
        self.wants_every_token = is_streamed or bool(stops)
        self._stops = stops

    async def parts(self) -> AsyncIterator[str]:
        """The text as it grows; a part is not sent while a later token may still change it."""
        sent = 0
        while not self.finish_reason:
            await self.changed.wait()
            self.changed.clear()
            reason, available = self.row.finish_reason, len(self.row.tokens)
            if reason == "error":
                raise ApiError(500, "the model could not answer; the server's log says why")
            text = self._advance(available, is_last=bool(reason))
            if self.finish_reason:
                self.row.is_cancelled = True
            else:
                self.finish_reason = reason
            if self.finish_reason:
                self.text = text
            if len(text) > sent:
                yield text[sent:]
                sent = len(text)

    def complete(self) -> None:
        """Take the text of a row that has been decoded to its end."""
        self.text = self._advance(len(self.row.tokens), is_last=True)
        self.finish_reason = self.row.finish_reason

    def _advance(self, available: int, *, is_last: bool) -> str:
        """The text that stands for certain with `available` tokens; sets `finish_reason` where a stop ends it."""
        tokenizer = self.row.served.tokenizer
        # Token by token where it may stop: how far the decoding thread has come must not change the answer.
        for count in range(self.num_tokens + 1, available + 1) if self._stops else ():
            text = templates.answer_text(tokenizer, self.row.tokens[:count], is_open=True)
            ends = [place for stop in self._stops if (place := text.find(stop)) >= 0]
            if ends:
                self.num_tokens, self.finish_reason = count, "stop"
                return text[: min(ends)].strip()
        self.num_tokens = available
        text = templates.answer_text(tokenizer, self.row.tokens[:available], is_open=not is_last)
        if is_last:
            return text.rstrip()
        begun = (
            size
            for stop in self._stops
            for size in range(min(len(stop) - 1, len(text)), 0, -1)
            if text.endswith(stop[:size])
        )
        # U+FFFD: the first bytes of a character whose last ones are still to come.
        return text[: len(text) - max(begun, default=0)].rstrip("\ufffd").rstrip()

    def logprobs(self) -> dict[str, Any]:
        """OpenAI's form of the log-probability of each token."""
        tokenizer = self.row.served.tokenizer
        pairs = zip(self.row.tokens[: self.num_tokens], self.row.log_probabilities, strict=False)
        content = [
            {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
            for text, value in ((tokenizer.decode([token]), value) for token, value in pairs)
        ]
        return {"content": content, "refusal": None}

    def prediction(self, identity: str, started: datetime, seconds: float, asked: Sequence[Turn]) -> Prediction:
        """The row of the prediction log; `asked` is the conversation."""
        row, count = self.row, self.num_tokens
        return Prediction(
            id=identity,
            time=started.isoformat(),
            model_name=row.served.name,
            model_version=row.served.version,
            prompt=as_text(asked),
            messages=as_json(asked),
            response=self.text,
            latency_seconds=round(seconds, 6),
            prompt_tokens=len(row.prompt),
            response_tokens=count,
            mean_log_probability=_mean(row.log_probabilities[:count]),
            mean_entropy=_mean(row.entropies[:count]),
            feedback=None,
            label=None,
        )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
