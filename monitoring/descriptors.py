"""What is measured of one row: numbers that mean the same in Korean and in English.

Counts of words by white space alone fail for Korean in two ways: libraries that look for Latin letters count
none, and a word with another particle is another word. So words are counted by white space, but novelty is
measured over `pieces`: lower-case Latin words, digits as shapes, and pairs of neighbouring syllables inside a
Korean word.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from bloomery.components.core.records import Prediction
from bloomery.components.core.verify import normalise

_WORD = re.compile(r"[^\W\d_]+|\d+")
_HANGUL = re.compile(r"[가-힣]")


def words(text: str) -> list[str]:
    """Runs of letters and runs of digits, lower-case, after NFC: decomposed Hangul is the same text."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


def pieces(word: str) -> list[str]:
    """The units that novelty is counted in: `abc` → abc; `2025` → 0000; `상품권` → 상품, 품권."""
    if word.isdigit():
        return ["0" * len(word)]
    if _HANGUL.search(word) and len(word) > 1:
        return [word[index : index + 2] for index in range(len(word) - 1)]
    return [word]


class Vocabulary:
    """In how many texts each piece occurs."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._num_texts = Counter(piece for text in texts for piece in set(_all_pieces(text)))

    def novelty(self, text: str, *, is_own: bool = False) -> float:
        """Share of the pieces of `text` that no text of the vocabulary has; `is_own` leaves out the text
        itself.

        Without that, the reference would have no novelty at all and any other window would look new.
        """
        found = _all_pieces(text)
        return sum(self._num_texts[piece] <= is_own for piece in found) / len(found) if found else 0.0

    def novel_words(self, text: str) -> list[str]:
        """The words of `text` with a piece that no text of the vocabulary has, each once, in order."""
        return list(
            dict.fromkeys(w for w in words(text) if any(not self._num_texts[piece] for piece in pieces(w)))
        )


def _all_pieces(text: str) -> list[str]:
    return [piece for word in words(text) for piece in pieces(word)]


def describe(text: str) -> dict[str, float]:
    """Length in characters, words by white space, and shares of the non-space characters, of one text."""
    text = unicodedata.normalize("NFC", text)
    solid = [character for character in text if not character.isspace()]
    total = len(solid) or 1
    return {
        "characters": len(text),
        "words": len(text.split()),
        "hangul_share": sum("가" <= character <= "힣" for character in solid) / total,
        "digit_share": sum(character.isdigit() for character in solid) / total,
        "punctuation_share": sum(unicodedata.category(character)[0] in "PS" for character in solid) / total,
    }


def columns(
    rows: Sequence[Prediction], prompts: Vocabulary, responses: Vocabulary, *, is_reference: bool
) -> dict[str, list[float | None]]:
    """One value a row and signal; None where the row has none. `prompts` and `responses` are of the
    reference."""
    described = [
        {
            **{f"prompt_{name}": value for name, value in describe(row.prompt).items()},
            "prompt_novelty": prompts.novelty(row.prompt, is_own=is_reference),
            "prompt_tokens": float(row.prompt_tokens),
            "response_characters": float(len(row.response)),
            "response_novelty": responses.novelty(row.response, is_own=is_reference),
            "response_tokens": float(row.response_tokens),
            "is_empty_response": float(not row.response.strip()),
            "latency_seconds": row.latency_seconds,
            "feedback": row.feedback,
            "label_match": None
            if row.label is None
            else float(normalise(row.response) == normalise(row.label)),
        }
        for row in rows
    ]
    return {name: [row[name] for row in described] for name in described[0]}
