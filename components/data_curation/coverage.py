"""What the kept documents cover: languages, sources, lengths, topics, and each slice that the recipe asks for.

Counting is streaming and mergeable: batches may be counted anywhere and added up in any order. Topics are clusters of
a sample of the texts, chosen by the hash of their content, so that order and batches do not change them either.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from bloomery.components.core.config import Config
from bloomery.components.core.records import content_id

MAX_SAMPLE = 10_000
"""Different texts that topics are made from."""
SAMPLE_CHARACTERS = 2_000
"""Characters of prose kept of each text of the sample: a page."""
MIN_TOPIC_TEXTS = 20
"""A corpus gets at most one topic for as many texts of its sample: a cluster of a few names accidents."""
MAX_DOCUMENT_SHARE = 0.3
"""A word that stands in a larger share of the texts of a language says nothing about their topic."""
NUM_REPRESENTATIVE_WORDS = 6
OTHER_TOPIC = "(no common words)"
"""Texts without any word that two texts share."""

KOREAN_SUFFIXES = frozenset(
    (
        "으로부터 에서부터 으로써 으로서 이라는 에서는 에서도 에게서 으로는 으로도 이라고 까지는 입니다 습니다 "
        "합니다 됩니다 합니까 하세요 하십시오 했습니다 됐습니다 되었습니다 하였습니다 있습니다 있는 있다 없는 없다 "
        "이다 한다 된다 했다 됐다 하는 되는 하고 되고 하며 되며 하면 되면 하여 해서 되어 하지 되지 하기 되기 "
        "하도록 되도록 하거나 되거나 할 될 한 된 함 됨 에서 에게 으로 까지 부터 처럼 보다 마다 라는 라고 이나 이며 "
        "이고 이란 들은 들을 들이 들의 에는 에도 로는 로부터 은 는 이 가 을 를 에 의 로 와 과 도 만 들"
    ).split()
)
"""Particles and the endings of 하다, 되다, 이다 and 있다, which stand at the end of Korean words."""
KOREAN_STOP_WORDS = frozenset(
    (
        "그리고 그러나 하지만 그래서 또는 또한 때문 때문에 경우 통해 위해 대해 대한 따라 다음 이런 그런 저런 "
        "이렇게 그렇게 그렇지 않으면 않은 않는 않습니다 아니라 아닌 같은 같이 다른 모든 여러 어떤 아주 너무 정말 "
        "매우 많이 그냥 진짜 이것 그것 저것 우리 여기 거기 이미 다시 바로 함께 먼저 수도 것이 것을 것은 있으며 "
        "있고 있어 없고 없어 됩니다 입니다"
    ).split()
)
"""Words that stand in texts on anything; English ones are scikit-learn's."""
MAX_SUFFIX = max(map(len, KOREAN_SUFFIXES))

_CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`", re.DOTALL)
_NO_PROSE = re.compile(r"https?://\S+|\]\([^)\s]*\)|<[^<>\n]{1,200}>|\[[A-Z]+\]")
"""Addresses, tags, and what masked personal data became."""
_WORD = re.compile(r"(?<![^\W_])[^\W\d_][^\W_]+")


class WantedSlice(Config):
    """Documents that the recipe asks for: those that meet every condition given."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Short name that it is reported by."""
    documents: int = Field(gt=0)
    """Documents wanted at least."""
    language: str | None = Field(default=None, pattern="^[a-z]{2,3}$")
    """ISO 639-1 code."""
    source: str | None = None
    """Name of a source."""
    pattern: str | None = None
    """Regular expression that is found in the text, such as `환불|반품`; `(?i)` in front ignores case."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _has_a_condition(self) -> WantedSlice:
        if self.language is None and self.source is None and self.pattern is None:
            raise ValueError("no condition; give `language`, `source` or `pattern`")
        return self

    def holds(self, text: str, language: str, source: str) -> bool:
        """Whether a document belongs to the slice."""
        return (
            self.language in (None, language)
            and self.source in (None, source)
            and (self.pattern is None or re.search(self.pattern, text) is not None)
        )


class CoverageCounter:
    """Counts documents and their words by slice, and keeps the sample that topics are made from."""

    def __init__(self, wanted: Sequence[WantedSlice] = ()) -> None:
        self._wanted = tuple(wanted)
        self._documents: Counter[tuple[str, str]] = Counter()
        self._words: Counter[tuple[str, str]] = Counter()
        # By content hash: prose, language, documents and words of all copies of the text. A text of the final sample
        # is in every sample on the way, so its counts are complete.
        self._sample: dict[str, tuple[str, str, int, int]] = {}
        self._last = "g"
        """Hashes from here on are not sampled; 'g' stands behind every hexadecimal digit."""

    def add(self, texts: Sequence[str], languages: Sequence[str], sources: Sequence[str]) -> None:
        """Count documents by their text, language code and source name, three sequences of one length."""
        for text, language, source in zip(texts, languages, sources, strict=True):
            num_words = len(text.split())
            slices = [("language", language), ("source", source), ("length", length_bucket(num_words))]
            slices += [("wanted", one.name) for one in self._wanted if one.holds(text, language, source)]
            for key in slices:
                self._documents[key] += 1
                self._words[key] += num_words
            key = content_id(text)
            if key < self._last:
                self._take(key, (_prose(text), language, 1, num_words))

    def merge(self, other: CoverageCounter) -> None:
        """Add what `other`, a counter of the same wanted slices, has counted; the order of merging does not matter."""
        self._documents += other._documents
        self._words += other._words
        for key, entry in other._sample.items():
            if key < self._last:
                self._take(key, entry)

    def rows(self, num_topics: int, seed: int) -> list[dict[str, Any]]:
        """The rows of coverage/1: languages, sources and topics by falling number of documents, lengths from short to
        long, wanted slices as the recipe has them.

        A topic is named by its representative words. Where there are more than MAX_SAMPLE different texts, its
        documents and words are estimates, scaled up from the sample; they add up to all documents and words. There
        are at most `num_topics`, fewer for a small corpus.
        """
        found = {dimension: self._slices(dimension) for dimension in ("language", "source", "length")}
        rows = [_row("language", name, *counts) for name, counts in _largest_first(found["language"].items())]
        rows += [_row("source", name, *counts) for name, counts in _largest_first(found["source"].items())]
        rows += [_row("length", name, *found["length"][name]) for name in sorted(found["length"], key=_bucket_start)]
        rows += [_row("topic", name, *counts) for name, counts in self._topics(num_topics, seed)]
        wanted = self._slices("wanted")
        return rows + [_row("wanted", one.name, *wanted.get(one.name, (0, 0)), one.documents) for one in self._wanted]

    def _slices(self, dimension: str) -> dict[str, tuple[int, int]]:
        return {key[1]: (count, self._words[key]) for key, count in self._documents.items() if key[0] == dimension}

    def _take(self, key: str, entry: tuple[str, str, int, int]) -> None:
        known = self._sample.get(key)
        # Copies may be labelled otherwise; the smaller code wins, whichever came first.
        language = min(entry[1], known[1]) if known else entry[1]
        documents, words = (known[2], known[3]) if known else (0, 0)
        self._sample[key] = (entry[0], language, entry[2] + documents, entry[3] + words)
        if len(self._sample) > 2 * MAX_SAMPLE:
            self._trim()

    def _trim(self) -> None:
        if len(self._sample) > MAX_SAMPLE:
            self._sample = {key: self._sample[key] for key in heapq.nsmallest(MAX_SAMPLE, self._sample)}
            # A copy of the last text still counts, hence the letter behind its hash.
            self._last = max(self._sample) + "g"

    def __getstate__(self) -> dict[str, Any]:
        self._trim()
        return self.__dict__

    def _topics(self, num_topics: int, seed: int) -> list[tuple[str, tuple[int, int]]]:
        self._trim()
        entries = [self._sample[key] for key in sorted(self._sample)]
        num_topics = min(num_topics, len(entries) // MIN_TOPIC_TEXTS)
        if not num_topics:
            return []
        labels, names = cluster([entry[0] for entry in entries], [entry[1] for entry in entries], num_topics, seed)
        everything = self._slices("length").values()
        totals = [sum(counts[place] for counts in everything) for place in (0, 1)]
        columns = []
        for place, total in zip((2, 3), totals, strict=True):
            sampled = np.bincount(labels, [entry[place] for entry in entries], minlength=len(names))
            # Rounding the running sum keeps the total.
            running = np.rint(np.cumsum(sampled) * (total / sampled.sum())).astype(int)
            columns.append(np.diff(running, prepend=0).tolist())
        return _largest_first(zip(names, zip(*columns, strict=True), strict=True))


def length_bucket(num_words: int) -> str:
    """The bucket of a document's length, words between spaces from a power of two to below the next, as `16-31`."""
    if num_words < 2:
        return str(num_words)
    start = 1 << (num_words.bit_length() - 1)
    return f"{start}-{2 * start - 1}"


def topic_words(prose: str) -> list[str]:
    """The words of a text that can tell its topic: lower case, two characters or more, a letter first, no stop words.

    One Korean particle or ending is taken off, the longest that leaves two characters: 주문을 and 주문은 become 주문.
    Now and then a noun loses a last syllable that looks like a particle; it does so in every text.
    """
    return [stem for stem in map(_topic_word, _WORD.findall(prose.lower())) if stem]


@lru_cache(maxsize=1 << 16)
def _topic_word(word: str) -> str:
    """`word` without its Korean suffix; '' for a stop word."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    if not word.isascii():
        lengths = range(min(MAX_SUFFIX, len(word) - 2), 0, -1)
        suffix = next((word[-length:] for length in lengths if word[-length:] in KOREAN_SUFFIXES), "")
        word = word.removesuffix(suffix)
    is_stop = word in ENGLISH_STOP_WORDS or word in KOREAN_STOP_WORDS or word in KOREAN_SUFFIXES
    return "" if is_stop else word


def cluster(texts: Sequence[str], languages: Sequence[str], num_topics: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """(topic of each text, int, shape (len(texts),); name of each topic) of K-means over tf-idf of words.

    The vectors are first brought to their main directions (latent semantic analysis, Deerwester et al. 1990), which
    is faster and lets texts meet that share meaning more than words. One thread: sums in another order differ in
    their last digits, and a text between two topics would change sides. The last topic may be OTHER_TOPIC.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize
    from threadpoolctl import threadpool_limits

    weights, vocabulary = _tfidf(texts, languages)
    labels = np.full(len(texts), num_topics)
    filled = np.flatnonzero(np.diff(weights.indptr))
    size = min(64, len(vocabulary) - 1, len(filled) - 1)
    if size < num_topics:
        return np.zeros(len(texts), int), [OTHER_TOPIC]
    with threadpool_limits(1):
        directions = normalize(TruncatedSVD(size, n_iter=4, random_state=seed).fit_transform(weights[filled]))
        labels[filled] = KMeans(num_topics, n_init=4, random_state=seed).fit_predict(directions)
    centres = np.vstack([np.asarray(weights[labels == topic].mean(axis=0)).ravel() for topic in range(num_topics)])
    # What a topic has more of than all texts together.
    names = [_name(row, vocabulary) for row in centres - np.asarray(weights.mean(axis=0)).ravel()]
    return labels, [*names, OTHER_TOPIC] if len(filled) < len(texts) else names


def _name(importance: np.ndarray, vocabulary: np.ndarray) -> str:
    return ", ".join(vocabulary[np.argsort(-importance, kind="stable")[:NUM_REPRESENTATIVE_WORDS]])


def _tfidf(texts: Sequence[str], languages: Sequence[str]) -> tuple[Any, np.ndarray]:
    """(tf-idf of the texts, CSR of unit rows; the word of each column) of words in at least two texts and in at most
    MAX_DOCUMENT_SHARE of the texts of each language."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

    counter = CountVectorizer(analyzer=topic_words)
    counts = counter.fit_transform(texts)
    vocabulary = counter.get_feature_names_out()
    in_texts = np.bincount(counts.indices, minlength=len(vocabulary))
    useful = in_texts >= 2
    codes = np.asarray(languages)
    for code in np.unique(codes):
        of_language = counts[codes == code]
        frequency = np.bincount(of_language.indices, minlength=len(vocabulary))
        useful &= frequency <= max(2, MAX_DOCUMENT_SHARE * of_language.shape[0])
    columns = np.flatnonzero(useful)
    if not len(columns):
        return counts[:, columns], vocabulary[columns]
    return TfidfTransformer(sublinear_tf=True).fit_transform(counts[:, columns]), vocabulary[columns]


def _prose(text: str) -> str:
    # Code may stand first; what follows four pages of it is not looked for.
    return _NO_PROSE.sub(" ", _CODE.sub(" ", text[: 4 * SAMPLE_CHARACTERS]))[:SAMPLE_CHARACTERS]


def _largest_first(slices: Iterable[tuple[str, tuple[int, int]]]) -> list[tuple[str, tuple[int, int]]]:
    return sorted(slices, key=lambda item: (-item[1][0], item[0]))


def _bucket_start(bucket: str) -> int:
    return int(bucket.split("-")[0])


def _row(dimension: str, name: str, documents: int, words: int, wanted: int = 0) -> dict[str, Any]:
    return {"dimension": dimension, "slice": name, "documents": documents, "words": words, "wanted": wanted}
