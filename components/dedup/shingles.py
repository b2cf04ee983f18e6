"""The text that is compared, and its character n-grams as 64-bit hashes.

Characters, not words: on copies with 5 % of their words edited, word 5-grams find 8 % at a Jaccard of .8,
character 5-grams 82 %; and Korean copies that drop spaces or swap particles share few words. A syllable block
of Hangul holds two to three letters, so scripts of that kind take shorter n-grams.
"""

from __future__ import annotations

import re
import unicodedata

import numpy as np

_DENSE = re.compile(r"[\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3]")
_NEITHER = re.compile(r"[\W_]+")
_LETTER = re.compile(r"[^\W\d_]")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(32)

MIN_DENSE_SHARE = 0.2
"""Share of Hangul, kana and Chinese letters from which a text counts as written in them."""


def comparable(text: str) -> str:
    """NFKC, lower case, without white space: what stays equal when a copy is re-typed, re-wrapped or
    re-spaced."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def letters_and_digits(text: str) -> str:
    """`comparable` without punctuation and symbols."""
    return _NEITHER.sub("", comparable(text))


def is_dense(text: str) -> bool:
    """True if the text is written in Hangul, kana or Chinese characters."""
    num_letters = len(_LETTER.findall(text))
    return num_letters > 0 and len(_DENSE.findall(text)) >= MIN_DENSE_SHARE * num_letters


def has_dense(text: str) -> bool:
    """True if the text holds any Hangul, kana or Chinese character."""
    return _DENSE.search(text) is not None


def ngram_hashes(text: str, n: int) -> np.ndarray:
    """uint64 hashes of the character n-grams of `text` in order, shape (max(1, len(text) - n + 1),).

    A text shorter than `n` is one n-gram. Polynomial rolling hash modulo 2^64 (Karp and Rabin 1987), then
    mixed.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    n = min(n, max(1, len(codes)))
    count = max(1, len(codes) - n + 1)
    hashes = np.full(count, n, dtype=np.uint64)
    for offset in range(min(n, len(codes))):
        hashes = hashes * _MULTIPLIER + codes[offset : offset + count] + np.uint64(1)
    hashes ^= hashes >> _SHIFT
    return hashes * _MULTIPLIER
