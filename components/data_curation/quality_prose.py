"""Measures of the `domain` and `korean` rules: words between spaces, without code, addresses and tags."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from bloomery.components.data_curation.quality_text import (
    COUNT,
    DIGIT,
    ENDING,
    GAP,
    HAN,
    JAMO,
    LETTER,
    NUMBER,
    RARE,
    SPACE,
    SYLLABLE,
    ZERO,
    add,
    character_kinds,
    compiled,
    decode,
    ends_in_ellipsis,
    hash_prefixes,
    looked_up,
    lookup,
    lower_case,
    make_powers,
    new_table,
    reset,
    span_hash,
    top_ngram,
    trimmed,
)

_WHOLE = ("num_words", "replacement_share")
_LINES = ("duplicate_line_share", "bullet_line_share", "ellipsis_line_share")
_LETTERS = ("jamo_share", "syllable_share", "rare_syllable_share", "jamo_run_share")
_WORDS = (
    "num_prose_words",
    "alphabetic_word_share",
    "symbol_word_ratio",
    "mean_word_length",
    "function_word_share",
    "num_hangul_words",
    "particle_share",
    "mean_hangul_word_length",
    "single_syllable_share",
    "long_word_share",
)
_NGRAMS = ("top_2gram_share", "top_3gram_share", "top_4gram_share")
MEASURES = (*_WHOLE, *_LINES, *_LETTERS, *_WORDS, *_NGRAMS)
_LINES_AT = len(_WHOLE)
_LETTERS_AT = _LINES_AT + len(_LINES)
_WORDS_AT = _LETTERS_AT + len(_LETTERS)
_NGRAMS_AT = _WORDS_AT + len(_WORDS)

ENGLISH_STOP_WORDS = (
    "the be to of and that have with a an in is are on for it this as by from at not or if was we you i can "
    "will no all when where select"
).split()
"""Gopher's eight and the most frequent words after them: a note of 20 words may hold none of the eight."""

MIN_LINES = 5
"""Shares of lines are measured from this many lines up."""
MIN_LINE_CHARACTERS = 10
"""Shorter lines (rules of tables, closing tags, single words) repeat in good documents and are not
counted."""
MIN_REPEATS = 4
"""An n-gram counts as repeated from four times on: two of the twelve words of a note are a sixth of it by
chance, and Gopher's shares mean two to five times at its least of 50 words."""
MAX_TAG_CHARACTERS = 200
"""What stands between `<` and `>` on a line is a tag up to this length."""
LONG_WORD_SYLLABLES = 11
"""A longer run of Hangul counts as words without spaces between them."""

_BACKTICK, _TILDE, _NEWLINE, _LESS, _GREATER, _PARENTHESIS = 0x60, 0x7E, 0x0A, 0x3C, 0x3E, 0x29


def measure_prose(data: np.ndarray, places: np.ndarray) -> np.ndarray:
    """MEASURES of the UTF-8 texts `data[places[i] : places[i + 1]]`, float64 of shape (texts, MEASURES)."""
    found = np.zeros((len(places) - 1, len(MEASURES)))
    _measure(data, places, *_tables(), found)
    return found


@functools.cache
def _tables() -> tuple[Any, ...]:
    return character_kinds(), lower_case(), lookup(dict.fromkeys(ENGLISH_STOP_WORDS, 1))


@compiled
def _measure(data, places, kinds, lower, stop_words, found):
    longest = ZERO + 1
    for index in range(len(places) - 1):
        longest = max(longest, places[index + 1] - places[index])
    codes, prose, lowered = np.empty(longest, np.uint32), np.empty(longest, np.uint32), np.empty(longest, np.uint32)
    prefixes, powers, table = np.empty(longest + 1, np.uint64), make_powers(longest), new_table(longest)
    hashes, lengths = np.empty(longest, np.uint64), np.empty(longest, np.int64)
    for index in range(len(places) - 1):
        row = found[index]
        count = decode(data, places[index], places[index + 1], codes)
        _whole(codes, count, kinds, row)
        count = _without_code(codes, count, prose)
        for place in range(count):
            lowered[place] = lower[prose[place]]
        hash_prefixes(lowered, count, prefixes)
        _lines(prose, count, kinds, prefixes, powers, table, row[_LINES_AT:])
        _letters(prose, count, kinds, row[_LETTERS_AT:])
        words = _words(prose, count, kinds, prefixes, powers, stop_words, hashes, lengths, row[_WORDS_AT:])
        characters = max(1, lengths[:words].sum())
        for n in range(2, 5):
            share = top_ngram(hashes, lengths, words, n, ZERO, ZERO + MIN_REPEATS, table) / characters
            row[_NGRAMS_AT + n - 2] = share


@compiled
def _whole(codes, count, kinds, row):
    """Measures of _WHOLE, of the text with its code."""
    words = unreadable = 0
    is_inside = False
    for place in range(count):
        is_space = kinds[codes[place]] & SPACE != 0
        words += not is_space and not is_inside
        is_inside = not is_space
        unreadable += codes[place] == 0xFFFD
    row[0], row[1] = words, unreadable / max(1, count)


@compiled
def _without_code(codes, count, prose):
    """Write the text with a space for each fenced block, code span, address and tag; returns its length."""
    num_kept = at = ZERO
    while at < count:
        code = codes[at]
        if (code == _BACKTICK or code == _TILDE) and _is_fence(codes, at, count):
            at += 3
            while at < count and not (codes[at] == code and _is_fence(codes, at, count)):
                at += 1
            at, code = at + 3, 0x20
        else:
            at += 1
        prose[num_kept] = code
        num_kept += 1
    count, num_kept, at = num_kept, ZERO, ZERO
    while at < count:
        end = _inline_end(prose, at, count)
        prose[num_kept] = 0x20 if end > at else prose[at]
        num_kept += 1
        at = max(end, at + 1)
    return num_kept


@compiled
def _is_fence(codes, at, count):
    return at + 2 < count and codes[at] == codes[at + 1] and codes[at] == codes[at + 2]


@compiled
def _inline_end(prose, at, count):
    """Where the code span, address or tag ends that begins here; `at` if none does."""
    code, end = prose[at], at + 1
    if code == _BACKTICK:
        while end < count and prose[end] != _BACKTICK and prose[end] != _NEWLINE:
            end += 1
        return end + 1 if end < count and prose[end] == _BACKTICK else at
    if code == _LESS:
        last = min(count, at + MAX_TAG_CHARACTERS + 2)
        while end < last and prose[end] != _LESS and prose[end] != _GREATER and prose[end] != _NEWLINE:
            end += 1
        return end + 1 if at + 1 < end < last and prose[end] == _GREATER else at
    if code != 0x68 or at + 7 >= count:
        return at
    for letter in (0x74, 0x74, 0x70, 0x73, 0x3A, 0x2F, 0x2F):
        if end < count and prose[end] == letter:
            end += 1
        elif letter != 0x73:
            return at
    start = end
    while end < count and prose[end] > 0x20 and prose[end] != _PARENTHESIS:
        end += 1
    return end if end > start else at


@compiled
def _lines(prose, count, kinds, prefixes, powers, table, row):
    """Measures of _LINES; a line repeats another whatever the case of its letters."""
    filled = repeats = bullets = ellipses = start = ZERO
    shift = reset(table, count // MIN_LINE_CHARACTERS + 1)
    while start <= count:
        end = start
        while end < count and prose[end] != _NEWLINE:
            end += 1
        first, last = trimmed(prose, start, end, kinds)
        if last - first >= MIN_LINE_CHARACTERS:
            slot = add(table, shift, span_hash(prefixes, powers, first, last), first)
            filled += 1
            repeats += slot[COUNT] > 1
            bullets += _is_bullet(prose, first, last, kinds)
            ellipses += ends_in_ellipsis(prose, first, last)
        start = end + 1
    row[0] = repeats / filled if filled >= MIN_LINES else 0.0
    row[1], row[2] = bullets / max(1, filled), ellipses / max(1, filled)


@compiled
def _is_bullet(prose, at, end, kinds):
    """Whether a line begins with `-`, `*`, `•`, `·`, `1.` or `1)` and a space."""
    if kinds[prose[at]] & DIGIT:
        while at < end and kinds[prose[at]] & DIGIT:
            at += 1
        is_mark = at < end and (prose[at] == 0x2E or prose[at] == _PARENTHESIS)
    else:
        is_mark = prose[at] == 0x2D or prose[at] == 0x2A or prose[at] == 0x2022 or prose[at] == 0xB7
    return is_mark and at + 1 < end and kinds[prose[at + 1]] & SPACE != 0


@compiled
def _letters(prose, count, kinds, row):
    """Measures of _LETTERS: the share of jamo in letters, of syllables in Korean and Chinese letters, of rare ones in
    syllables, of jamo beside jamo in Korean letters."""
    letters = syllables = rare = jamo = in_runs = run = han = 0
    for place in range(count + 1):
        kind = kinds[prose[place]] if place < count else 0
        letters += kind & LETTER != 0
        syllables += kind & SYLLABLE != 0
        rare += kind & RARE != 0
        han += kind & HAN != 0
        if kind & JAMO:
            run += 1
        else:
            jamo += run
            in_runs += run if run > 1 else 0
            run = 0
    row[0], row[1] = jamo / max(1, letters), syllables / max(1, syllables + jamo + han)
    row[2], row[3] = rare / max(1, syllables), in_runs / max(1, syllables + jamo)


@compiled
def _words(prose, count, kinds, prefixes, powers, stop_words, hashes, lengths, row):
    """Measures of _WORDS; writes the hash of each word in lower case and its length, and returns their number."""
    words = alphabetic = marked = function = characters = 0
    hangul = syllables = particles = single = in_long = 0
    place = ZERO
    while place < count:
        if kinds[prose[place]] & (SPACE | GAP):
            place += 1
            continue
        start = place
        first = last = last_letter = -1
        in_word = marks = longest_run = 0
        run = is_marked = 0
        while place < count and not kinds[prose[place]] & (SPACE | GAP):
            kind, code = kinds[prose[place]], prose[place]
            if kind & (LETTER | NUMBER):
                first, last = first if first >= 0 else place, place
            if kind & LETTER:
                last_letter = place
            run = run + 1 if kind & SYLLABLE else 0
            in_word += kind & SYLLABLE != 0
            longest_run = max(longest_run, run)
            marks = marks + 1 if _is_mark(code) else 0
            is_marked |= marks > 1 or ends_in_ellipsis(prose, start, place + 1)
            place += 1
        hashes[words], lengths[words] = span_hash(prefixes, powers, start, place), place - start
        words += 1
        characters += place - start
        alphabetic += last_letter >= 0
        marked += is_marked
        is_particle = last_letter >= 0 and kinds[prose[last_letter]] & ENDING != 0
        is_stop = first >= 0 and _is_stop_word(prefixes, powers, first, last + 1, stop_words)
        function += is_particle or is_stop
        if in_word:
            hangul += 1
            syllables += in_word
            particles += is_particle
            single += in_word == 1 and last == first
            in_long += in_word if longest_run > LONG_WORD_SYLLABLES else 0
    row[0], row[1] = words, alphabetic / words if words else 1.0
    row[2], row[3], row[4] = marked / max(1, words), characters / max(1, words), function / max(1, words)
    row[5], row[6], row[7] = hangul, particles / max(1, hangul), syllables / max(1, hangul)
    row[8], row[9] = single / max(1, hangul), in_long / max(1, syllables)
    return words


@compiled
def _is_stop_word(prefixes, powers, first, end, stop_words):
    return looked_up(stop_words[0], stop_words[1], span_hash(prefixes, powers, first, end)) != 0


@compiled
def _is_mark(code):
    """Whether two of these beside each other make a word a symbol: `@ $ % & ~ ^ + <`."""
    is_ascii = code == 0x40 or 0x24 <= code <= 0x26 or code == 0x5E or code == 0x2B
    return is_ascii or code == _TILDE or code == _LESS
