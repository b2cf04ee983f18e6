"""The drifted slice of a window: the rows that the reference does not explain, evenly over their topics."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from bloomery.components.core.config import Config
from bloomery.components.core.records import Prediction
from bloomery.components.core.scoring.verify import normalise

USUAL_SHARE = 0.95
"""A row has drifted if its score is above those of this share of the reference: one old row in twenty looks as new."""
ROWS_PER_TOPIC = 25
MAX_TOPICS = 12


class DriftedRow(Config):
    """A row that retraining may learn from."""

    id: str
    time: str
    prompt: str
    messages: str
    """The conversation as JSON: what `messages: messages` of a template asks again."""
    response: str
    """What the model answered, right or wrong."""
    label: str | None
    """The right answer, where it arrived."""
    topic: int
    """Number of the cluster of the prompt, 0 the largest."""
    score: float
    """How surely the classifier places it outside of the reference."""


def select(
    rows: Sequence[Prediction], scores: Sequence[float], reference_scores: Sequence[float], limit: int, seed: int
) -> list[DriftedRow]:
    """At most `limit` drifted rows with different prompts, drawn topic by topic in turn, so that a rare one is not
    drowned by a frequent one; of each topic the newest-looking first.

    If any has a label, only those that have one are taken: an answer that nobody knows cannot be verified.
    """
    import numpy as np

    usual = float(np.quantile(reference_scores, USUAL_SHARE))
    drifted: dict[str, tuple[Prediction, float]] = {}
    for score, row in sorted(zip(scores, rows, strict=True), key=lambda item: (-item[0], item[1].id)):
        if score > usual and row.prompt.strip():
            drifted.setdefault(normalise(row.prompt, ignore_case=True), (row, score))
    found = list(drifted.values())
    if any(row.label is not None for row, _ in found):
        found = [item for item in found if item[0].label is not None]
    topics = topics_of([row.prompt for row, _ in found], seed)
    by_topic: dict[int, list[DriftedRow]] = {}
    for (row, score), topic in zip(found, topics, strict=True):
        by_topic.setdefault(topic, []).append(
            DriftedRow(
                id=row.id,
                time=row.time,
                prompt=row.prompt,
                messages=row.messages,
                response=row.response,
                label=row.label,
                topic=topic,
                score=round(score, 4),
            )
        )
    turns = zip_longest(*(by_topic[topic] for topic in sorted(by_topic)))
    return [row for turn in turns for row in turn if row is not None][:limit]


def topics_of(texts: Sequence[str], seed: int) -> list[int]:
    """Topic of each text, by size: k-means over the principal directions of character n-grams, one topic for every
    `ROWS_PER_TOPIC` texts and at most `MAX_TOPICS`."""
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    num_topics = min(MAX_TOPICS, len(texts) // ROWS_PER_TOPIC)
    if num_topics < 2:
        return [0] * len(texts)
    try:
        features = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), min_df=2, sublinear_tf=True).fit_transform(
            texts
        )
    except ValueError:  # the texts have no n-gram in common
        return [0] * len(texts)
    dimensions = min(50, min(features.shape) - 1)
    if dimensions < 2:
        return [0] * len(texts)
    vectors = normalize(TruncatedSVD(dimensions, random_state=seed).fit_transform(features))
    clusters = KMeans(num_topics, n_init=3, random_state=seed).fit_predict(vectors)
    by_size = np.argsort(-np.bincount(clusters, minlength=num_topics), kind="stable")
    rank = {int(cluster): number for number, cluster in enumerate(by_size)}
    return [rank[int(cluster)] for cluster in clusters]
