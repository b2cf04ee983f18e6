"""Measures of the Gopher, C4 and FineWeb rules for English web pages, as datatrove 0.10.1 takes them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from bloomery.components.data_curation.quality_text import (
    BREAK,
    COUNT,
    LETTER,
    PUNCTUATION,
    SIGN,
    SPACE,
    STOP,
    ZERO,
    add,
    character_kinds,
    compiled,
    decode,
    ends_in_ellipsis,
    hash_prefixes,
    looked_up,
    lookup,
    make_powers,
    new_table,
    reset,
    span_hash,
    top_ngram,
    trimmed,
)
from bloomery.components.data_curation.quality_words import english_words, short_forms

_GOPHER = (
    "num_gopher_words",
    "gopher_mean_word_length",
    "hash_word_ratio",
    "ellipsis_word_ratio",
    "gopher_bullet_line_share",
    "gopher_ellipsis_line_share",
    "gopher_alphabetic_word_share",
    "num_gopher_stop_words",
)
_REPETITION = (
    "duplicate_paragraph_share",
    "duplicate_paragraph_character_share",
    "gopher_duplicate_line_share",
    "duplicate_line_character_share",
    *(f"gopher_top_{n}gram_share" for n in range(2, 5)),
    *(f"duplicate_{n}gram_share" for n in range(5, 11)),
)
_C4 = (
    "num_c4_sentences",
    "num_c4_lorem_ipsum",
    "num_c4_curly_brackets",
    "num_c4_sentences_of_any_line",
    "num_c4_lorem_ipsum_of_any_line",
    "num_c4_curly_brackets_of_any_line",
)
_FINEWEB = (
    "num_filled_lines",
    "terminated_line_share",
    "short_line_share",
    "fineweb_duplicate_character_share",
    "newline_word_ratio",
)
MEASURES = ("num_words", *_GOPHER, *_REPETITION, *_C4, *_FINEWEB)
_REPETITION_AT = 1 + len(_GOPHER)
_C4_AT = _REPETITION_AT + len(_REPETITION)
_FINEWEB_AT = _C4_AT + len(_C4)

GOPHER_STOP_WORDS = "the be to of and that have with".split()
C4_NOTICES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
"""Lines that hold one of these, or `javascript`, are dropped."""
MIN_WORDS_PER_LINE, MAX_WORD_CHARACTERS = 3, 1000
SHORT_LINE_CHARACTERS = 30

_NEWLINE, _OPEN, _CLOSE = 0x0A, 0x5B, 0x5D
_SCRIPT, _NOTICE, _PLACEHOLDER = 1, 2, 4
_GAP = np.int64(1)


def measure_web(data: np.ndarray, places: np.ndarray) -> np.ndarray:
    """MEASURES of the UTF-8 texts `data[places[i] : places[i + 1]]`, float64 of shape (texts, MEASURES)."""
    found = np.zeros((len(places) - 1, len(MEASURES)))
    _measure(data, places, *_tables(), found)
    return found


@functools.cache
def _tables() -> tuple[Any, ...]:
    stop_words = lookup({word: 1 << place for place, word in enumerate(GOPHER_STOP_WORDS)})
    phrases = dict.fromkeys(C4_NOTICES, _NOTICE) | {"javascript": _SCRIPT, "lorem ipsum": _PLACEHOLDER}
    texts = [np.array([ord(letter) for letter in phrase], np.uint32) for phrase in phrases]
    ends = np.cumsum([len(text) for text in texts])
    initials = np.zeros(128, bool)
    initials[[text[0] for text in texts]] = True
    letters = np.concatenate(texts)
    return character_kinds(), short_forms(), stop_words, (letters, ends, np.array(list(phrases.values())), initials)


@compiled
def _measure(data, places, kinds, forms, stop_words, phrases, found):
    longest = ZERO + 1
    for index in range(len(places) - 1):
        longest = max(longest, places[index + 1] - places[index])
    codes, edited = np.empty(longest, np.uint32), np.empty(longest, np.uint32)
    prefixes, powers, table = np.empty(longest + 1, np.uint64), make_powers(longest), new_table(longest)
    starts, ends, stack = np.empty(longest, np.int64), np.empty(longest, np.int64), np.empty(longest, np.int64)
    hashes, lengths = np.empty(longest, np.uint64), np.empty(longest, np.int64)
    for index in range(len(places) - 1):
        row = found[index]
        count = decode(data, places[index], places[index + 1], codes)
        hash_prefixes(codes, count, prefixes)
        words = english_words(codes, count, prefixes, powers, kinds, forms, starts, ends, stack)
        for word in range(words):
            hashes[word] = span_hash(prefixes, powers, starts[word], ends[word])
            lengths[word] = ends[word] - starts[word]
        _gopher(codes, count, kinds, hashes, starts, ends, words, stop_words, row[1:])
        _repetition(codes, count, kinds, prefixes, powers, hashes, lengths, words, table, row[_REPETITION_AT:])
        _fineweb(codes, count, kinds, prefixes, powers, words, table, row[_FINEWEB_AT:])
        num_edited = _without_citations(codes, count, edited)
        if num_edited < count:
            hash_prefixes(edited, num_edited, prefixes)
            words = english_words(edited, num_edited, prefixes, powers, kinds, forms, starts, ends, stack)
        row[0] = _c4(codes, count, edited, num_edited, kinds, starts, ends, words, phrases, row[_C4_AT:])


@compiled
def _gopher(codes, count, kinds, hashes, starts, ends, words, stop_words, row):
    """Measures of _GOPHER; words of signs only count where theirs do."""
    full = characters = alphabetic = seen = 0
    for word in range(words):
        is_sign, is_alphabetic = True, False
        for place in range(starts[word], ends[word]):
            is_sign &= kinds[codes[place]] & SIGN != 0
            is_alphabetic |= kinds[codes[place]] & LETTER != 0
        full += not is_sign
        characters += 0 if is_sign else ends[word] - starts[word]
        alphabetic += is_alphabetic
        if ends[word] - starts[word] < 5:
            seen |= looked_up(stop_words[0], stop_words[1], hashes[word])
    row[0], row[1], row[6] = full, characters / max(1, full), alphabetic / max(1, words)
    for bit in range(8):
        row[7] += seen >> bit & 1
    num_hashes = num_ellipses = dots = 0
    for place in range(count):
        num_hashes += codes[place] == 0x23
        dots = dots + 1 if codes[place] == 0x2E else 0
        num_ellipses += codes[place] == 0x2026 or (dots > 0 and dots % 3 == 0)
    row[2], row[3] = num_hashes / max(1, words), num_ellipses / max(1, words)
    lines = bullets = ellipses = start = ZERO
    while start < count:
        end = _line_end(codes, start, count, kinds)
        first, last = trimmed(codes, start, end, kinds)
        lines += 1
        bullets += first < last and (codes[first] == 0x2022 or codes[first] == 0x2D)
        ellipses += ends_in_ellipsis(codes, first, last)
        start = _next_line(codes, end, count)
    row[4], row[5] = bullets / max(1, lines), ellipses / max(1, lines)


@compiled
def _line_end(codes, start, count, kinds):
    """Where a line of `str.splitlines` ends."""
    while start < count and not kinds[codes[start]] & BREAK:
        start += 1
    return start


@compiled
def _next_line(codes, end, count):
    return end + 2 if end + 1 < count and codes[end] == 0x0D and codes[end + 1] == _NEWLINE else end + 1


@compiled
def _repetition(codes, count, kinds, prefixes, powers, hashes, lengths, words, table, row):
    """Measures of _REPETITION, characters as shares of the whole text."""
    first, last = trimmed(codes, ZERO, count, kinds)
    for least in range(2, 0, -1):
        repeats, characters, pieces = _repeats(codes, first, last, least, kinds, prefixes, powers, table)
        row[4 - 2 * least], row[5 - 2 * least] = repeats / pieces, characters / max(1, count)
        first, last = ZERO, count
    for n in range(2, 5):
        row[2 + n] = top_ngram(hashes, lengths, words, n, _GAP, _GAP, table) / max(1, count)
    for n in range(5, 11):
        row[2 + n] = _duplicate_ngrams(hashes, lengths, words, powers, n, table) / max(1, count)
        if row[2 + n] == 0:
            break


@compiled
def _repeats(codes, start, end, least, kinds, prefixes, powers, table):
    """(pieces that stand before, their characters, pieces) of a part divided where `least` or more line feeds
    stand."""
    shift = reset(table, (end - start) // least + 2)
    repeats = characters = pieces = 0
    begin = place = start
    while True:
        feeds = place
        while feeds < end and codes[feeds] == _NEWLINE:
            feeds += 1
        if feeds - place >= least or place == end:
            slot = add(table, shift, span_hash(prefixes, powers, begin, place), begin)
            pieces += 1
            if slot[COUNT] > 1:
                repeats, characters = repeats + 1, characters + place - begin
            begin = feeds
            if place == end:
                break
            if feeds == end:
                place = end
                continue
        place = max(place + 1, feeds)
    return repeats, characters, pieces


@compiled
def _duplicate_ngrams(hashes, lengths, words, powers, n, table):
    """Characters in n-grams that stand before, n-grams that overlap one counted left out. What is compared is their
    characters one after the other."""
    shift = reset(table, max(1, words))
    characters = start = width = fresh = ZERO
    key = np.uint64(0)
    while start <= words - n:
        if fresh == 0:
            key, width = np.uint64(0), 0
            for word in range(start, start + n):
                key, width = key * powers[lengths[word]] + hashes[word], width + lengths[word]
        slot = add(table, shift, key, start)
        if slot[COUNT] > 1:
            characters, start, fresh = characters + width, start + n, 0
            continue
        if start + n < words:
            width -= lengths[start]
            key -= hashes[start] * powers[width]
            key, width = key * powers[lengths[start + n]] + hashes[start + n], width + lengths[start + n]
        start, fresh = start + 1, 1
    return characters


@compiled
def _fineweb(codes, count, kinds, prefixes, powers, words, table, row):
    """Measures of _FINEWEB."""
    shift = reset(table, count + 1)
    filled = stopped = short = repeated = feeds = start = ZERO
    while start <= count:
        end = start
        while end < count and codes[end] != _NEWLINE:
            end += 1
        feeds += end < count
        first, last = trimmed(codes, start, end, kinds)
        if first < last:
            filled += 1
            stopped += kinds[codes[end - 1]] & STOP != 0
            short += end - start <= SHORT_LINE_CHARACTERS
            slot = add(table, shift, span_hash(prefixes, powers, start, end), start)
            repeated += end - start if slot[COUNT] > 1 else 0
        start = end + 1
    row[0], row[1], row[2] = filled, stopped / max(1, filled), short / max(1, filled)
    row[3], row[4] = repeated / max(1, count - feeds), feeds / max(1, words)


@compiled
def _without_citations(codes, count, edited):
    """Write the text without `[12]`, `[]`, `[edit]` and `[citation needed]`; returns its length."""
    num_kept = at = ZERO
    while at < count:
        end = _citation_end(codes, at, count) if codes[at] == _OPEN else at
        if end == at:
            edited[num_kept] = codes[at]
            num_kept, end = num_kept + 1, at + 1
        at = end
    return num_kept


@compiled
def _citation_end(codes, at, count):
    """Where the citation ends that begins here; `at` if none does."""
    end = at + 1
    while end < count and 0x30 <= codes[end] <= 0x39:
        end += 1
    if end < count and codes[end] == _CLOSE:
        return end + 1
    for word in ("edit]", "citation needed]"):
        end, is_same = at + 1, True
        for letter in word:
            is_same &= end < count and codes[end] == ord(letter)
            end += 1
        if is_same:
            return end
    return at


@compiled
def _c4(codes, count, edited, num_edited, kinds, starts, ends, words, phrases, row):
    """Measures of _C4, of lines with terminal punctuation and of any; returns the words between spaces.

    `starts` and `ends` are those of the words of the edited text, in which each line has lost its citations.
    """
    total = start = edited_start = word = ZERO
    while start < count:
        end, edited_end = _line_end(codes, start, count, kinds), _line_end(edited, edited_start, num_edited, kinds)
        first, last = trimmed(codes, start, end, kinds)
        num_words, longest = _words_of_line(codes, first, last, kinds)
        total += num_words
        first, last = edited_start + first - start, edited_end - (end - last)
        while word < words and starts[word] < first:
            word += 1
        if num_words >= MIN_WORDS_PER_LINE and longest <= MAX_WORD_CHARACTERS:
            found = _phrases(edited, first, last, phrases)
            has_bracket = _holds(edited, first, last, 0x7B)
            sentences = _sentences(edited, kinds, starts, ends, word, words, last)
            for mode in range(0 if _is_terminated(edited, first, last) else 1, 2):
                row[3 * mode + 1] += found & _PLACEHOLDER != 0
                row[3 * mode + 2] += has_bracket and not found & _SCRIPT
                row[3 * mode] += 0 if found else sentences
        start = _next_line(codes, end, count)
        edited_start = _next_line(edited, edited_end, num_edited)
    return total


@compiled
def _words_of_line(codes, first, last, kinds):
    words = longest = length = 0
    for place in range(first, last):
        length = 0 if kinds[codes[place]] & SPACE else length + 1
        words += length == 1
        longest = max(longest, length)
    return words, longest


@compiled
def _is_terminated(codes, first, last):
    """Whether a line ends in `.`, `?`, `!`, `"` or `'`, and not in an ellipsis of three full stops."""
    if first >= last:
        return False
    code = codes[last - 1]
    if code == 0x2E:
        return not ends_in_ellipsis(codes, first, last)
    return code == 0x3F or code == 0x21 or code == 0x22 or code == 0x27


@compiled
def _holds(codes, first, last, wanted):
    for place in range(first, last):
        if codes[place] == wanted:
            return True
    return False


@compiled
def _phrases(codes, first, last, phrases):
    """The marks of the phrases that a line holds, whatever their case."""
    letters, ends, marks, initials = phrases
    found = 0
    for place in range(first, last):
        initial = _lower(codes[place])
        if initial >= len(initials) or not initials[initial]:
            continue
        begin = 0
        for phrase in range(len(ends)):
            at, letter = place, begin
            while letter < ends[phrase] and at < last and _lower(codes[at]) == letters[letter]:
                at, letter = at + 1, letter + 1
            found |= marks[phrase] if letter == ends[phrase] else 0
            begin = ends[phrase]
    return found


@compiled
def _lower(code):
    return code + 0x20 if 0x41 <= code <= 0x5A else code


@compiled
def _sentences(codes, kinds, starts, ends, word, words, last):
    """Sentences of a line: one begins after each word of a single terminal, at the next word that holds no
    punctuation only."""
    sentences, has_stopped = 0, False
    while word < words and starts[word] < last:
        is_stop = ends[word] - starts[word] == 1 and kinds[codes[starts[word]]] & STOP != 0
        is_punctuation = True
        for place in range(starts[word], ends[word]):
            is_punctuation &= kinds[codes[place]] & PUNCTUATION != 0
        if has_stopped and not is_punctuation and not is_stop:
            sentences, has_stopped = sentences + 1, False
        elif is_stop:
            has_stopped = True
        sentences = max(sentences, 1)
        word += 1
    return sentences
