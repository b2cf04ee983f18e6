"""Chats as an artifact, for steps that learn from them or calibrate on them."""

from pathlib import Path
from typing import Any

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat, message
from bloomery.components.core.records import Chat, content_id


def write_chats(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    """Write a chat/2 artifact of (prompt, answer) pairs to `folder`, and return it."""
    rows = [
        {"id": content_id(*pair), "messages": chat(*pair), "tools": "", "task": "echo", "origin": "seed", "parent": ""}
        for pair in pairs
    ]
    artifact.write_rows(folder, "chat/2", Chat.table(rows))
    return folder


def prompt_row(task: str, split: str, prompt: str, reference: str, **more: str) -> dict[str, Any]:
    """A prompt/2 row of a lone user turn; of a perplexity task where `prompt` is empty."""
    facts = {"task": task, "split": split, "reference": reference, "group": "", "tools": ""}
    messages = chat(prompt) if prompt else []
    return {"id": content_id(task, prompt, reference), **facts, "messages": messages, **more}


def preference_row(prompt: str, chosen: str, rejected: str, task: str = "echo") -> dict[str, Any]:
    """A preference/3 row of a lone user turn."""
    sides = {"chosen": [message("assistant", chosen)], "rejected": [message("assistant", rejected)]}
    key = content_id(prompt, chosen, rejected)
    return {"id": key, "task": task, "messages": chat(prompt), "tools": "", **sides}
