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
from bloomery.components.core.scoring.refusal import is_refusal
from bloomery.components.core.scoring.verify import normalise
from bloomery.components.data_curation.language import detect

MIN_LANGUAGE_SHARE = 0.05
"""Share of a window's prompts from which a language is watched; below it, it is mostly the detector's mistakes."""
MIN_LANGUAGE_SCORE = 0.5
"""Curation's default: below it the language is undecided."""

_WORD = re.compile(r"[^\W\d_]+|\d+")
_HANGUL = re.compile(r"[가-힣]")
_BROKEN = re.compile(r"[\ufffd\ud800-\udfff\ue000-\uf8ff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""What wrong decoding leaves: replacement and private characters, halves of pairs, control characters."""


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
        return list(dict.fromkeys(w for w in words(text) if any(not self._num_texts[piece] for piece in pieces(w))))


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
            "mean_log_probability": row.mean_log_probability,
            "mean_entropy": row.mean_entropy,
            "is_empty_response": float(not row.response.strip()),
            "is_refusal": float(is_refusal(row.response)),
            "latency_seconds": row.latency_seconds,
            "feedback": row.feedback,
            "label_match": None if row.label is None else float(normalise(row.response) == normalise(row.label)),
            "is_empty_prompt": float(not row.prompt.strip()),
            "is_broken_prompt": float(bool(_BROKEN.search(row.prompt))),
        }
        for row in rows
    ]
    return {name: [row[name] for row in described] for name in described[0]}


def language_columns(
    before: Sequence[str], after: Sequence[str]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """For both windows, whether each prompt is in a language, as `prompt_in_<code>`: the languages of at least
    MIN_LANGUAGE_SHARE of a window's prompts, as curation tells them; not if it is one alone.

    Columns of their own, because Evidently's chi-square test takes the reference's shares for the truth: of two equal
    samples it doubles the variance, and alarms falsely.
    """
    spoken = [[detect(text, MIN_LANGUAGE_SCORE) for text in side] for side in (before, after)]
    found = {
        code for side in spoken for code, count in Counter(side).items() if count >= MIN_LANGUAGE_SHARE * len(side)
    }
    if len(found) < 2:
        return {}, {}
    old, new = ({f"prompt_in_{code}": [float(c == code) for c in side] for code in sorted(found)} for side in spoken)
    return old, new


def repeats(rows: Sequence[Prediction], num_rows: int) -> list[float | None]:
    """Whether each of the first `num_rows` prompts occurred in one before it; None for the others: among more rows
    there are more repetitions, so that windows are compared by equal numbers."""
    seen: set[str] = set()
    found: list[float | None] = []
    for row in rows[:num_rows]:
        text = normalise(row.prompt, ignore_case=True)
        found.append(float(text in seen))
        if text:  # empty prompts are a signal of their own
            seen.add(text)
    return found + [None] * (len(rows) - len(found))
