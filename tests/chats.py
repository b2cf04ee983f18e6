"""Chats as an artifact, for steps that learn from them or calibrate on them."""

from pathlib import Path

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat
from bloomery.components.core.records import Chat, content_id


def write_chats(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    """Write a chat/1 artifact of (prompt, answer) pairs to `folder`, and return it."""
    rows = [
        {"id": content_id(*pair), "messages": chat(*pair), "task": "echo", "origin": "seed", "parent": ""}
        for pair in pairs
    ]
    artifact.write_rows(folder, "chat/1", Chat.table(rows))
    return folder
