"""Which documents hold an evaluation question, whatever their spacing, case and punctuation."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit

from bloomery.components.core.data import render
from bloomery.components.core.data.chats import said, without_system
from bloomery.components.core.data.shingles import (
    Folded,
    fold,
    hash_ngrams,
    letters_and_digits,
    ngram_hashes,
    ngram_lengths,
)
from bloomery.components.core.scoring.tasks import Tasks

NGRAM_CHARACTERS = 8
"""n-gram length of items in alphabetic scripts: one and a half words, so that short questions have some
too."""
DENSE_NGRAM_CHARACTERS = 5
"""n-gram length of items in Hangul, kana or Chinese."""
MIN_FIELD = (32, 16)
"""Letters and digits from which the field of a template is a question by itself, in alphabetic scripts and in dense
ones; names of products and codes are shorter."""
MIN_QUESTION = (16, 8)
"""The same where the template is the field alone: the field holds the words that ask as well."""
MAX_SHARE = 0.25
"""Share of a set's questions above which an n-gram is taken for words that lead to all of them, as instructions do that
stand in every question; what is left of a question has to be found as well."""

_PREFIX_BITS = 20
_PREFIX_SHIFT = np.uint64(64 - _PREFIX_BITS)


class Item(NamedTuple):
    """An evaluation item as its n-grams."""

    id: str
    task: str
    split: str
    length: int
    """Characters in an n-gram."""
    hashes: np.ndarray
    """Sorted, different."""
    name: np.ndarray
    """n-grams that have to be there as well, of an item that is mostly words of a template: those of its fields, or
    those that few other questions have."""


class Found(NamedTuple):
    """The item that a document holds, and the share of its n-grams found in one place."""

    item: Item
    overlap: float


class _Asked(NamedTuple):
    """An evaluation row as text."""

    own: str
    """What the user wrote of the question: the fields of the row, without the words of the template."""
    whole: str
    """The question as it is asked, and its answer."""
    is_field: bool
    """Whether the template wrote words around the fields."""


def evaluation_items(tasks: Tasks) -> tuple[list[Item], int]:
    """(items of every evaluation set and of validation, number too short to be told from chance).

    An item is what the user wrote: the fields of its row, without the words of the prompt template. Where that is
    little more than a name, a page that mentions it states a fact and gives no question away: the item is then the
    question as it is asked together with its answer. For a perplexity task it is the reference text. Of a set whose
    questions have words in common it is not these that make another text one of them.
    """
    rows = [*tasks.prompts(), *tasks.prompts("validation")]
    asked = [_asked(row, tasks) for row in rows]
    own, own_lengths = _letters([text.own for text in asked])
    whole, whole_lengths = _letters([text.whole for text in asked])
    items: dict[tuple[int, bytes], Item] = {}
    for index, (row, text) in enumerate(zip(rows, asked, strict=True)):
        codes, length = own.text(index), int(own_lengths[index])
        if len(codes) < length:
            continue
        name = np.empty(0, np.uint64)
        is_dense = length == DENSE_NGRAM_CHARACTERS
        if len(codes) < (MIN_FIELD if text.is_field else MIN_QUESTION)[is_dense]:
            length = int(whole_lengths[index])
            name, codes = np.unique(ngram_hashes(codes, length)), whole.text(index)
        if (length, codes.tobytes()) not in items:
            hashes = np.unique(ngram_hashes(codes, length))
            items[length, codes.tobytes()] = Item(row.id, row.task, row.split, length, hashes, name)
    return _told_apart(list(items.values())), int((own.lengths < own_lengths).sum())


def _told_apart(items: list[Item]) -> list[Item]:
    """The items, those of a set with words in common with what tells them apart as their `name`."""
    sets: dict[tuple[str, str, int], list[int]] = {}
    for index, item in enumerate(items):
        sets.setdefault((item.task, item.split, item.length), []).append(index)
    for chosen in sets.values():
        values, counts = np.unique(np.concatenate([items[index].hashes for index in chosen]), return_counts=True)
        common = values[counts > max(1, MAX_SHARE * len(chosen))]
        for index in chosen if len(common) else ():
            item = items[index]
            own = np.setdiff1d(item.hashes, common, assume_unique=True)
            if len(own) < len(item.hashes) and not len(item.name):
                items[index] = item._replace(name=own)
    return items


def _letters(texts: list[str]) -> tuple[Folded, np.ndarray]:
    """(letters and digits of the texts, characters in an n-gram of each)."""
    letters = letters_and_digits(fold(pa.array(texts, pa.large_string())))
    return letters, ngram_lengths(letters, NGRAM_CHARACTERS, DENSE_NGRAM_CHARACTERS)


def _asked(row: Any, tasks: Tasks) -> _Asked:
    """What the template did not write of a prompt: a long instruction would drown a short question."""
    if tasks.is_scored_by_likelihood(row.task):
        return _Asked(row.reference, row.reference, False)
    text = "\n".join(map(said, without_system(row.messages)))
    whole = f"{text} {row.reference}"
    for phrasing in tasks.configs[row.task].templates_of(row.split):
        match = re.fullmatch(render.template(phrasing.prompt).pattern(), text, re.DOTALL)
        own = " ".join(match.groups()) if match else ""
        if own.strip():
            return _Asked(own, whole, sum(map(str.isalnum, own)) < sum(map(str.isalnum, text)))
    return _Asked(text, whole, False)


class Detector:
    """Finds the items that texts hold.

    Only the rarest n-grams of an item are looked up: a text that holds a share of o of m n-grams holds one of
    any m - ceil(o * m) + 1 of them (prefix filtering, Chaudhuri et al. 2006). What is found so is then
    compared whole.
    """

    def __init__(self, items: list[Item], min_overlap: float) -> None:
        self._items = items
        self._min_overlap = min_overlap
        lengths = sorted({item.length for item in items})
        self._index = {length: _prefix_index(items, length, min_overlap) for length in lengths}

    def find(self, folded: Folded) -> dict[int, Found]:
        """The item of highest overlap that each text holds, by index of the text; texts that hold none are left out."""
        if not self._index:
            return {}
        letters = letters_and_digits(folded)
        best: dict[int, Found] = {}
        for length, index in self._index.items():
            touched = np.zeros(len(letters.starts), np.bool_)
            _touch(*letters, length, index.keys, index.is_used, touched)  # type: ignore[call-arg]
            for place in np.flatnonzero(touched).tolist():
                hashes = ngram_hashes(letters.text(place), length)
                for owner in index.owners_of(hashes):
                    item = self._items[owner]
                    width = 2 * len(item.hashes)
                    overlap = _local_overlap(item.hashes, hashes, width)
                    if len(item.name) and _local_overlap(item.name, hashes, width) < self._min_overlap:
                        continue
                    if overlap >= self._min_overlap and (place not in best or overlap > best[place].overlap):
                        best[place] = Found(item, overlap)
        return best


@njit(cache=True, nogil=True)
def _touch(codes, starts, lengths, n, keys, is_used, touched):
    """Mark the texts that hold one of `keys`, which are sorted."""
    hashes = np.empty(max(1, lengths.max()), np.uint64)
    for index in range(len(starts)):
        for place in range(hash_ngrams(codes, starts[index], lengths[index], n, hashes)):
            if is_used[hashes[place] >> _PREFIX_SHIFT]:
                at = np.searchsorted(keys, hashes[place])
                if at < len(keys) and keys[at] == hashes[place]:
                    touched[index] = True
                    break


class _Index(NamedTuple):
    """Which items a few of their n-grams belong to."""

    keys: np.ndarray
    """n-gram hashes, sorted, uint64."""
    owners: np.ndarray
    """Index of the item of each key."""
    is_used: np.ndarray
    """Whether any key begins with these bits: one look tells nearly all n-grams of a text from the keys."""

    def owners_of(self, hashes: np.ndarray) -> np.ndarray:
        """Indices of the items that one of `hashes` belongs to."""
        likely = np.unique(hashes[self.is_used[hashes >> _PREFIX_SHIFT]])
        first, past = (np.searchsorted(self.keys, likely, side) for side in ("left", "right"))
        hits = [self.owners[begin:end] for begin, end in zip(first, past, strict=True) if begin < end]
        return np.unique(np.concatenate(hits)) if hits else np.empty(0, np.int64)


def _prefix_index(items: list[Item], length: int, min_overlap: float) -> _Index:
    chosen = [index for index, item in enumerate(items) if item.length == length]
    values, counts = np.unique(np.concatenate([items[index].hashes for index in chosen]), return_counts=True)
    keys, owners = [], []
    for index in chosen:
        hashes = items[index].hashes
        rarest = np.argsort(counts[np.searchsorted(values, hashes)], kind="stable")
        prefix = hashes[rarest[: len(hashes) - math.ceil(min_overlap * len(hashes)) + 1]]
        keys.append(prefix)
        owners.append(np.full(len(prefix), index))
    flat, flat_owners = np.concatenate(keys), np.concatenate(owners)
    order = np.argsort(flat, kind="stable")
    is_used = np.zeros(2**_PREFIX_BITS, dtype=bool)
    is_used[flat >> _PREFIX_SHIFT] = True
    return _Index(flat[order], flat_owners[order], is_used)


def _local_overlap(item: np.ndarray, text: np.ndarray, width: int) -> float:
    """Largest share of the item's n-grams that stand within `width` places anywhere in the text.

    A long document holds most n-grams of a common question somewhere; only together they are the question.
    """
    places = np.searchsorted(item, text)
    places[places == len(item)] = 0
    positions = np.flatnonzero(item[places] == text)
    if not len(positions):
        return 0.0
    best = 0
    for start, end in _windows(positions, width):
        best = max(best, len(np.unique(places[positions[start:end]])))
    return best / len(item)


def _windows(positions: np.ndarray, width: int) -> Iterable[tuple[int, int]]:
    """(first, past the last) index of the positions in each window of `width` that begins at a position."""
    ends = np.searchsorted(positions, positions + width)
    # A window inside the one before it cannot hold more.
    is_new = np.concatenate([[True], ends[1:] > ends[:-1]])
    return zip(np.flatnonzero(is_new).tolist(), ends[is_new].tolist(), strict=True)
