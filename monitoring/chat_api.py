"""The wire format of OpenAI's chat completions: what may be asked, what is answered, how errors are told."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from bloomery.components.core.config import Config

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_k": (0, -1),
    "min_p": (0,),
    "min_tokens": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "best_of": (1,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "add_generation_prompt": (True,),
}
"""Fields that vLLM adds to OpenAI's, with the values that change no answer of ours."""


def _none_offered(value: list[Any]) -> list[Any]:
    if value:
        raise ValueError("none are offered here: an answer is text; leave it out")
    return value


NotOffered = Annotated[list[Any], AfterValidator(_none_offered)]
"""What clients send along empty, and would have to be read from an answer's text."""


class TextPart(BaseModel):
    """A part of a message; text is all that is understood. What else stands in it, such as `cache_control`, says
    nothing to a model."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn of the conversation, as clients write it and send it back. Fields that are not listed (ids, times,
    annotations) reach no chat template and are passed over; those that would are listed."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] = ""
    """May be left out or null where the assistant speaks, who then said nothing."""
    reasoning_content: str = ""
    """What an earlier answer was thought with; the template decides whether the model sees it."""
    refusal: str = ""
    """Said instead of content."""
    tool_calls: NotOffered = []
    """Not offered."""
    function_call: None = None
    """Not offered."""
    audio: None = None
    """Not offered."""
    images: NotOffered = []
    """Not offered."""
    prefix: Literal[False] = False
    """Not offered: an answer begins anew."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {name: value for name, value in values.items() if value is not None}
        if given.get("role") != "assistant" and "content" not in given:
            return {**given, "content": None}  # refused: only the assistant may have said nothing
        return given

    def plain(self) -> dict[str, str]:
        """The message in its stored form; `developer` is OpenAI's newer word for `system`."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        message = {"role": "system" if self.role == "developer" else self.role, "content": content or self.refusal}
        return {**message, "reasoning": self.reasoning_content} if self.reasoning_content else message


class StreamOptions(Config):
    """What a stream holds besides the answer."""

    include_usage: bool = False
    """End with a chunk of token counts."""
    include_obfuscation: bool = False
    """Accepted; nothing is added to hide the length of a chunk."""
    continuous_usage_stats: Literal[False] = False
    """Not offered."""


class TextFormat(Config):
    """The one form of an answer that is offered."""

    type: Literal["text"]


class ChatRequest(Config):
    """The body of POST /v1/chat/completions. What is not listed is refused: ignored, it would answer something else.

    A null is as good as nothing, everywhere, and so are the empty values that clients send along: false, "", [] and {}.
    """

    messages: list[ChatMessage] = Field(min_length=1)
    """The conversation so far."""
    model: str = ""
    """The registered model, `name:version`, or an adapter on it; empty is the registered one."""
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
    logit_bias: dict[str, Annotated[float, Field(ge=0, le=0)]] | None = None
    """Not offered: only 0."""
    response_format: TextFormat | None = None
    """Not offered: only text."""
    modalities: list[Literal["text"]] | None = None
    """Not offered: only text."""
    tools: NotOffered | None = None
    """Not offered: only none."""
    functions: NotOffered | None = None
    """Not offered: only none."""
    tool_choice: Literal["none", "auto"] | None = None
    """Without tools there is no choice."""
    function_call: Literal["none", "auto"] | None = None
    """The older name of `tool_choice`."""
    parallel_tool_calls: bool | None = None
    """Says nothing without tools."""
    reasoning_effort: None = None
    """Not offered: a model thinks as its template makes it."""
    verbosity: Literal["medium"] | None = None
    """Not offered: only OpenAI's default."""
    audio: None = None
    """Not offered."""
    web_search_options: None = None
    """Not offered."""
    moderation: None = None
    """Not offered."""
    prediction: Any = None
    """Accepted; it would make the same answer come sooner."""
    service_tier: str | None = None
    """Accepted; all are served alike."""
    user: str | None = None
    """Accepted and not kept."""
    safety_identifier: str | None = None
    """Accepted and not kept."""
    prompt_cache_key: str | None = None
    """Accepted; no cache outlives a request."""
    prompt_cache_retention: str | None = None
    """As `prompt_cache_key`."""
    prompt_cache_options: Any = None
    """As `prompt_cache_key`."""
    metadata: dict[str, str] | None = None
    """Accepted and not kept."""
    store: bool | None = None
    """Accepted; the prediction log is written in any case."""

    @model_validator(mode="before")
    @classmethod
    def _what_asks_for_nothing_is_not_given(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if not _asks_for_nothing(name, value)}

    @property
    def stops(self) -> list[str]:
        """The stop texts, none of them empty."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]

    def conversation(self) -> list[dict[str, str]]:
        """The messages in their stored form."""
        return [message.plain() for message in self.messages]


def _asks_for_nothing(name: str, value: Any) -> bool:
    """True for a null; of fields that are not known also for what is empty or changes no answer."""
    if name in ChatRequest.model_fields:
        return value is None
    return value is None or value is False or value in ("", [], {}) or value in NEUTRAL.get(name, ())


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
