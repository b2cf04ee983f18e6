"""Is a document readable text? Sets of rules over measures that a compiled kernel takes of each text."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from bloomery.components.data_curation import quality_prose, quality_web


class Rule(NamedTuple):
    """A reason to drop a document, and the value that decides it."""

    reason: str
    value: str
    """One of the MEASURES of `quality_prose` or `quality_web`."""
    low: float
    """Documents below are dropped."""
    high: float
    """Documents above are dropped."""
    languages: tuple[str, ...] = ()
    """Languages it applies to; empty: all."""
    min_words: int = 0
    """Documents with fewer words are left alone: a share of a few words means nothing."""
    words: str = "num_prose_words"
    """The measure that counts those words."""


class Verdict(NamedTuple):
    """What the rules say of a document."""

    reason: str
    """Why it is dropped: the reason of the first rule that it breaks; empty if it is kept."""
    detail: str
    """The measure that decided, such as `mean_word_length=2.1`."""
    broken: tuple[str, ...]
    """All different reasons that it breaks; a document with one of them is removed by that reason alone."""


_INF = float("inf")

DOMAIN = (
    # FineWeb and C4 drop pages with unreadable characters; one in a hundred is a page decoded wrongly.
    Rule("unreadable_characters", "replacement_share", 0, 0.01),
    Rule("symbols", "alphabetic_word_share", 0.6, _INF, min_words=4),
    Rule("symbols", "symbol_word_ratio", 0, 0.1, min_words=20),
    Rule("jamo", "jamo_share", 0, 0.2),
    Rule("word_length", "mean_word_length", 2.3, 12, ("en",), 10),
    Rule("word_length", "mean_word_length", 1.6, 16, ("ko",), 10),
    Rule("no_function_words", "function_word_share", 0.03, _INF, (), 20),
    Rule("repeated_lines", "duplicate_line_share", 0, 0.5),
    Rule("repeated_words", "top_2gram_share", 0, 0.35),
    Rule("repeated_words", "top_3gram_share", 0, 0.4),
    Rule("repeated_words", "top_4gram_share", 0, 0.4),
    Rule("bullets", "bullet_line_share", 0, 0.95, min_words=50),
    Rule("ellipses", "ellipsis_line_share", 0, 0.3, min_words=20),
)
"""For notes, questions and pages of a domain in any language, and the default. The measures are Gopher's (Rae et al.
2021, table A1 and section A1.1); its thresholds were set on English web pages of 50 words and more, and lose good short
or technical text. These lie outside what people wrote, by quantiles of nine corpora (3,000 texts of each at most: word
problems, medical answers, bank customers' questions, compiler errors, manuals in Korean and English, chats, prompts,
specifications); the widest corpus is given:

    measure                  .001   .005   .995   .999   Gopher       widest corpus
    mean_word_length (en)    2.50   2.69                 3 to 10      bank customers' questions
                                           10.96  14.60               prompts
    mean_word_length (ko)                  11.25  12.65               Visual Studio, with its long names
    function_word_share      .014   .051                 2 words      manuals and word problems
    duplicate_line_share                   .36    .46    .30          manuals
    top_2gram_share                        .31    .41    .20          Visual Studio
    top_3gram_share                        .34    .39    .18          Visual Studio
    top_4gram_share                        .36    .41    .16          Visual Studio
    bullet_line_share                      .92    .98    .90          prompts; Visual Studio"""

_KO = ("ko",)

KOREAN = (
    Rule("ko_syllables", "syllable_share", 0.7, _INF, _KO, 10, "num_hangul_words"),
    Rule("ko_rare_syllables", "rare_syllable_share", 0, 0.2, _KO),
    Rule("ko_jamo_runs", "jamo_run_share", 0, 0.2, _KO),
    Rule("ko_particles", "particle_share", 0.2, _INF, _KO, 10, "num_hangul_words"),
    Rule("ko_word_length", "mean_hangul_word_length", 1.6, 5.5, _KO, 10, "num_hangul_words"),
    Rule("ko_spacing", "single_syllable_share", 0, 0.5, _KO, 10, "num_hangul_words"),
    Rule("ko_spacing", "long_word_share", 0, 0.3, _KO),
)
"""For Korean, beside `domain`. Thresholds stand between what people wrote (12,914 pages, summaries, answers and
sentences; 2,483 film reviews without editing) and what was made bad of them (1,000 a kind), by quantiles:

    measure                  written .005 .5 .995  reviews .005 .5 .995  made bad .05 .5 .95
    syllable_share               1.00 1.00 1.00         .85 1.00 1.00     .18   .36   .62  mash of keys in 40 % of words
    rare_syllable_share             0    0    0           0    0  .08     .85   .93   .98  UTF-8 read as CP949
    jamo_run_share                  0    0    0           0    0  .57     .38   .64   .82  mash of keys
    particle_share                .26  .58 1.00         .20  .63  .95     .09   .20   .32  lists of nouns
    mean_hangul_word_length      2.15 2.79 4.17        2.10 3.10 7.12    1.00  1.00  1.00  a space after each syllable
                                                                         4.82  6.76  9.36  four of five spaces dropped
    single_syllable_share           0  .10  .30           0  .07  .30    1.00  1.00  1.00  a space after each syllable
    long_word_share                 0    0    0           0    0 1.00     .37   .79  1.00  all spaces dropped

Half of the lists of nouns pass: particles and the last syllables of many nouns are the same."""

GOPHER = (
    Rule("gopher_length", "num_gopher_words", 50, 100_000),
    Rule("gopher_word_length", "gopher_mean_word_length", 3, 10),
    Rule("gopher_symbols", "hash_word_ratio", 0, 0.1),
    Rule("gopher_symbols", "ellipsis_word_ratio", 0, 0.1),
    Rule("gopher_bullets", "gopher_bullet_line_share", 0, 0.9),
    Rule("gopher_ellipses", "gopher_ellipsis_line_share", 0, 0.3),
    Rule("gopher_alphabetic", "gopher_alphabetic_word_share", 0.8, _INF),
    Rule("gopher_stop_words", "num_gopher_stop_words", 2, _INF),
)
"""Rae et al. 2021, section A1.1."""

GOPHER_REPETITION = (
    Rule("duplicate_paragraphs", "duplicate_paragraph_share", 0, 0.3),
    Rule("duplicate_paragraphs", "duplicate_paragraph_character_share", 0, 0.2),
    Rule("duplicate_lines", "gopher_duplicate_line_share", 0, 0.3),
    Rule("duplicate_lines", "duplicate_line_character_share", 0, 0.2),
    Rule("top_ngrams", "gopher_top_2gram_share", 0, 0.2),
    Rule("top_ngrams", "gopher_top_3gram_share", 0, 0.18),
    Rule("top_ngrams", "gopher_top_4gram_share", 0, 0.16),
    Rule("duplicate_ngrams", "duplicate_5gram_share", 0, 0.15),
    Rule("duplicate_ngrams", "duplicate_6gram_share", 0, 0.14),
    Rule("duplicate_ngrams", "duplicate_7gram_share", 0, 0.13),
    Rule("duplicate_ngrams", "duplicate_8gram_share", 0, 0.12),
    Rule("duplicate_ngrams", "duplicate_9gram_share", 0, 0.11),
    Rule("duplicate_ngrams", "duplicate_10gram_share", 0, 0.1),
)
"""Rae et al. 2021, table A1."""

C4 = (
    Rule("c4_lorem_ipsum", "num_c4_lorem_ipsum", 0, 0),
    Rule("c4_curly_brackets", "num_c4_curly_brackets", 0, 0),
    Rule("c4_sentences", "num_c4_sentences", 5, _INF),
)
"""Raffel et al. 2020, section 2.2: five sentences in lines that end in terminal punctuation, have three words and hold
no notice of cookies, terms or JavaScript."""

C4_ANY_LINE = tuple(rule._replace(value=f"{rule.value}_of_any_line") for rule in C4)
"""C4 without its rule of terminal punctuation, as FineWeb ran it (Penedo et al. 2024, section 3.5)."""

FINEWEB = (
    Rule("fineweb_punctuation", "terminated_line_share", 0.12, _INF),
    Rule("fineweb_short_lines", "short_line_share", 0, 0.67),
    Rule("fineweb_duplicate_lines", "fineweb_duplicate_character_share", 0, 0.01),
    Rule("fineweb_lists", "newline_word_ratio", 0, 0.3),
)
"""Penedo et al. 2024, section 3.6."""

_WEB_SETS = {
    "gopher": GOPHER,
    "gopher_repetition": GOPHER_REPETITION,
    "c4": C4,
    "c4_any_line": C4_ANY_LINE,
    "fineweb": FINEWEB,
}

RULE_SETS: dict[str, tuple[Rule, ...]] = {
    "domain": DOMAIN,
    "korean": KOREAN,
    **{name: tuple(rule._replace(languages=("en",)) for rule in rules) for name, rules in _WEB_SETS.items()},
}
"""The sets by name. Those of web pages were set on English and judge English only: of 641 Korean pages that people
wrote, Gopher's share of alphabetic words alone would drop 97 %."""

_KEPT = Verdict("", "", ())


def judge(
    texts: pa.Array, languages: Sequence[str], rule_sets: Sequence[str], min_words: int, max_words: int
) -> list[Verdict]:
    """The verdict of the named sets of rules on each document.

    `texts` is a string array without nulls, `languages` their codes; the lengths are in words between spaces.
    """
    length = (Rule("too_short", "num_words", min_words, _INF), Rule("too_long", "num_words", 0, max_words))
    rules = (*length, *(rule for name in rule_sets for rule in RULE_SETS[name]))
    measures = measure(texts, {rule.value for rule in rules})
    breaks = np.zeros((len(texts), len(rules)), bool)
    for column, rule in enumerate(rules):
        values = measures[rule.value]
        broken = (values < rule.low) | (values > rule.high)
        if rule.languages:
            broken &= [code in rule.languages for code in languages]
        if rule.min_words:
            broken &= measures[rule.words] >= rule.min_words
        breaks[:, column] = broken
    broken_rules: dict[int, list[Rule]] = {}
    for index, column in zip(*map(np.ndarray.tolist, np.nonzero(breaks)), strict=True):
        broken_rules.setdefault(index, []).append(rules[column])
    verdicts = [_KEPT] * len(texts)
    for index, broken_of_text in broken_rules.items():
        first = broken_of_text[0]
        detail = f"{first.value}={measures[first.value][index]:.3g}"
        verdicts[index] = Verdict(first.reason, detail, tuple(dict.fromkeys(rule.reason for rule in broken_of_text)))
    return verdicts


def measure(texts: pa.Array, names: Set[str]) -> dict[str, np.ndarray]:
    """Measures of each text, float64 arrays by name: `names`, and what the same pass finds."""
    texts = texts.cast(pa.large_string())
    _, offsets, data = texts.buffers()
    places = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    utf8 = np.frombuffer(data or b"", np.uint8)
    measures: dict[str, np.ndarray] = {}
    if names & set(quality_web.MEASURES[1:]):
        measures |= dict(zip(quality_web.MEASURES, quality_web.measure_web(utf8, places).T, strict=True))
    if names - measures.keys():
        measures |= dict(zip(quality_prose.MEASURES, quality_prose.measure_prose(utf8, places).T, strict=True))
    return measures
