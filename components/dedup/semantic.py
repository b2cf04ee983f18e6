"""Documents that say the same in other words: close embeddings, compared within clusters.

SemDeDup (Abbas et al. 2023, arXiv 2303.09540): k-means first, so that not every pair has to be compared, then the
cosine similarity of every pair of a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bloomery.components.core import repository_code
from bloomery.components.core.modelling import checkpoints

if TYPE_CHECKING:
    import pyarrow as pa

DOCUMENTS_PER_CLUSTER = 5_000
"""On average; all pairs of so many are one product of matrices of 100 MB."""
TEXTS_PER_FORWARD = 32
"""Texts that the encoder reads at once."""


def embed(texts: Iterable[pa.Array], encoder: Path, max_length: int) -> np.ndarray:
    """Mean of the encoder's last hidden states over the tokens of each text, of length 1; float32 (texts, width).

    Texts are cut to `max_length` tokens. `encoder` is any checkpoint that transformers loads as AutoModel.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    device = checkpoints.device()
    trust = repository_code.allowed(encoder)
    tokenizer = AutoTokenizer.from_pretrained(encoder, **trust)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModel.from_pretrained(encoder, **trust).to(device).eval()
    found = []
    for part in texts:
        for start in range(0, len(part), TEXTS_PER_FORWARD):
            batch = part.slice(start, TEXTS_PER_FORWARD).to_pylist()
            tokens = tokenizer(batch, max_length=max_length, truncation=True, padding=True, return_tensors="pt")
            with torch.inference_mode():
                states = model(**tokens.to(device)).last_hidden_state.float()
            mask = tokens["attention_mask"].unsqueeze(-1)
            mean = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            found.append(torch.nn.functional.normalize(mean, dim=1).cpu().numpy())
    return np.concatenate(found)


def similar_pairs(embeddings: np.ndarray, min_similarity: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(pairs left < right with at least this cosine similarity, int64 (pairs, 2); their similarities, float64)."""
    pairs, similarities = [np.empty((0, 2), np.int64)], [np.empty(0)]
    for members in _clusters(embeddings, seed):
        products = embeddings[members] @ embeddings[members].T
        left, right = np.nonzero(np.triu(products >= min_similarity, k=1))
        pairs.append(np.stack([members[left], members[right]], axis=1))
        similarities.append(products[left, right].astype(np.float64))
    return np.concatenate(pairs), np.concatenate(similarities)


def _clusters(embeddings: np.ndarray, seed: int) -> list[np.ndarray]:
    """Sorted indices of the documents of each cluster."""
    num_clusters = -(-len(embeddings) // DOCUMENTS_PER_CLUSTER)
    if num_clusters == 1:
        return [np.arange(len(embeddings))]
    from sklearn.cluster import MiniBatchKMeans

    labels = MiniBatchKMeans(num_clusters, random_state=seed, n_init=3).fit_predict(embeddings)
    return [np.flatnonzero(labels == label) for label in range(num_clusters)]
