"""Chats as the tokens of a model: one place renders what training, evaluation and serving see.

A published chat template says how a chat looks, not which of its tokens are the model's. They follow from two
renderings: what the model is asked to go on from (the chat up to a turn, with the generation prompt), and the same chat
with that turn at its end. What the second has more is the turn as the model has to produce it. So what is trained at a
turn is what is seen and produced at that turn in serving, by construction, whatever the template does to earlier turns.
Each turn is proven before it is trained: its tokens decode to it, it holds its content, reasoning and calls, and ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from bloomery.components.core.data import chats
from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import proof
from bloomery.components.core.modelling.rendering import ASK, PROBE, SAY, render, shaped, template_of

TrainOn = Literal["all_turns", "last_turn"]


class Turns(NamedTuple):
    """How a template opens and ends the assistant's turns."""

    header: str
    """What opens a turn and `add_generation_prompt` leaves out, or ''."""
    prelude: str
    """What the model has to write between the generation prompt and an answer without reasoning, as in gpt-oss."""
    end: int
    """The token that ends an answer."""
    ends: tuple[int, ...]
    """It, and what ends a tool call where that is another."""
    is_supplied: bool
    """The template writes no end, so the end is ours: what begins the next turn, if it is a token, or EOS."""
    opened: str
    """What the template writes after the end of a last turn because it opens the next one unasked, as Llama 3's first
    one does, or ''."""


class _Step(NamedTuple):
    prompt: list[int]
    answer: list[int]
    thought: int = 0
    """First tokens of the answer that have no loss."""


def prompt_tokens(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: str = "") -> list[int]:
    """The token ids of a conversation as the model is asked to go on with it: the assistant's turn is open.

    `messages` are in their stored form, `tools` is a JSON list of definitions or ''.
    Raises: ModelError if the template refuses the conversation, or leaves a message or the tools out.
    """
    asked = shaped(tokenizer, messages, tools)
    text = _prompt_text(tokenizer, asked, tools)
    proof.prove_prompt(text, asked, tools)
    return _ids(tokenizer, text)


def trained_tokens(
    tokenizer: Any, messages: Sequence[dict[str, Any]], tools: str = "", train_on: TrainOn = "all_turns"
) -> tuple[list[int], list[bool]]:
    """(token ids, which of them have a loss) of a chat up to its last assistant turn: that turn with its end, and with
    `all_turns` the earlier ones that stand in it as they are produced. `trained_rows` gives the rest as well.

    Raises: ModelError, with the text, for what cannot be proven.
    """
    return trained_rows(tokenizer, messages, tools, train_on)[-1]


def trained_rows(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    tools: str = "",
    train_on: TrainOn = "all_turns",
    train_reasoning: bool = True,
) -> list[tuple[list[int], list[bool]]]:
    """The rows, each (token ids, which have a loss), that train every assistant turn of a chat once; without
    `train_reasoning` what is thought before an answer has no loss.

    It is one row where a template writes an earlier turn as it is produced. Where it does not (Qwen3 and gpt-oss drop
    earlier reasoning, and write or end the last turn otherwise) a turn that differs has a row that ends with it.
    Raises: ModelError, with the text, for what cannot be proven.
    """
    told = shaped(tokenizer, messages, tools)
    turns = [index for index, message in enumerate(told) if message["role"] == "assistant"]
    if not turns:
        raise ModelError(f"a chat without an assistant turn has nothing to train: {proof.shown(messages)}")
    chosen = turns if train_on == "all_turns" else turns[-1:]
    left = [_step(tokenizer, told, tools, turn, train_reasoning) for turn in chosen]
    rows = []
    while left:
        ids = left[-1].prompt + left[-1].answer
        trained, others = [False] * len(ids), []
        for step in left:
            start, end = len(step.prompt), len(step.prompt) + len(step.answer)
            if ids[:start] == step.prompt and ids[start:end] == step.answer:
                trained[start + step.thought : end] = [True] * (len(step.answer) - step.thought)
            else:
                others.append(step)
        rows.append((ids, trained))
        left = others
    return rows[::-1]


def text_tokens(tokenizer: Any, text: str, *, end: bool = False) -> list[int]:
    """The token ids of a whole text: BOS where the tokenizer writes one, and EOS with `end`, each once."""
    ids = _ids(tokenizer, text)
    return [*ids, tokenizer.eos_token_id] if end and ids[-1:] != [tokenizer.eos_token_id] else ids


def end_tokens(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """Every token that ends an answer, first that of the template: then a call's, the tokenizer's EOS, and those of the
    model's `generation_config`."""
    own = getattr(generation_config, "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    ends = turns(tokenizer).ends if tokenizer.chat_template else ()
    return list(dict.fromkeys(token for token in (*ends, tokenizer.eos_token_id, *listed) if token is not None))


def pad_token(tokenizer: Any) -> int:
    """What fills a batch; masks and labels come from lengths, so any token does where a tokenizer has none."""
    return next(t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if t is not None)


def answer_text(tokenizer: Any, ids: Sequence[int], *, is_open: bool = False) -> str:
    """The answer that generated `ids` hold, without the reasoning and the words before it that the template asks for.

    `is_open`: more may come, so that what may still turn out to be reasoning is no answer yet.
    """
    marker = _marker(tokenizer)
    for start in range(len(ids) - len(marker), -1, -1) if marker else ():
        if tuple(ids[start : start + len(marker)]) == marker:
            ids = ids[start + len(marker) :]
            break
    else:
        if marker and is_open:
            return ""
    text = tokenizer.decode(list(ids), skip_special_tokens=True).strip()
    # A model may have learnt to think from chats alone, of which its template knows nothing.
    if is_open and "</think>" not in text and "<think>".startswith(text[: len("<think>")]):
        return ""
    return proof.answer(text)


def said(tokenizer: Any, ids: Sequence[int]) -> dict[str, Any]:
    """The assistant's turn that generated `ids` are, with what it thought before it answered: where the template writes
    thoughts itself in `reasoning`, else in the content, where it was said."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True).strip()
    if not _marker(tokenizer):
        return chats.message("assistant", text)
    return chats.message("assistant", answer_text(tokenizer, ids), reasoning=proof.thought({"content": text}).strip())


def turns(tokenizer: Any) -> Turns:
    """How the tokenizer's template opens and ends the assistant's turns. Raises: ModelError if it does not."""
    return _turns(tokenizer, template_of(tokenizer))


def _marker(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that an answer follows, where a model writes more before it: `</think>`, or what opens a channel."""
    prelude = turns(tokenizer).prelude if tokenizer.chat_template else ""
    closing = re.search(r"</\w+>\s*$", prelude)
    words = closing[0].strip() if closing else prelude
    return tuple(tokenizer(words, add_special_tokens=False)["input_ids"]) if prelude.strip() else ()


@lru_cache(maxsize=16)
def _turns(tokenizer: Any, template: str) -> Turns:
    closed, opened = (render(tokenizer, [ASK], "", opened=flag) for flag in (False, True))
    said = [ASK, SAY]
    text = render(tokenizer, said, "", opened=False)
    if PROBE not in text:
        raise ModelError(f"the chat template leaves out what the assistant says; it makes of a chat: {text!r}")
    header = ""
    if opened == closed and text.startswith(opened):
        header = text[len(opened) : text.index(PROBE)].rstrip(" ")
    prompt = opened + (header if header.strip() else "")
    answer = _after(prompt, text, said)
    tail = text[text.index(PROBE) + len(PROBE) :]
    end, is_supplied = _end(tokenizer, said, tail)
    unasked = tail.partition(tokenizer.decode([end]))[2]
    call = json.dumps([{"id": "abcdef012", "name": PROBE, "arguments": {}}])
    ends = [end]
    try:
        called = shaped(tokenizer, [ASK, {"role": "assistant", "content": "", "tool_calls": call}], "")
        rest = render(tokenizer, called, "", opened=False).rpartition(PROBE)[2]
        own = [token for token in _added(tokenizer, rest) if token in _control(tokenizer)]
        own = [token for token in own if not re.search("call.*end", tokenizer.convert_ids_to_tokens(token))]
        follows = _end(tokenizer, called, "")[0] if not own else own[-1]
        ends.append(end if end in own else follows)
    except ModelError:
        pass  # it knows no tools
    return Turns(
        header=header.strip() and header,
        prelude=answer.partition(PROBE)[0],
        end=end,
        ends=tuple(dict.fromkeys(ends)),
        is_supplied=is_supplied,
        opened=unasked if unasked.strip() and closed.endswith(unasked) else "",
    )


def _end(tokenizer: Any, said: list[dict[str, Any]], tail: str) -> tuple[int, bool]:
    """(the token that ends the last turn of `said`, whether it is ours); `tail` is what stands after it."""
    added = _added(tokenizer, tail)
    if added:
        return added[0], False
    if tail.strip():
        raise ModelError(
            f"the chat template ends a turn with {tail!r}, which is no token of the tokenizer, so nothing would end an "
            "answer; take the tokenizer that belongs to the template"
        )
    asked = (
        {"role": "tool", "name": PROBE, "tool_call_id": "abcdef012", "content": "."}
        if "tool_calls" in said[-1]
        else ASK
    )
    before = render(tokenizer, said, "", opened=False)
    try:
        after = render(tokenizer, [*said, asked], "", opened=False)
    except ModelError:
        after = ""
    follows = _ids(tokenizer, after[len(before) :].lstrip())[:1] if after.startswith(before) else []
    if follows and follows[0] in _control(tokenizer) and follows[0] != tokenizer.bos_token_id:
        return follows[0], True
    if tokenizer.eos_token_id is None:
        raise ModelError("neither the chat template nor the tokenizer has a token that ends an answer; set eos_token")
    return tokenizer.eos_token_id, True


def _step(tokenizer: Any, messages: list[dict[str, Any]], tools: str, turn: int, train_reasoning: bool) -> _Step:
    """Prompt and answer of the assistant's `turn` as tokens, proven."""
    prompt = _prompt_text(tokenizer, messages[:turn], tools)
    answer = _after(prompt, render(tokenizer, messages[: turn + 1], tools, opened=False), messages[: turn + 1])
    answer = answer.removesuffix(turns(tokenizer).opened)
    proof.prove_prompt(prompt, messages[:turn], tools)
    asked, whole = _ids(tokenizer, prompt), _ids(tokenizer, prompt + answer)
    is_whole = whole[: len(asked)] == asked
    # Where the seam is inside a token, the model is asked with the tokens before it and goes on with those after it.
    ids = whole[len(asked) :] if is_whole else tokenizer(answer, add_special_tokens=False)["input_ids"]
    end = _end_of(tokenizer, ids, bool(messages[turn].get("tool_calls")))
    ids = [*ids[: end[0]], end[1]]
    proof.prove_answer(tokenizer, ids, answer, messages[turn])
    marker = _marker(tokenizer)
    return _Step(asked, ids, 0 if train_reasoning else proof.thoughts_end(tokenizer, ids, marker, messages[turn]))


def _end_of(tokenizer: Any, ids: list[int], is_call: bool) -> tuple[int, int]:
    """(position, token) of the end of a turn: the first known end among the added tokens and spaces that close it."""
    known, control, start = turns(tokenizer), _control(tokenizer), len(ids)
    while start and (ids[start - 1] in control or not tokenizer.decode([ids[start - 1]]).strip()):
        start -= 1
    for position in range(start, len(ids)):
        if ids[position] in known.ends or ids[position] == tokenizer.eos_token_id:
            return position, ids[position]
    spaces = len(ids)
    while spaces > start and not tokenizer.decode([ids[spaces - 1]]).strip():
        spaces -= 1
    return spaces, known.ends[-1] if is_call else known.end


def _prompt_text(tokenizer: Any, messages: list[dict[str, Any]], tools: str) -> str:
    """What the model is asked to go on from: with the words that open its turn, also if the template forgets them."""
    text = render(tokenizer, messages, tools, opened=True)
    if not turns(tokenizer).header and messages[-1]["role"] != "tool":
        return text
    said = render(tokenizer, [*messages, SAY], tools, opened=False)
    if not said.startswith(text) or render(tokenizer, messages, tools, opened=False) != text or PROBE not in said:
        return text
    header = said[len(text) :].partition(PROBE)[0].rstrip(" ")
    return text + header if header.strip() else text


def _after(prompt: str, whole: str, messages: Sequence[dict[str, Any]]) -> str:
    """What the last of `messages` adds to `prompt`; `whole` is the text that ends with it."""
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    before, opens, _ = prompt.rpartition("<think>")
    if opens and whole.startswith(before) and "</think>" not in prompt[len(before) :]:
        # DeepSeek-R1 is asked to think and its template leaves the thoughts out: they are put where they were made.
        own = messages[-1]
        thought = own.get("reasoning_content") or proof.thought(own)
        rest = whole[len(before) :].lstrip()
        if rest.startswith("<think>"):  # it was asked with a line break that an empty thought has not
            return rest.removeprefix("<think>").lstrip("\n")
        return f"{thought.strip()}\n</think>\n\n{rest}"
    if whole.startswith(prompt.rstrip()):
        return whole[len(prompt.rstrip()) :].lstrip()
    # The last turn changes how earlier ones are written (Mistral puts the system prompt into the last user's turn).
    asked = str(messages[-2].get("content") or "").strip() if len(messages) > 1 else ""
    seam = prompt[prompt.rfind(asked) :].rstrip() if asked and asked in prompt else ""
    if seam and seam in whole:
        return whole[whole.rfind(seam) + len(seam) :]
    raise ModelError(
        "the chat template does not write an assistant turn after what it asks the model to go on from, so the turn's "
        f"tokens cannot be told. Asked: {prompt[-300:]!r}; written: {whole[-300:]!r}"
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text that begin with one BOS, where the tokenizer writes it or the text has it."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    return [bos, *ids] if _writes_bos(tokenizer) and ids[:1] != [bos] else ids


@lru_cache(maxsize=16)
def _writes_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


@lru_cache(maxsize=16)
def _control(tokenizer: Any) -> frozenset[int]:
    """Added tokens that are no part of a text: special ones, and others that close nothing that a turn opens."""
    added = {index: token for index, token in tokenizer.added_tokens_decoder.items()}
    plain = {index for index, token in added.items() if not token.special and not token.content.startswith("<|")}
    return frozenset({*added, *tokenizer.all_special_ids} - plain)


def _added(tokenizer: Any, text: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    return [token for token in ids if token in tokenizer.added_tokens_decoder or token in tokenizer.all_special_ids]
