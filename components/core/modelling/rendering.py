"""The text that a model's own chat template makes of a chat: the same on every day, of calls and thoughts in the form
that it takes, and of tools that say no more of themselves than they have to."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from bloomery.components.core.data.chats import for_template
from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import proof

_DAY = datetime(2024, 7, 26)
TODAY = {
    **{f"%{code}": _DAY.strftime(f"%{code}") for code in "aAbBcdDeFgGhHIjmMpRSTuUVwWxXyYzZ"},
    **{f"%-{code}": str(int(_DAY.strftime(f"%{code}"))) for code in "dmHIMSjy"},
}
"""The day that every template sees: some print today's (Llama 3.2, gpt-oss), so that what was measured in the evening
would be another prompt in the morning. It is Llama 3.1's own default; a system prompt tells a model the real one."""
PROBE = "zqxjkv"
"""Content that stands nowhere else, to find what a template writes around it."""
ASK = {"role": "user", "content": "?"}
SAY = {"role": "assistant", "content": PROBE}
THOUGHT = re.compile(r"\s*<think>\s*(.*?)\s*</think>\s*", re.DOTALL)
"""A thought that a content begins with."""
OPTIONAL = {"description": "", "parameters": {"type": "object", "properties": {}}}
"""What the definition of a function may leave out (OpenAI's API asks for its name), as it is when it says nothing."""


def render(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: str, *, opened: bool) -> str:
    """The text of a chat. Raises: ModelError with what the template says if it refuses it.

    Tools are given as they are; a template that refuses them gets them with what is OPTIONAL.
    """
    from jinja2 import TemplateSyntaxError

    given = json.loads(tools) if tools else None
    try:
        return _rendered(tokenizer, messages, given, opened)
    except TemplateSyntaxError as error:
        raise ModelError(f"the chat template has a syntax error in line {error.lineno}: {error.message}") from None
    except Exception as error:  # a template is a program of others
        refusal = str(error)
    if given:
        with contextlib.suppress(Exception):
            return _rendered(tokenizer, messages, [_completed(tool) for tool in given], opened)
    raise ModelError(f"the chat template refuses a chat: {refusal}; the chat: {proof.shown(messages)}")


def _rendered(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: list[Any] | None, opened: bool) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    # apply_chat_template drops content that is None, by which DeepSeek V3 knows a call.
    rendered: Any = render_jinja_template(
        [list(messages)],
        tools=tools,
        chat_template=template_of(tokenizer, has_tools=bool(tools)),
        add_generation_prompt=opened,
        **tokenizer.special_tokens_map,
    )
    return rendered[0][0]


def _completed(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function", tool)
    told = {name: value for name, value in function.items() if value is not None}
    told |= {name: value for name, value in OPTIONAL.items() if name not in told}
    return {**tool, "function": told} if "function" in tool else told


def template_of(tokenizer: Any, *, has_tools: bool = False) -> str:
    """The tokenizer's own template, on a day that stays."""
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name, as Command R has them
        template = (has_tools and template.get("tool_use")) or template.get("default")
    if not template:
        raise ModelError("the tokenizer has no chat template; set `chat_template: chatml` or a file in the recipe")
    if "strftime_now" not in template:
        return template
    filled = "".join(f" | replace('{code}', '{value}')" for code, value in TODAY.items())
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{filled} }}}}{{%- endmacro %}}{template}"


def shaped(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: str) -> list[dict[str, Any]]:
    """`messages` in the form that the template takes: templates differ in how they expect a call without words, and
    in whether they know thoughts that stand in a content.

    Raises: ModelError with what the template says if it refuses them in every form, or that it leaves calls out.
    """
    plain = [{"content": "", **message} for message in for_template(messages)]
    if any(THOUGHT.match(message["content"]) for message in plain) and _wants_thoughts_apart(
        tokenizer, template_of(tokenizer)
    ):
        plain = [_thought_apart(message) for message in plain]
    calls = [call for message in plain for call in message.get("tool_calls") or []]
    if not calls:
        return plain
    probes = [f"{PROBE}_{place}_" for place in range(len(calls))]  # results may be written with the name of one call
    held: list[int] = []
    for content, written in [(content, written) for content in ("", None) for written in (False, True)]:
        with contextlib.suppress(ModelError):
            text = render(tokenizer, _with_calls(plain, content, written, probes), tools, opened=False)
            held.append(sum(probe in text for probe in probes))
            if held[-1] == len(calls):
                return _with_calls(plain, content, written)
    if not held:
        render(tokenizer, plain, tools, opened=False)  # which tells why
    names = ", ".join(sorted({call["function"]["name"] for call in calls}))
    if most := max(held, default=0):
        raise ModelError(
            f"the chat template writes {most} of the {len(calls)} calls of {names} in a chat, as one that knows a "
            "single call a turn, and none beside words: leave such chats out, or give each call a turn of its own, "
            "with its result after it"
        )
    raise ModelError(f"the chat template leaves out the calls of {names}: this model knows no tool calls")


@lru_cache(maxsize=16)
def _wants_thoughts_apart(tokenizer: Any, template: str) -> bool:
    """Whether the template has a place for thoughts, and would write those in a content as words of the answer: it
    then holds `<think>` more often than where they are given apart."""
    try:
        said = {"role": "assistant", "content": f"<think>{PROBE}</think>?"}
        within, apart = (render(tokenizer, [ASK, one], "", opened=False) for one in (said, _thought_apart(said)))
    except ModelError:
        return False
    return PROBE in apart and within.count("<think>") > apart.count("<think>")


def _thought_apart(message: dict[str, Any]) -> dict[str, Any]:
    """`message` with the thought that its content begins with as its `reasoning_content`."""
    held = THOUGHT.match(message["content"])
    if message["role"] != "assistant" or held is None or "reasoning_content" in message:
        return message
    return {**message, "content": message["content"][held.end() :], "reasoning_content": held[1]}


def _with_calls(
    messages: list[dict[str, Any]], content: Any, written: bool, names: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """`messages` whose calls without words have `content`, with arguments as JSON text where `written`, and with
    `names` in their order in the place of their own, if there are any."""
    changed, left = [], iter(names)
    for message in messages:
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                own = call["function"]["arguments"]
                arguments = json.dumps(own, ensure_ascii=False) if written and not isinstance(own, str) else own
                function = {"name": next(left, call["function"]["name"]), "arguments": arguments}
                calls.append({**call, "type": "function", "function": function})
            message = {**message, "content": message["content"] or content, "tool_calls": calls}
        changed.append(message)
    return changed
