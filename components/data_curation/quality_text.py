"""A text as the quality rules see it: code points, what kind of character each is, and hashes of any part of it.

Everything here is compiled by numba; the kinds come from Python's own `unicodedata`.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import NamedTuple

import numpy as np
from numba import njit

compiled = njit(cache=True, nogil=True, error_model="numpy")
"""Threads may run it side by side. A division by zero is not looked for: the functions below divide by counts only."""

NUM_CODES = 0x40000
"""Planes 0 to 3 hold every character that a rule asks for; all others are read as the last one of these."""

(SPACE, BREAK, LETTER, DIGIT, NUMBER, LOWER, UPPER, SIGN, STOP, PUNCTUATION, PEELED, QUOTE, CURRENCY, ICON, GAP) = (
    1 << bit for bit in range(15)
)
"""Bits of a kind. BREAK ends a line as `str.splitlines` sees it; LOWER and UPPER both hold for letters without case;
SIGN is punctuation in the sense of the web filters, STOP ends a sentence; PEELED, QUOTE, CURRENCY and ICON come off the
ends of an English word; GAP stands between the words of prose."""
(SYLLABLE, RARE, JAMO, HAN, ENDING) = (1 << bit for bit in range(15, 20))
"""Hangul: a syllable block, one that KS X 1001 lacks, a single letter; Chinese characters; a last syllable of
`KOREAN_ENDINGS`."""

KOREAN_ENDINGS = "은는이가을를에의로와과도만다요서고며나면지라야까니게던터한된할될인있없"
"""Last syllables of particles and verb endings, which close most Korean words as stop words fill English."""

_STOPS = ".!?‼‽⁇⁈⁉。！．？｡﹒﹖﹗" + "\u0589\u061e\u061f\u06d4\u0964\u0965"
"""Sentence terminals of Unicode for the scripts of most web pages."""
_ASCII_SIGNS = "".join(map(chr, (*range(0x21, 0x30), *range(0x3A, 0x41), *range(0x5B, 0x61), *range(0x7B, 0x7F))))
_SIGNS = _ASCII_SIGNS + "´«»–—’“”„…∶━►、。《》〈〉「」【】！％（），．１：；？～"
_PEELED = "!#&()*,:;<>?[]_{}¡¿…·،؛؟٪۔।、。！，：；？～"
_QUOTES = "'\"`´‘’‚“”„«»「」『』（）〔〕【】《》〈〉⟦⟧"

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_ONE, _HALF = np.uint64(1), np.uint64(32)
ZERO = np.int64(0)
"""Where counting starts whose value is handed on: for a literal 0 numba would compile functions a second time."""


_NUM_LOOKUP_BITS = 11
"""Slots of a look-up: twice as many as there are short forms of English."""
_KEY, _STAMP, COUNT, _FIRST = range(4)
"""Columns of a table: hash, the stamp that says whether the slot is in use, how often it was added, where first."""


class Table(NamedTuple):
    """A hash table with open addressing. A slot is in use if it carries the current stamp, so nothing is cleared."""

    slots: np.ndarray
    """int64 of shape (slots, 4)."""
    stamp: np.ndarray
    """int64 of shape (1,)."""


@functools.cache
def character_kinds() -> np.ndarray:
    """Bits of each code point, uint32 of length NUM_CODES."""
    kinds = np.zeros(NUM_CODES, np.uint32)
    for code in range(NUM_CODES):
        character = chr(code)
        category = unicodedata.category(character)
        bits = 0
        if character.isspace():
            bits = SPACE | (BREAK if len(f"a{character}a".splitlines()) == 2 else 0)
        if category == "Lo":  # most of all characters
            bits |= LETTER | LOWER | UPPER
        elif category[0] == "L":
            bits |= LETTER
            bits |= LOWER if category not in ("Lu", "Lt") else 0
            bits |= UPPER if category != "Ll" else 0
        bits |= NUMBER if category[0] == "N" else 0
        bits |= PUNCTUATION if category[0] == "P" else 0
        bits |= ICON if category == "So" else 0
        bits |= CURRENCY if category == "Sc" else 0
        bits |= SIGN if category == "Cc" and character not in "\t\n" else 0
        bits |= HAN if 0x3400 <= code < 0xA000 or 0xF900 <= code < 0xFB00 or 0x20000 <= code else 0
        kinds[code] = bits
    for characters, bit in (
        ("0123456789", DIGIT),
        (_STOPS, STOP | SIGN),
        (_SIGNS, SIGN),
        (_PEELED, PEELED),
        (_QUOTES, QUOTE),
        ("#>*_|=-[](){}", GAP),
        (KOREAN_ENDINGS, ENDING),
    ):
        for character in characters:
            kinds[ord(character)] |= bit
    kinds[0xAC00:0xD7A4] |= SYLLABLE
    kinds[0x3131:0x3164] |= JAMO
    for code in range(0xAC00, 0xD7A4):
        # A syllable that KS X 1001 lacks is written in EUC-KR as eight bytes of jamo.
        kinds[code] |= RARE if len(chr(code).encode("euc_kr")) > 2 else 0
    return kinds


@functools.cache
def lower_case() -> np.ndarray:
    """The lower case of each code point where that is one code point, uint32 of length NUM_CODES."""
    lower = np.arange(NUM_CODES, dtype=np.uint32)
    for code in range(0x20000):  # ideographs fill the planes behind
        folded = chr(code).lower()
        if len(folded) == 1:
            lower[code] = ord(folded)
    return lower


def text_hash(text: str) -> int:
    """The hash that `span_hash` gives a part of a text that reads `text`."""
    value = 0
    for character in text:
        value = (value * int(_MULTIPLIER) + ord(character) + 1) % 2**64
    return value


def lookup(values: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Strings and what `looked_up` finds under their hashes: keys uint64, values int64; 0 marks a free slot."""
    keys, found = np.zeros(1 << _NUM_LOOKUP_BITS, np.uint64), np.zeros(1 << _NUM_LOOKUP_BITS, np.int64)
    for text, value in values.items():
        at = (text_hash(text) * int(_MULTIPLIER) % 2**64) >> (64 - _NUM_LOOKUP_BITS)
        while keys[at]:
            at = (at + 1) % len(keys)
        keys[at], found[at] = text_hash(text), value
    return keys, found


@compiled
def looked_up(keys, values, key):
    """The value of a key; 0 if there is none."""
    at = np.int64((key * _MULTIPLIER) >> np.uint64(64 - _NUM_LOOKUP_BITS))
    while keys[at] and keys[at] != key:
        at = (at + 1) & (len(keys) - 1)
    return values[at]


@compiled
def decode(data, at, end, codes):
    """Write the code points of UTF-8 bytes and return their number."""
    count = 0
    while at < end:
        code = np.int64(data[at])
        if code < 0x80:
            at += 1
        elif code < 0xE0:
            code = ((code & 0x1F) << 6) | (np.int64(data[at + 1]) & 0x3F)
            at += 2
        elif code < 0xF0:
            code = ((code & 0x0F) << 12) | ((np.int64(data[at + 1]) & 0x3F) << 6) | (np.int64(data[at + 2]) & 0x3F)
            at += 3
        else:
            code = ((code & 0x07) << 18) | ((np.int64(data[at + 1]) & 0x3F) << 12)
            code |= ((np.int64(data[at + 2]) & 0x3F) << 6) | (np.int64(data[at + 3]) & 0x3F)
            at += 4
        codes[count] = min(code, NUM_CODES - 1)
        count += 1
    return count


@compiled
def make_powers(count):
    """The multiplier's powers 0 to `count`, uint64: what `span_hash` needs for spans of such a length."""
    powers = np.empty(count + 1, np.uint64)
    powers[0] = _ONE
    for place in range(count):
        powers[place + 1] = powers[place] * _MULTIPLIER
    return powers


@compiled
def hash_prefixes(codes, count, prefixes):
    """Write the hash of each beginning of a text: polynomial modulo 2^64 (Karp and Rabin 1987)."""
    prefixes[0] = np.uint64(0)
    for place in range(count):
        prefixes[place + 1] = prefixes[place] * _MULTIPLIER + np.uint64(codes[place]) + _ONE


@compiled
def span_hash(prefixes, powers, start, end):
    """The hash of a part of a text, wherever it stands."""
    return prefixes[end] - prefixes[start] * powers[end - start]


@compiled
def new_table(capacity):
    """A table for up to `capacity` keys."""
    size = 16
    while size < 2 * capacity:
        size *= 2
    return Table(np.zeros((size, 4), np.int64), np.zeros(1, np.int64))


@compiled
def reset(table, count):
    """Forget all keys; returns the `shift` with which `count` keys are spread over as few slots as they need."""
    table.stamp[0] += 1
    bits = 4
    while 1 << bits < 2 * count:
        bits += 1
    return np.uint64(64 - bits)


@compiled
def add(table, shift, key, place):
    """Count a key and return its slot; `place` is remembered when it is new."""
    mask = np.int64((_ONE << (np.uint64(64) - shift)) - _ONE)
    at = np.int64(((key ^ (key >> _HALF)) * _MULTIPLIER) >> shift)
    stamp, key = table.stamp[0], np.int64(key)
    while table.slots[at, _STAMP] == stamp and table.slots[at, _KEY] != key:
        at = (at + 1) & mask
    slot = table.slots[at]
    if slot[_STAMP] == stamp:
        slot[COUNT] += 1
    else:
        slot[_KEY], slot[_STAMP], slot[COUNT], slot[_FIRST] = key, stamp, 1, place
    return slot


@compiled
def trimmed(codes, start, end, kinds):
    """Bounds of a part of a text without the white space around it."""
    while start < end and kinds[codes[start]] & SPACE:
        start += 1
    while end > start and kinds[codes[end - 1]] & SPACE:
        end -= 1
    return start, end


@compiled
def ends_in_ellipsis(codes, start, end):
    """Whether it ends in `...` or `…`."""
    if end > start and codes[end - 1] == 0x2026:
        return True
    return end - start >= 3 and codes[end - 1] == 0x2E and codes[end - 2] == 0x2E and codes[end - 3] == 0x2E


@compiled
def top_ngram(hashes, lengths, count, n, gap, least, table):
    """Characters in all copies of the most frequent n-gram of words, the first among equals; 0 if it stands fewer than
    `least` times.

    `gap` is the number of characters that count between words.
    """
    if count < n:
        return 0
    shift = reset(table, count)
    most, first = 0, 0
    for start in range(count - n + 1):
        key = hashes[start]
        for offset in range(1, n):
            key = (key ^ (key >> _HALF)) * _MULTIPLIER + hashes[start + offset]
        slot = add(table, shift, key, start)
        if slot[COUNT] > most or (slot[COUNT] == most and slot[_FIRST] < first):
            most, first = slot[COUNT], slot[_FIRST]
    if most < least:
        return 0
    width = gap * (n - 1)
    for offset in range(n):
        width += lengths[first + offset]
    return most * width
