"""Is a document readable text? Rules over whole Arrow columns, on words between spaces, without code.

Thresholds are Gopher's (Rae et al. 2021, table A1 and section A1.1) where nothing else is said. Those were
set on English web pages of 50 words and more; what differs here would lose Korean, short notes or code, and
says so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ENGLISH_STOP_WORDS = (
    "the be to of and that have with a an in is are on for it this as by from at not or if was we you i can "
    "will no all when where select"
).split()
"""Gopher's eight and the most frequent words after them: a note of 20 words may hold none of the eight."""

KOREAN_ENDINGS = r"[은는이가을를에의로와과도만다요서고며나면지라야까니게던터한된할될인있없]\PL*$"
"""Last syllables of particles and verb endings, which close most Korean words as stop words fill English."""


class Rule(NamedTuple):
    """A reason to drop a document, and the value that decides it."""

    reason: str
    value: str
    """Name of the column of `Measures`."""
    low: float
    """Documents below are dropped."""
    high: float
    """Documents above are dropped."""
    languages: tuple[str, ...] = ()
    """Languages it applies to; empty: all."""
    min_words: int = 0
    """Documents with fewer words are left alone: a share of a few words means nothing."""


_INF = float("inf")

RULES = (
    # FineWeb and C4 drop pages with unreadable characters; one in a hundred is a page decoded wrongly.
    Rule("unreadable_characters", "replacement_share", 0, 0.01),
    Rule("symbols", "alphabetic_word_share", 0.6, _INF),
    Rule("symbols", "symbol_word_ratio", 0, 0.1, min_words=10),
    Rule("jamo", "jamo_share", 0, 0.2),
    Rule("word_length", "mean_word_length", 3, 10, ("en",), 10),
    Rule("word_length", "mean_word_length", 1.6, 12, ("ko",), 10),
    Rule("no_function_words", "function_word_share", 0.05, _INF, (), 20),
    Rule("repeated_lines", "duplicate_line_share", 0, 0.3),
    Rule("repeated_words", "top_2gram_share", 0, 0.2, ("en",), 50),
    Rule("repeated_words", "top_3gram_share", 0, 0.18, ("en",), 50),
    Rule("repeated_words", "top_4gram_share", 0, 0.16, ("en",), 50),
    # Korean technical pages repeat long English names: 8 % of 2,000 that people wrote break Gopher's .20.
    Rule("repeated_words", "top_2gram_share", 0, 0.35),
    Rule("repeated_words", "top_3gram_share", 0, 0.4),
    Rule("repeated_words", "top_4gram_share", 0, 0.4),
    Rule("bullets", "bullet_line_share", 0, 0.9, min_words=50),
    Rule("ellipses", "ellipsis_line_share", 0, 0.3, min_words=20),
)

MIN_LINES = 5
"""Shares of lines are measured from this many lines up."""
MIN_LINE_CHARACTERS = 10
"""Shorter lines (rules of tables, closing tags, single words) repeat in good documents and are not
counted."""
MIN_REPEATS = 4
"""An n-gram counts as repeated from four times on: two of the twelve words of a note are a sixth of it by
chance, and Gopher's shares mean two to five times at its least of 50 words."""

Measures = dict[str, np.ndarray]


def judge(
    texts: pa.Array, languages: list[str], min_words: int, max_words: int
) -> list[tuple[bool, str, str]]:
    """(keep, reason, measured value) of each document; the first rule that it breaks names the reason.

    `texts` is a string array without nulls, `languages` their codes.
    """
    found = measure(texts)
    reasons = np.full(len(texts), "", dtype=object)
    details = np.full(len(texts), "", dtype=object)
    language = np.array(languages, dtype=object)
    length = (Rule("too_short", "num_words", min_words, _INF), Rule("too_long", "num_words", 0, max_words))
    for rule in (*length, *RULES):
        values = found[rule.value]
        broken = (reasons == "") & ((values < rule.low) | (values > rule.high))
        if rule.languages:
            broken &= np.isin(language, rule.languages)
        broken &= found["num_prose_words"] >= rule.min_words
        reasons[broken] = rule.reason
        details[broken] = [f"{rule.value}={value:.3g}" for value in values[broken]]
    return [(not reason, reason, detail) for reason, detail in zip(reasons, details, strict=True)]


def measure(texts: pa.Array) -> Measures:
    """What the rules look at, a float array of length `len(texts)` by name."""
    prose = texts
    # RE2 has no back-references: both kinds of fence are taken out one after the other.
    inline = r"`[^`\n]*`|https?://[^\s)]+|<[^<>\n]{1,200}>"
    for pattern in (r"(?s)```.*?(?:```|\z)", r"(?s)~~~.*?(?:~~~|\z)", inline):
        prose = pc.replace_substring_regex(prose, pattern, " ")
    lines = _Pieces(pc.split_pattern(prose, "\n"), MIN_LINE_CHARACTERS)
    bullet = lines.share(pc.match_substring_regex(lines.values, r"^\s*(?:[-*•·]|\d+[.)])\s"))
    ellipsis = lines.share(pc.match_substring_regex(lines.values, r"(?:\.\.\.|…)\s*$"))
    words = _Pieces(pc.utf8_split_whitespace(pc.replace_substring_regex(prose, r"[#>*_|=\-\[\](){}]+", " ")))
    lengths = _numbers(pc.utf8_length(words.values))
    letters = _count(prose, r"\pL")
    marks = words.sum(_numbers(pc.match_substring_regex(words.values, r"…|\.\.\.|[#@$%&~^+<>]{2,}")))
    return {
        "num_words": _numbers(pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts)))),
        "num_prose_words": words.counts,
        "replacement_share": _ratio(_count(texts, "\ufffd"), _numbers(pc.utf8_length(texts))),
        "alphabetic_word_share": words.share(pc.match_substring_regex(words.values, r"\pL"), empty=1.0),
        "symbol_word_ratio": _ratio(marks, words.counts),
        "jamo_share": _ratio(_count(prose, r"[\x{3131}-\x{3163}]"), letters),
        "mean_word_length": _ratio(words.sum(lengths), words.counts),
        "function_word_share": words.share(_are_function_words(words.values)),
        "duplicate_line_share": _duplicate_lines(lines),
        **{f"top_{n}gram_share": _top_ngram_share(words, lengths, n) for n in (2, 3, 4)},
        "bullet_line_share": bullet,
        "ellipsis_line_share": ellipsis,
    }


class _Pieces:
    """The words or lines of all documents in one column, with the place where each document begins."""

    def __init__(self, lists: pa.ListArray, min_characters: int = 1) -> None:
        self.values = lists.flatten()
        self.lengths = _numbers(pc.list_value_length(lists)).astype(np.int64)
        self.ends = np.cumsum(self.lengths)
        self.is_filled = _numbers(pc.utf8_length(pc.utf8_trim_whitespace(self.values))) >= min_characters
        self.counts = self.sum(self.is_filled)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum of a number per piece, by document."""
        running = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
        return running[self.ends] - running[self.ends - self.lengths]

    def share(self, is_true: pa.Array, empty: float = 0.0) -> np.ndarray:
        """Share of the pieces with text for which `is_true`, by document; `empty` where there is none."""
        share = _ratio(self.sum(_numbers(is_true) * self.is_filled), self.counts)
        return np.where(self.counts > 0, share, empty)

    def documents(self) -> np.ndarray:
        """Index of the document of each piece."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)


def _are_function_words(words: pa.Array) -> pa.Array:
    bare = pc.utf8_lower(pc.replace_substring_regex(words, r"^[^\pL\pN]+|[^\pL\pN]+$", ""))
    is_english = pc.is_in(bare, pa.array(ENGLISH_STOP_WORDS))
    return pc.or_(is_english, pc.match_substring_regex(words, KOREAN_ENDINGS))


def _duplicate_lines(lines: _Pieces) -> np.ndarray:
    """Share of lines that repeat an earlier line of their document; 0 below MIN_LINES lines."""
    ids = _numbers(pc.dictionary_encode(pc.utf8_trim_whitespace(lines.values)).indices).astype(np.uint64)
    pairs = (lines.documents().astype(np.uint64) << np.uint64(32)) | ids
    _, first = np.unique(pairs, return_index=True)
    is_repeat = np.ones(len(pairs))
    is_repeat[first] = 0
    share = _ratio(lines.sum(is_repeat * lines.is_filled), lines.counts)
    return np.where(lines.counts >= MIN_LINES, share, 0.0)


def _top_ngram_share(words: _Pieces, lengths: np.ndarray, n: int) -> np.ndarray:
    """Share of a document's characters in its most frequent word n-gram, if that stands MIN_REPEATS times."""
    num_documents = len(words.lengths)
    share = np.zeros(num_documents)
    if len(lengths) < n:
        return share
    ids = _numbers(pc.dictionary_encode(pc.utf8_lower(words.values)).indices).astype(np.uint64)
    documents = words.documents()
    starts = np.flatnonzero(documents[: len(ids) - n + 1] == documents[n - 1 :])
    keys = _mixed(documents[starts].astype(np.uint64))
    for offset in range(n):
        keys = _mixed(keys ^ ids[starts + offset])
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    often = counts >= MIN_REPEATS
    begin = starts[first[often]]
    width = sum((lengths[begin + offset] for offset in range(n)), np.zeros(len(begin)))
    np.maximum.at(share, documents[begin], width * counts[often])
    return _ratio(share, words.sum(lengths))


def _mixed(keys: np.ndarray) -> np.ndarray:
    """A bijective hash of 64 bits: two n-grams of a batch do not meet by chance (Knuth, TAOCP 3, 6.4)."""
    keys = (keys + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return keys ^ (keys >> np.uint64(29))


def _count(texts: pa.Array, pattern: str) -> np.ndarray:
    return _numbers(pc.count_substring_regex(texts, pattern))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _numbers(column: Any) -> np.ndarray:
    return np.asarray(pc.cast(column, pa.float64()))


