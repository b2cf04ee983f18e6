"""What a checkpoint is, what it lacks and what will be supplied, without training: preflight and `bloomery check` ask
here."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bloomery.components.core import artifact
from bloomery.components.core.data.chat_forms import PairKind
from bloomery.components.core.errors import ConfigError, DataError, ModelError
from bloomery.components.core.modelling import checkpoints, faults, preference_pairs, templates, wholeness
from bloomery.components.core.modelling.context import TooLong, context_tokens, fitting
from bloomery.components.core.modelling.proof import EndInsideError
from bloomery.components.core.modelling.templates import TrainOn

logger = logging.getLogger(__name__)

Chats = Sequence[tuple[Sequence[dict[str, Any]], str]]
"""Chats with their tools."""
CHATML = (
    "{%% for message in messages %%}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + %s + '\n' }}"
    "{%% endfor %%}{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\n' }}{%% endif %%}"
)
"""https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md, with the token that ends a turn left open."""
EXAMPLE: Chats = [
    (
        [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": "What is the capital of Korea?"},
            {"role": "assistant", "content": "Seoul"},
            {"role": "user", "content": "프랑스의 수도는?"},
            {"role": "assistant", "content": "파리"},
        ],
        "",
    )
]
"""What `bloomery check` shows where no recipe gives chats."""


NUM_QUESTIONS = 200
"""Questions of an evaluation set that are measured; all of them where none of these can be asked."""


class EvaluationSet(NamedTuple):
    """The questions of an evaluation set as they are asked."""

    name: str
    """`task.set`."""
    conversations: list[list[dict[str, Any]]]
    tools: list[str]
    max_new_tokens: int


def look(
    path: Path,
    *,
    chats: Chats = (),
    pairs: Sequence[Mapping[str, Any]] = (),
    evaluation_sets: Sequence[EvaluationSet] = (),
    files: Mapping[str, Callable[[], Iterable[tuple[Sequence[dict[str, Any]], str]]]] = {},  # noqa: B006
    chat_template: str = "",
    max_length: int = 0,
    most_tokens: int = 0,
    train_on: TrainOn = "all_turns",
    train_reasoning: bool = True,
    pair_max_length: int = 0,
    pair_kinds: Collection[PairKind] = (),
    too_long: TooLong = "drop",
) -> dict[str, Any]:
    """The facts of the checkpoint folder `path` as JSON takes them, with every reason to refuse it under `refused`.

    `chats` are rendered, proven and measured against `max_length` (tokens; 0: none); without any, an example is.
    `pairs`, rows of preference/3, are measured against `pair_max_length`, as far as they are pairs or of the other
    `pair_kinds` that are learnt from, and the questions of `evaluation_sets`
    against the model's context; a set that cannot be evaluated with `too_long` is told under `unfit`, and so is one of
    `files`, which give their chats, that has none of `most_tokens` tokens at most (0: any will do).
    `chat_template` is the recipe's: `chatml`, a path, or ''.
    """
    facts: dict[str, Any] = {"model": str(path), "refused": faults.found(path, to_train=True), "unfit": []}
    if facts["refused"]:
        return facts
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    text = {**config, **config.get("text_config", {})}
    facts |= {
        "architecture": ", ".join(config.get("architectures") or [config.get("model_type", "")]),
        "parameters": checkpoints.num_parameters(path),
        "bytes": checkpoints.num_bytes(path),
        "dtype": checkpoints.own_dtype(path),
        "context_tokens": text.get("max_position_embeddings") or text.get("n_positions"),
    }
    try:
        wholeness.check(path)
    except ModelError as error:
        facts["refused"].append(str(error))
    try:
        tokenizer = checkpoints.load_tokenizer(path)
        own = tokenizer.chat_template
        facts["vocabulary"] = {"tokenizer": len(tokenizer), "embeddings": text.get("vocab_size")}
        if chat_template:
            tokenizer.chat_template = template_text(tokenizer, chat_template)
        facts["template"] = "supplied" if chat_template else "own" if own else "none"
        names = ("bos", "eos", "pad", "unk")
        facts["special_tokens"] = {name: getattr(tokenizer, f"{name}_token") for name in names}
        checkpoints.check_vocabulary(path, tokenizer, text.get("vocab_size") or len(tokenizer))
        facts |= _turns(path, tokenizer, chat_template)
        shown = (chats, max_length) if chats else (_example(tokenizer), 0)  # an example is nobody's row
        facts |= _rendered(tokenizer, *shown, train_on, train_reasoning)
        facts["is_example"] = not chats
        facts |= _measured_pairs(tokenizer, pairs, pair_max_length, pair_kinds)
        facts |= _measured_questions(path, tokenizer, evaluation_sets, too_long)
        if facts["lengths"]["longest"][0] > most_tokens > 0:
            facts["unfit"] += _too_long(tokenizer, files, most_tokens, train_on, train_reasoning)
    except ModelError as error:
        facts["refused"].append(str(error))
    return facts


def template_text(tokenizer: Any, chat_template: str) -> str:
    """The template that the recipe's `chat_template` names: `chatml`, or that of a file.

    ChatML ends turns with `<|im_end|>` where the tokenizer has it, else with EOS. Raises: ConfigError without the file.
    """
    if chat_template != "chatml":
        try:
            return Path(chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"chat_template: found {chat_template}, expected `chatml` or the path of a Jinja template: {error}"
            ) from None
    has_end = "<|im_end|>" in tokenizer.get_vocab()
    return CHATML % ("'<|im_end|>'" if has_end else "eos_token")


def supply(path: Path, chat_template: str, ends: Sequence[int]) -> None:
    """Write into the checkpoint folder what it lacks: the recipe's chat template, and what ends a turn.

    Files are replaced, not changed: they may be links to the user's own.
    """
    if chat_template:
        tokenizer = checkpoints.load_tokenizer(path)
        artifact.write_atomically(path / "chat_template.jinja", template_text(tokenizer, chat_template))
    file = path / "generation_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if settings.get("eos_token_id") not in (list(ends), *ends[: len(ends) == 1]):
        settings["eos_token_id"] = list(ends)
        artifact.write_atomically(file, json.dumps(settings, indent=2))


def describe(facts: dict[str, Any]) -> str:
    """The facts of `look` for people; trained tokens stand in ⟦ ⟧."""
    lines = [f"{facts['model']}: {facts['architecture']}" if "architecture" in facts else facts["model"]]
    if "architecture" in facts:
        size, context = f"{facts['parameters']:,} parameters", facts["context_tokens"] or "of any number of"
        lines.append(f"  {size}, {facts['dtype']}, {facts['bytes'] / 1e6:,.0f} MB, context {context} tokens")
    if "vocabulary" in facts:
        known = facts["vocabulary"]
        lines.append(f"  vocabulary    {known['tokenizer']:,} tokens, {known['embeddings']:,} embeddings")
        special = facts["special_tokens"].items()
        lines.append("  special       " + ", ".join(f"{name} {token!r}" for name, token in special if token))
    if "ends" in facts:
        lines.append(f"  template      {facts['template']}, marks for the loss derived and proven")
        lines.append(f"  ends a turn   {', '.join(map(repr, facts['ends']))}")
    lines += [f"  supplied      {what}" for what in facts.get("supplied", [])]
    if "lengths" in facts:
        found = facts["lengths"]
        over = f", {found['over']:.1%} over max_length {found['max_length']}" if found["max_length"] else ""
        told = f"{found['rows']} of {found['chats']} chats, longest {found['longest']}{over}"
        lines.append(f"  rows          {'no chats were given' if facts['is_example'] else told}")
        if found["end_inside"]:
            lines.append(f"  left out      {found['end_inside']} chats, such as {found['first_end_inside']}")
    if "pair_lengths" in facts:
        found = facts["pair_lengths"]
        over = f", {found['over']:.1%} over max_length {found['max_length']}" if found["max_length"] else ""
        lines.append(f"  pairs         {found['pairs']} preferences, longest {found['longest']}{over}")
    sample = facts.get("sample", [])
    for number, row in enumerate(sample, start=1):
        shown = "".join(f"⟦{text}⟧" if trained else text for text, trained in row)
        which = f", row {number} of {len(sample)}" if len(sample) > 1 else ""
        chat = "a chat of ours" if facts["is_example"] else "first chat"
        lines += [f"  {chat}{which}, trained tokens in ⟦ ⟧:", *(f"    {line}" for line in shown.split("\n"))]
    lines += [f"refused: {reason}" for reason in facts["refused"]]
    return "\n".join(lines)


def _turns(path: Path, tokenizer: Any, chat_template: str) -> dict[str, Any]:
    """How turns end and what is supplied."""
    turns = templates.turns(tokenizer)
    file = path / "generation_config.json"
    stored = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    named = stored if isinstance(stored, list) else [stored] if stored is not None else []
    if not all(type(one) is int and 0 <= one < len(tokenizer) for one in named):
        told = f"{file}: eos_token_id is {stored!r}"
        raise ModelError(f"{told}, expected ids of the tokenizer's {len(tokenizer):,} tokens")
    ends = list(dict.fromkeys([*templates.end_tokens(tokenizer), *named]))
    supplied = []
    if chat_template:
        supplied.append(f"the chat template {chat_template}")
    if turns.header:
        supplied.append(f"{turns.header!r} after a prompt, which the template forgets")
    if turns.is_supplied:
        supplied.append(f"{tokenizer.decode([turns.end])!r} at the end of a turn, where the template writes nothing")
    if set(ends) - set(named):
        told = ", ".join(repr(tokenizer.decode([end])) for end in ends)
        supplied.append(f"eos_token_id of generation_config.json: {told}")
    if tokenizer.pad_token_id in (None, *ends):
        supplied.append(
            f"nothing for padding: {tokenizer.pad_token!r} fills batches, masks and labels know the lengths"
        )
    if "strftime_now" in str(tokenizer.chat_template):
        supplied.append("one date for every prompt (26 July 2024), where the template would print today's")
    return {"ends": [tokenizer.decode([end]) for end in ends], "end_ids": ends, "supplied": supplied}


def _rendered(
    tokenizer: Any, chats: Chats, max_length: int, train_on: TrainOn, train_reasoning: bool
) -> dict[str, Any]:
    """The first chat in pieces, each (text, whether trained), how long the rows of all are, and how many chats say what
    ends a turn, so that training leaves them out."""
    sample: list[list[tuple[str, bool]]] = []
    lengths = []
    end_inside = ""
    num_end_inside = 0
    for number, (messages, tools) in enumerate(chats):
        try:
            rows = templates.trained_rows(tokenizer, messages, tools, train_on, train_reasoning)
        except EndInsideError as error:
            num_end_inside += 1
            end_inside = end_inside or f"chat {number + 1} of {len(chats)}: {error}"
            continue
        except ModelError as error:
            raise ModelError(f"chat {number + 1} of {len(chats)}: {error}") from None
        lengths += [len(ids) for ids, _ in rows]
        sample = sample or [
            [
                (tokenizer.decode([token for token, _ in run]), trained)
                for trained, run in itertools.groupby(zip(*row, strict=True), key=lambda pair: pair[1])
            ]
            for row in rows
        ]
    if not lengths:
        raise ModelError(end_inside)
    longest = sorted(lengths, reverse=True)[:3]
    over = sum(length > max_length for length in lengths) / len(lengths) if max_length else 0.0
    counted = {"chats": len(chats), "rows": len(lengths), "longest": longest, "max_length": max_length, "over": over}
    counted |= {"end_inside": num_end_inside, "first_end_inside": end_inside}
    return {"sample": sample, "lengths": counted}


def _too_long(
    tokenizer: Any, files: Mapping[str, Any], most_tokens: int, train_on: TrainOn, train_reasoning: bool
) -> list[str]:
    """Those of `files` of which every chat is too long: as a rule the first chat is all that is read."""
    told = []
    for where, read in files.items():
        shortest = 0
        for messages, tools in read():
            try:
                rows = templates.trained_rows(tokenizer, messages, tools, train_on, train_reasoning)
            except ModelError as error:
                raise ModelError(f"{where}: {error}") from None
            length = min(len(ids) for ids, _ in rows)
            if length <= most_tokens:
                break
            shortest = min(length, shortest or length)
        else:
            if shortest:
                told.append(
                    f"{where}: every chat is too long: max_length allows {most_tokens} tokens, and the shortest has "
                    f"{shortest}; raise max_length, or let the stage cut them by too_long: truncate_left"
                )
    return told


def _measured_pairs(
    tokenizer: Any, pairs: Sequence[Mapping[str, Any]], max_length: int, kinds: Collection[PairKind]
) -> dict[str, Any]:
    """How long preference pairs are, or single answers with their prompt, as trainings count them; nothing without
    any."""
    lengths = []
    for number, row in enumerate(pairs, start=1):
        try:
            if row.get("score") is not None and "score" in kinds:
                pair, _ = preference_pairs.pair_of(tokenizer, {**row, "score": None}, takes_single=True)
            else:
                pair, _ = preference_pairs.pair_of(tokenizer, row, takes_single="label" in kinds)
        except ModelError as error:
            raise ModelError(f"preference pair {number} of {len(pairs)}: {error}") from None
        lengths += [pair.length] if pair else []
    if not pairs:
        return {}
    over = sum(length > max_length for length in lengths) / len(pairs) if max_length else 0.0
    longest = sorted(lengths, reverse=True)[:3]
    return {"pair_lengths": {"pairs": len(pairs), "longest": longest, "max_length": max_length, "over": over}}


def _measured_questions(
    path: Path, tokenizer: Any, sets: Sequence[EvaluationSet], too_long: TooLong
) -> dict[str, Any]:
    """The share of each set's questions that leave no room for an answer, and why a whole set cannot be asked."""
    found: dict[str, Any] = {"questions": [], "unfit": []}
    context = context_tokens(checkpoints.load_config(path), tokenizer) if sets else 0
    for name, conversations, tools, max_new_tokens in sets:
        where, room, problem = f"evaluation: tasks.{name}", context - max_new_tokens, ""
        for end in (NUM_QUESTIONS, None):  # where none of the first fits, one after them may
            looked_at = conversations[:end]
            try:
                asked = fitting(tokenizer, looked_at, tools[:end], room, too_long, where)
            except DataError as error:
                problem = str(error)
                continue
            except ModelError as error:
                raise ModelError(f"tasks.{name}: {error}") from None
            over = sum(now != before for now, before in zip(asked, looked_at, strict=True)) / len(looked_at)
            found["questions"].append({"set": name, "questions": len(looked_at), "room": room, "over": over})
            break
        else:
            found["unfit"].append(problem)
    return found


def _example(tokenizer: Any) -> Chats:
    """The built-in chat, without its system prompt where the template forbids one."""
    messages, tools = EXAMPLE[0]
    try:
        templates.prompt_tokens(tokenizer, messages[:2])
    except ModelError:
        return [(messages[1:], tools)]
    return EXAMPLE
