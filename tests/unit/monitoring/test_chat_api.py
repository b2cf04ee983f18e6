"""What clients of OpenAI's chat completions send along, and what is refused."""

from __future__ import annotations

import json

import pytest

from bloomery.components.core.config import parse
from bloomery.components.core.data.chats import for_template
from bloomery.components.core.errors import ConfigError
from bloomery.monitoring.chat_api import ChatRequest

USER = {"role": "user", "content": "How many?"}


def asked(**values: object) -> ChatRequest:
    return parse(ChatRequest, {"messages": [USER], **values})


NULLS = sorted(set(ChatRequest.model_fields) - {"messages"})


@pytest.mark.parametrize("name", NULLS)
def test_a_null_is_as_good_as_nothing(name: str) -> None:
    assert asked(**{name: None}) == asked()


@pytest.mark.parametrize(
    "values",
    [
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"functions": [], "function_call": "none"},
        {"tool_choice": "none", "parallel_tool_calls": False},
        {"response_format": {"type": "text"}, "modalities": ["text"], "verbosity": "medium"},
        {"logit_bias": {}, "stop": []},
        {"logit_bias": {"50256": 0}, "presence_penalty": 0, "frequency_penalty": 0.0, "top_logprobs": 0},
        {"service_tier": "flex", "prompt_cache_key": "k", "safety_identifier": "u", "user": "u", "store": False},
        {"prediction": {"type": "content", "content": "SELECT"}, "prompt_cache_retention": "24h"},
        {"stream_options": {"include_usage": True, "include_obfuscation": False}, "metadata": {}},
        {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": False, "stop_token_ids": []},
        {"chat_template_kwargs": {}, "guided_json": None, "best_of": 1, "skip_special_tokens": True, "suffix": ""},
    ],
    ids=json.dumps,
)
def test_what_changes_no_answer_passes(values: dict[str, object]) -> None:
    assert asked(**values).stops == [] and asked(**values).n == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("functions", [{"name": "f"}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("logit_bias", {"50256": -100}),
        ("reasoning_effort", "low"),
        ("verbosity", "low"),
        ("web_search_options", {"search_context_size": "low"}),
        ("presence_penalty", 0.5),
        ("top_logprobs", 2),
        ("n", 0),
        ("n", "many"),
        ("metadata", {"run": 1}),
        ("top_k", 40),
        ("repetition_penalty", 1.1),
        ("guided_json", {"type": "object"}),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("ignore_eos", True),
        ("temprature", 0),
        ("max_tokens", 0),
        ("stream_options", {"continuous_usage_stats": True}),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}\b"):
        asked(**{name: value})


def test_tools_are_refused_in_words():
    call = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}
    for body in ({"tools": [{"type": "function"}]}, {"messages": [{"role": "user", "content": "?"}, call]}):
        with pytest.raises(ConfigError, match="none are offered here: an answer is text; leave it out"):
            asked(**body)


def turns(*messages: dict[str, object]) -> list[dict[str, str]]:
    return parse(ChatRequest, {"messages": list(messages)}).conversation()


def test_an_answer_is_sent_back_as_it_came() -> None:
    echo = {"role": "assistant", "content": "SELECT 1", "refusal": None, "annotations": [], "audio": None}
    echo |= {"function_call": None, "tool_calls": None, "reasoning_content": None, "id": 7, "created": 1.5}
    plain = {"role": "assistant", "content": "SELECT 1"}
    assert turns(USER, echo, USER) == [USER, plain, USER]
    assert turns(USER, {**echo, "tool_calls": []})[1] == plain
    assert turns(USER, {"role": "assistant", "content": None})[1]["content"] == ""
    assert turns(USER, {"role": "assistant"})[1]["content"] == ""
    assert turns(USER, {"role": "assistant", "content": None, "refusal": "No."})[1]["content"] == "No."
    thought = {**echo, "reasoning_content": "One."}
    assert for_template(turns(USER, thought))[1] == {**plain, "reasoning_content": "One."}


def test_parts_of_text_are_one_text() -> None:
    parts = [
        {"type": "text", "text": "How "},
        {"type": "text", "text": "many?", "cache_control": {"type": "ephemeral"}},
    ]
    assert turns({"role": "user", "content": parts, "name": "kim"}) == [USER]
    assert turns({"role": "developer", "content": "Be brief."}, USER)[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ({"role": "user", "content": None}, "messages.0.content"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "messages.0.content"),
        ({"role": "tool", "content": "4", "tool_call_id": "c"}, "messages.0.role"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}, "messages.0.tool_calls"),
        ({"role": "assistant", "content": "", "function_call": {"name": "f"}}, "messages.0.function_call"),
        ({"role": "assistant", "content": "SELECT", "prefix": True}, "messages.0.prefix"),
        ({"role": "user", "content": "what is this?", "images": ["aa"]}, "messages.0.images"),
        ("How many?", "messages.0"),
    ],
)
def test_a_turn_that_no_template_takes_is_refused_by_its_place(message: object, place: str) -> None:
    with pytest.raises(ConfigError, match=f"^{place}"):
        parse(ChatRequest, {"messages": [message]})
