"""How near a text is to its reference: chrF and BLEU by sacreBLEU, ROUGE over tokens that keep every script.

ROUGE is ten lines of our own: rouge-score (0.1.2, 2022) drops every letter that is not ASCII, so that two Korean texts
share no token, and once its tokenizer is replaced nothing but a count and a longest common subsequence is left of it.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from bloomery.components.core.errors import MissingExtraError

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

TextMetric = Literal["chrf", "bleu", "rouge_1", "rouge_2", "rouge_l"]
CORPUS_METRICS = ("chrf", "bleu")
"""Metrics that are defined over a whole set: the mean of their sentence scores is another number."""
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
_TOKEN = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+")


def sentence_score(metric: TextMetric, answer: str, reference: str, tokenizer: str) -> float:
    """Score of one answer in [0, 1]; `tokenizer` is BLEU's, by its name in sacreBLEU.

    chrF is chrF2 over characters (Popović, WMT 2015); BLEU is smoothed and uses the orders that the answer has
    (`effective_order`, sacreBLEU's setting for sentences); ROUGE is the F1 of Lin, 2004.
    Raises: MissingExtraError if the tokenizer needs a package that is not installed.
    """
    answer, reference = unicodedata.normalize("NFKC", answer), unicodedata.normalize("NFKC", reference)
    if metric == "rouge_l":
        return _f1(longest_common_subsequence(a := tokens(answer), b := tokens(reference)), len(a), len(b))
    if metric in ("rouge_1", "rouge_2"):
        found, wanted = (_ngrams(tokens(text), int(metric[-1])) for text in (answer, reference))
        return _f1((found & wanted).total(), found.total(), wanted.total())
    # A sentence that is its reference has 100.00000000000004.
    return min(1.0, _sacrebleu(metric, tokenizer, True).sentence_score(answer, [reference]).score / 100)


def corpus_score(metric: TextMetric, answers: Sequence[str], references: Sequence[str], tokenizer: str) -> float:
    """Score in [0, 1] of a whole set by one of CORPUS_METRICS: counts are added up before they are divided."""
    answers, references = ([unicodedata.normalize("NFKC", text) for text in texts] for texts in (answers, references))
    return min(1.0, _sacrebleu(metric, tokenizer, False).corpus_score(answers, [references]).score / 100)


def tokens(text: str) -> list[str]:
    """Folded words; of Hangul, Han and Kana each character, as particles and endings are glued to the words there."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a whole row a step in the bits of a number (Hyyrö, Bit-parallel LCS
    algorithms revisited, 2004)."""
    positions: dict[str, int] = {}
    for index, token in enumerate(a):
        positions[token] = positions.get(token, 0) | 1 << index
    full = row = (1 << len(a)) - 1
    for token in b:
        matched = row & positions.get(token, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(a) - row.bit_count()


def _ngrams(sequence: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(sequence[start:] for start in range(n)), strict=False))


def _f1(shared: int, found: int, wanted: int) -> float:
    return 2 * shared / (found + wanted) if found and wanted else 0.0


@functools.cache
def _sacrebleu(metric: str, tokenizer: str, of_sentences: bool) -> Metric:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if metric == "chrf":
        return CHRF()
    try:
        return BLEU(tokenize=tokenizer, effective_order=of_sentences)
    except (ImportError, RuntimeError):
        raise MissingExtraError(f"BLEU's tokenizer {tokenizer} is not installed: pip install 'sacrebleu[ko]'") from None
