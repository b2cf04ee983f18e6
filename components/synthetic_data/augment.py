"""Other wordings of a question that ask the same: rules that leave numbers, quotations and names alone.

The answer is kept as it is, so a rule may only change what no answer depends on: never a value, a negation or
a noun.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence

Rule = Callable[[str, random.Random], str]

_QUOTED = re.compile(r"(`[^`]*`|\"[^\"]*\"|“[^”]*”|‘[^’]*’|(?<!\w)'[^']*'(?!\w))")
_HAS_DIGIT = re.compile(r"\d")
_ARTICLE = re.compile(r"\b(?:the|a|an|please)[ ]", re.IGNORECASE)
_HANGUL_SPACE = re.compile(r"(?<=[\uac00-\ud7a3])[ ](?=[\uac00-\ud7a3])")
_END = re.compile(r"[.?!]+\s*$")


def lower_case(text: str, rng: random.Random) -> str:
    """Everything outside quotations in lower case."""
    return _outside_quotes(text, str.lower)


def drop_end(text: str, rng: random.Random) -> str:
    """No mark at the end of the sentence."""
    return _END.sub("", text)


def drop_word(text: str, rng: random.Random) -> str:
    """One article or `please` fewer: other words may carry the meaning."""
    return _replace_one(_ARTICLE, text, lambda match: "", rng)


def drop_space(text: str, rng: random.Random) -> str:
    """One space between Korean words fewer, as Korean is often typed."""
    return _replace_one(_HANGUL_SPACE, text, lambda match: "", rng)


def synonym_rule(synonyms: Mapping[str, Sequence[str]]) -> Rule:
    """A rule that puts one of the given synonyms in the place of one phrase.

    A Korean word may carry a particle, whose form follows the last sound: only a synonym that ends alike
    fits.
    """
    by_phrase = {phrase.casefold(): list(others) for phrase, others in synonyms.items()}
    longest_first = sorted(by_phrase, key=len, reverse=True)
    phrases = "|".join(map(re.escape, longest_first))
    pattern = re.compile(rf"(?<!\w)(?:{phrases})(?![A-Za-z0-9_])", re.IGNORECASE)

    def replace(text: str, rng: random.Random) -> str:
        def other(match: re.Match[str]) -> str:
            phrase = match.group()
            fitting = [word for word in by_phrase[phrase.casefold()] if _end_alike(phrase, word)]
            if not fitting:
                return phrase
            word = rng.choice(fitting)
            return word[0].upper() + word[1:] if phrase[0].isupper() else word

        return _replace_one(pattern, text, other, rng) if by_phrase else text

    return replace


def rules(synonyms: Mapping[str, Sequence[str]]) -> list[Rule]:
    """Every rule, in a fixed order."""
    return [lower_case, drop_end, drop_word, drop_space, synonym_rule(synonyms)]


def augment(text: str, available: Sequence[Rule], rng: random.Random) -> str:
    """`text` after one or two rules that change it, drawn at random; unchanged if none does."""
    changed = text
    applied = 0
    wanted = rng.choice((1, 2))
    for rule in rng.sample(available, len(available)):
        candidate = rule(changed, rng)
        if candidate != changed and candidate.strip() and _values(candidate) == _values(text):
            changed, applied = candidate, applied + 1
        if applied == wanted:
            break
    return changed


def _values(text: str) -> list[str]:
    """What an answer may copy: quotations, and words with digits."""
    words = (word.strip(".,?!").lower() for word in text.split() if _HAS_DIGIT.search(word))
    return sorted([*_QUOTED.findall(text), *words])


def _outside_quotes(text: str, change: Callable[[str], str]) -> str:
    pieces = _QUOTED.split(text)
    return "".join(piece if index % 2 else change(piece) for index, piece in enumerate(pieces))


def _replace_one(pattern: re.Pattern[str], text: str, new: Callable[[re.Match[str]], str], rng: random.Random) -> str:
    quoted = [match.span() for match in _QUOTED.finditer(text)]
    found = [
        match
        for match in pattern.finditer(text)
        if not any(start < match.end() and match.start() < end for start, end in quoted)
    ]
    if not found:
        return text
    match = rng.choice(found)
    return text[: match.start()] + new(match) + text[match.end() :]


def _end_alike(one: str, other: str) -> bool:
    """True unless one of two Korean words ends in a consonant and the other in a vowel."""
    ends = [ord(word[-1]) - 0xAC00 for word in (one, other) if word]
    if len(ends) < 2 or not all(0 <= end < 11172 for end in ends):
        return len(ends) == 2
    return (ends[0] % 28 == 0) == (ends[1] % 28 == 0)
