"""Conversations as messages."""

from __future__ import annotations


def chat(prompt: str, answer: str | None = None) -> list[dict[str, str]]:
    """The messages of a single-turn chat."""
    user = {"role": "user", "content": prompt}
    return [user] if answer is None else [user, {"role": "assistant", "content": answer}]
