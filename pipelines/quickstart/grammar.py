"""A tiny seeded text generator: templates with choices, named rules and Korean particles."""

from __future__ import annotations

import random
import re

_SLOT = re.compile(r"\{([^{}]*)\}")
_PARTICLE = re.compile(r"(.)\[([^/\]]*)/([^/\]]*)\]")
# Sino-Korean readings of the digits 0-9 that end in a consonant (영 일 삼 육 칠 팔); 1, 7 and 8 end in ㄹ.
_DIGITS_WITH_FINAL = "013678"
_DIGITS_WITH_RIEUL = "178"
_RIEUL = 8


def expand(template: str, rules: dict[str, list[str]], rng: random.Random) -> str:
    """Return `template` with `{a|b}` replaced by one choice and `{name}` by one entry of `rules[name]`.

    Entries may hold slots themselves; innermost slots are resolved first, from left to right, so the same
    `rng` state gives the same text. Korean particles written `[은/는]` are settled at the end.
    """

    def choose(match: re.Match[str]) -> str:
        body = match.group(1)
        return rng.choice(body.split("|") if "|" in body else rules[body])

    while _SLOT.search(template):
        template = _SLOT.sub(choose, template)
    return settle_particles(template)


def settle_particles(text: str) -> str:
    """Return `text` with each `[with/without]` particle chosen by the final sound of the character before it.

    `[은/는]`, `[을/를]`, `[이/가]`, `[과/와]` take the first form after a final consonant; `[으로/로]` takes the
    second after a final ㄹ as well (standard Korean orthography).
    """

    def settle(match: re.Match[str]) -> str:
        before, with_final, without_final = match.groups()
        has_final, is_rieul = _final_sound(before)
        if with_final == "으로" and is_rieul:
            has_final = False
        return before + (with_final if has_final else without_final)

    return _PARTICLE.sub(settle, text)


def _final_sound(character: str) -> tuple[bool, bool]:
    if "가" <= character <= "힣":
        final = (ord(character) - ord("가")) % 28
        return final != 0, final == _RIEUL
    return character in _DIGITS_WITH_FINAL, character in _DIGITS_WITH_RIEUL
