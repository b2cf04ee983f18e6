"""What `bloomery advise` measures of a user's model and files, in place of what it would have to ask."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from bloomery.components.core.errors import DataError, ModelError
from bloomery.components.core.modelling import shapes
from bloomery.components.core.modelling.cards import Card
from bloomery.components.core.modelling.shapes import Shape
from bloomery.pipelines.advise_decisions import Measured
from bloomery.pipelines.counted import CHARACTERS_PER_TOKEN

SAMPLE = 500
"""Rows that are tokenised and whose language is told, at most twice as many; all are counted."""
SPOKEN = 0.05
"""Share of the rows from which a language is one of the data's. A reading aid."""
TURNS = ("messages", "conversations", "conversation")


T = TypeVar("T")


class Files(NamedTuple):
    """The files that are measured; '' where there is none."""

    chats: str = ""
    documents: str = ""
    preferences: str = ""
    general: str = ""


def measure(model: str, files: Files, card: Card, serving: Card | None) -> tuple[Measured, dict[str, Any]]:
    """(what was measured, the answers that are found by it) of a model's folder and of `files`.

    A model that is no folder is not measured, and its tokens are guessed. Raises: ModelError if the folder is no model,
    DataError if a file has no row of its kind.
    """
    folder = Path(model) if Path(model).is_dir() else None
    tokenizer, facts = _tokenizer(folder) if folder else (None, {})
    shape = _shape(folder) if folder else None
    found: dict[str, Any] = {"shape": shape, "card": card, "serving": serving, **facts}
    answers: dict[str, Any] = {}
    texts: list[str] = []
    if files.chats:
        chats, told = _chats(files.chats, tokenizer, shape)
        found |= told
        texts += chats
        answers["examples"] = told["chats"]
    if files.documents:
        found["document"], documents, characters = _documents(files.documents)
        texts += documents
        answers["document_tokens"] = round(characters / _characters_a_token(documents, tokenizer))
    if files.preferences:
        found["pair"], answers["pairs"] = _pairs(files.preferences)
    if files.general:
        found["general"], _, _ = _documents(files.general)
    if texts:
        by_language = _by_language(texts)
        if tokenizer is not None:
            found["tokens_a_word"] = {one: _tokens_a_word(said, tokenizer) for one, said in by_language.items()}
        spoken = [one for one, said in by_language.items() if len(said) >= SPOKEN * len(texts)]
        answers |= {"languages": ",".join(spoken)} if spoken else {}
    return Measured(**found), answers


def _tokenizer(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The tokenizer of a model, with the template that it is given where it has none."""
    from bloomery.components.core.modelling import checkpoints, inspection

    tokenizer = checkpoints.load_tokenizer(folder)
    lacks_template = not tokenizer.chat_template
    if lacks_template:
        tokenizer.chat_template = inspection.template_text(tokenizer, "chatml")
    return tokenizer, {"lacks_template": lacks_template}


def _shape(folder: Path) -> Shape | None:
    try:
        return shapes.read(folder)
    except ModelError:
        if not (folder / "config.json").is_file():
            raise
        return None  # of an architecture that cannot be planned; a recipe of it can be written all the same


def _rows(path: str) -> Iterator[Mapping[str, Any]]:
    from bloomery.components.core.data.tables import RowSource, rows_of

    return (row.value or {} for row in rows_of(RowSource(path=path)))


class _Sample(Generic[T]):
    """Evenly spread items of many, each with all before it counted."""

    def __init__(self) -> None:
        self.count, self.stride = 0, 1
        self.items: list[T] = []

    def add(self, item: T) -> None:
        if self.count % self.stride == 0:
            self.items.append(item)
        self.count += 1
        if len(self.items) > 2 * SAMPLE:
            self.items, self.stride = self.items[::2], 2 * self.stride


def _chats(path: str, tokenizer: Any, shape: Shape | None) -> tuple[list[str], dict[str, Any]]:
    """(texts of some of the chats, how many there are, in which form, and how long they are)."""
    from bloomery.components.core.data.chat_forms import read_chat
    from bloomery.components.core.data.chat_turns import Unfit
    from bloomery.components.core.data.chats import as_text
    from bloomery.components.core.modelling import templates

    kept: _Sample[tuple[Mapping[str, Any], Any]] = _Sample()
    reasons: Counter[str] = Counter()
    for row in _rows(path):
        try:
            kept.add((row, read_chat(row)))
        except Unfit as error:
            reasons[error.reason] += 1
    if not kept.count:
        told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(3)) or "it is empty"
        raise DataError(f"--chats {path}: no row is a chat ({told}); `bloomery show recipe chats` names the forms")
    facts = {"chats": kept.count, "not_chats": reasons.total(), "chat": _form(kept.items[0][0])}
    if tokenizer is not None:
        rows = (templates.trained_rows(tokenizer, chat.messages, chat.tools) for _, chat in kept.items)
        lengths = sorted(max(len(ids) for ids, _ in made) for made in rows)
        facts["longest"] = lengths[int(0.99 * (len(lengths) - 1))]
        if shape and shape.context:
            facts["over_context"] = sum(length > shape.context for length in lengths) / len(lengths)
    return [as_text(chat.messages) for _, chat in kept.items], facts


def _form(row: Mapping[str, Any]) -> dict[str, str]:
    """The template of a task whose rows look like this chat."""
    if turns := next((name for name in TURNS if row.get(name)), ""):
        return {"messages": turns}
    if "instruction" in row:
        return {"prompt": "{instruction}\n\n{input}" if row.get("input") else "{instruction}", "answer": "{output}"}
    return {"prompt": "{prompt}", "answer": "{completion}"}


def _pairs(path: str) -> tuple[dict[str, str], int]:
    """(template of a task whose rows are these pairs, how many there are)."""
    from bloomery.components.core.data.chat_forms import read_pair
    from bloomery.components.core.data.chat_turns import Unfit

    count, form = 0, {}
    for row in _rows(path):
        try:
            is_scored = read_pair(row).score is not None
        except Unfit:
            continue
        if is_scored:
            continue  # a reward model learns from it, and preference optimisation does not
        is_text = isinstance(row.get("chosen"), str) and isinstance(row.get("prompt"), str)
        form = form or ({"prompt": "{prompt}", "answer": "{chosen}"} if is_text else {"messages": "chosen"})
        count += 1
    if not count:
        raise DataError(
            f"--preferences {path}: no row is a preference pair; `bloomery show recipe preferences` names the forms"
        )
    return form, count


def _documents(path: str) -> tuple[str, list[str], int]:
    """(template of a document, some documents, characters of all)."""
    kept: _Sample[str] = _Sample()
    characters, name = 0, ""
    for row in _rows(path):
        texts = {key: value for key, value in row.items() if isinstance(value, str)}
        name = name or ("text" if "text" in texts else max(texts, key=lambda key: len(texts[key]), default=""))
        if text := texts.get(name, "").strip():
            characters += len(text)
            kept.add(text)
    if not kept.count:
        raise DataError(f"{path}: no row has a text; expected documents, such as JSON lines with `text`")
    return f"{{{name}}}", kept.items, characters


def _characters_a_token(texts: Iterable[str], tokenizer: Any) -> float:
    if tokenizer is None:
        return CHARACTERS_PER_TOKEN
    return sum(map(len, texts)) / max(1, _tokens(texts, tokenizer))


def _tokens(texts: Iterable[str], tokenizer: Any) -> int:
    return sum(len(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"])


def _tokens_a_word(texts: list[str], tokenizer: Any) -> float:
    """Tokens of what stands between spaces: fertility (arXiv 2012.15613)."""
    return _tokens(texts, tokenizer) / max(1, sum(len(text.split()) for text in texts))


def _by_language(texts: Iterable[str]) -> dict[str, list[str]]:
    """The texts by their language, the one with most first; those whose language cannot be told are left out."""
    from bloomery.components.data_curation.config import DataCurationConfig
    from bloomery.components.data_curation.language import UNDECIDED, detect

    least = DataCurationConfig.model_fields["min_language_score"].default
    found: dict[str, list[str]] = {}
    for text in texts:
        found.setdefault(detect(text, least), []).append(text)
    told = ((one, said) for one, said in found.items() if one != UNDECIDED and re.fullmatch("[a-z]{2,3}", one))
    return dict(sorted(told, key=lambda item: -len(item[1])))
