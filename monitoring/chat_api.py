"""The wire format of OpenAI's chat completions: what may be asked, what is answered, how errors are told."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from bloomery.components.core.config import Config


class TextPart(Config):
    """A part of a message; text is all that is understood."""

    type: Literal["text"]
    text: str


class ChatMessage(Config):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    """Accepted, and not shown to the model: chat templates have no place for it."""
    refusal: None = None
    """Clients send back the message they were given, which holds this."""

    def plain(self) -> dict[str, str]:
        """The message as chat templates take it; `developer` is OpenAI's newer word for `system`."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(Config):
    """What a stream holds besides the answer."""

    include_usage: bool = False
    """End with a chunk of token counts."""


class ChatRequest(Config):
    """The body of POST /v1/chat/completions. What is not listed is refused: ignored, it would answer something else."""

    messages: list[ChatMessage] = Field(min_length=1)
    """The conversation so far."""
    model: str = ""
    """The registered model, or `name:version`; empty is the one that is served."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest answer in tokens; none: `serving.max_new_tokens`, or what the context leaves."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The newer name of `max_tokens`."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0 is greedy; none: `serving.temperature`."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Sample from the likeliest tokens that reach this probability together; none: all."""
    n: int = Field(default=1, ge=1, le=16)
    """Answers to give."""
    stop: str | list[str] | None = None
    """Texts that end the answer, and are not part of it."""
    seed: int | None = None
    """The same seed, request and model version give the same answer."""
    stream: bool = False
    """Send the answer as it grows, as server-sent events."""
    stream_options: StreamOptions | None = None
    """See StreamOptions."""
    logprobs: bool = False
    """Give the log-probability of each token."""
    top_logprobs: int | None = Field(default=None, ge=0, le=0)
    """Alternatives to each token: none are given."""
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    """Not offered: only 0."""
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    """Not offered: only 0."""
    user: str | None = None
    """Accepted and not kept."""
    metadata: dict[str, str] | None = None
    """Accepted and not kept."""
    store: bool | None = None
    """Accepted; the prediction log is written in any case."""

    @property
    def stops(self) -> list[str]:
        """The stop texts, none of them empty."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]

    def conversation(self) -> list[dict[str, str]]:
        """The messages as chat templates take them."""
        return [message.plain() for message in self.messages]


class Feedback(Config):
    """The body of POST /v1/feedback: what became known of an answer."""

    id: str = Field(min_length=1)
    """Id of the completion; of its later choices, with `-1`, `-2` at the end."""
    feedback: float | None = Field(default=None, ge=0, le=1)
    """How good it was, in [0, 1]."""
    label: str | None = None
    """The right answer."""


class ApiError(Exception):
    """An error that is told to the client."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def body(self) -> dict[str, Any]:
        """OpenAI's form of an error."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.code}}


class Completion:
    """The answers to one request, as they are sent."""

    def __init__(self, identity: str, model: str, version: str) -> None:
        self.id = identity
        self._common = {
            "id": identity,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"{model}:{version}",
        }

    def whole(self, choices: Sequence[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        return {**self._common, "object": "chat.completion", "choices": list(choices), "usage": usage}

    def chunk(self, choices: Sequence[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        """One event of a stream."""
        body = {**self._common, "object": "chat.completion.chunk", "choices": list(choices)}
        return event({**body, "usage": usage} if usage else body)


def choice(index: int, text: str, finish_reason: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    """One finished answer."""
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason}


def delta(
    index: int, change: dict[str, str], finish_reason: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What a chunk adds to an answer."""
    return {"index": index, "delta": change, "logprobs": logprobs, "finish_reason": finish_reason}


def event(body: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Token counts of a request."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
