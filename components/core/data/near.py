"""Near-duplicates: MinHash-LSH proposes pairs, their true Jaccard similarity decides (Broder 1997; Leskovec
et al., Mining of Massive Datasets, chapter 3).

Records of one template are as similar as copies, and none: thirty product sheets differ by their values alone. What
tells them apart are the documents that are like both (`is_record_of_template`)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from bloomery.components.core.data.shingles import Folded, hash_ngrams

TOLD = "the gate refuses a candidate whose data lost more than promotion.gate.max_duplicate_share (0.5 by default) so"
"""What is said of much that is lost to copies, before anything is trained on what is left."""
MUCH = 0.2
"""Share of rows whose loss is told: web pages lose about a tenth to copies, the quickstart's shop with all its planted
ones as much; a source that loses a fifth holds something that its user does not know of."""
MIN_CATCH = 0.98
"""Probability with which a pair at the threshold must meet in a band."""
BUCKET_WINDOW = 32
"""A document is compared with so many that follow it in a bucket. In larger buckets (pages of one template)
neighbours stand in the order of their next band, and the other bands offer other neighbours: work stays
linear."""

MIN_NEIGHBOURS = 3
"""With so many similar documents can be told what all of them share."""
NEIGHBOUR_SHARE = 0.8
"""Share of the threshold from which two documents are neighbours. Of 30 Korean sheets with half a page of common text
few pairs are above the threshold, and each has fewer than three such neighbours: 15 were lost. Of 385 pairs of versions
of real pages none is lost by it, of 991 re-typed Korean pages three."""
MAX_NEIGHBOURS = 16
"""So many of them are looked at."""
MAX_RECORD_SIMILARITY = 0.95
"""A pair above says the same, whatever stands in the places of the template: a page with another date."""
RARE_SHARE = 0.25
"""What a larger share of the neighbours has is not a document's own."""
MIN_OWN = 0.75
MIN_PLACES = 2
"""Of what differs between records at least MIN_OWN is each one's own, in MIN_PLACES places or more (30 product sheets:
81 to 100 %). Between independent edits of one text half of it is, because what one changed the others still have (480
copies with 6 % of their words edited: 35 to 65 % of a pair). None of 599 pairs of versions of real pages is lost."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHINGLES_PER_LOOK = 32
_HALF, _MIX = np.uint64(32), np.uint64(29)


class Permutations(NamedTuple):
    """Multipliers and summands of the permutations x -> a x + b modulo 2^32 of a MinHash, and the rows of a band."""

    a: np.ndarray
    """uint32, odd."""
    b: np.ndarray
    """uint32."""
    rows: int

    @property
    def num_bands(self) -> int:
        """Bands of a signature."""
        return len(self.a) // self.rows

    @classmethod
    def draw(cls, threshold: float, num_permutations: int, seed: int) -> Permutations:
        """Random ones, as many as the bands for `threshold` use."""
        rng = np.random.default_rng(seed)
        a, b = rng.integers(0, 2**32, (2, num_permutations), np.uint32)
        rows = band_rows(threshold, num_permutations)
        used = num_permutations // rows * rows
        return cls(a[:used] | np.uint32(1), b[:used], rows)


def band_rows(threshold: float, num_permutations: int) -> int:
    """Rows of a band: the most with which a pair at `threshold` still meets with probability MIN_CATCH.

    With b bands of r rows a pair of similarity s meets with probability 1 - (1 - s^r)^b; more rows mean fewer
    false candidates.
    """
    for rows in range(num_permutations, 1, -1):
        if 1 - (1 - threshold**rows) ** (num_permutations // rows) >= MIN_CATCH:
            return rows
    return 1


def band_keys(folded: Folded, shingle_lengths: np.ndarray, permutations: Permutations) -> np.ndarray:
    """Hash of each band of each text's MinHash signature, uint64 of shape (texts, bands)."""
    keys = np.empty((len(folded.starts), permutations.num_bands), np.uint64)
    _sign(*folded, shingle_lengths, *permutations, keys)  # type: ignore[call-arg]
    return keys


def candidate_pairs(keys: np.ndarray) -> np.ndarray:
    """Sorted pairs (left < right) of rows that share a band, int64 of shape (pairs, 2)."""
    num_documents, num_bands = keys.shape
    found = np.empty(0, dtype=np.int64)
    for band in range(num_bands):
        key = keys[:, band]
        order = np.argsort(key)
        ordered = key[order]
        if (ordered[:-BUCKET_WINDOW] == ordered[BUCKET_WINDOW:]).any():
            order = np.lexsort((keys[:, (band + 1) % num_bands], key))
            ordered = key[order]
        codes = [found]
        for offset in range(1, min(BUCKET_WINDOW, num_documents - 1) + 1):
            meets = np.flatnonzero(ordered[:-offset] == ordered[offset:])
            if not len(meets):
                break
            one, other = order[meets], order[meets + offset]
            codes.append(np.minimum(one, other) * num_documents + np.maximum(one, other))
        found = np.sort(np.concatenate(codes))  # np.unique hashes, at ten times the cost
        found = found[np.concatenate([[True], found[1:] != found[:-1]])] if len(found) else found
    return np.stack([found // num_documents, found % num_documents], axis=1)


def jaccard_similarities(
    folded: Folded, shingle_lengths: np.ndarray, pairs: np.ndarray, threshold: float = 0.0
) -> np.ndarray:
    """Jaccard similarity of the shingles of each pair of texts, float64; pairs with one left text stand together.

    A pair that cannot reach `threshold` any more is left, and gets 0. Texts with shingles of different lengths have
    nothing in common.
    """
    similarities = np.empty(len(pairs))
    if len(pairs):
        _compare(*folded, shingle_lengths, pairs, threshold, similarities)  # type: ignore[call-arg]
    return similarities


def neighbourhoods(pairs: np.ndarray) -> dict[int, list[int]]:
    """The documents of the pairs and those similar to each, the MAX_NEIGHBOURS of lowest index."""
    similar: dict[int, list[int]] = {}
    for left, right in pairs.tolist():
        similar.setdefault(left, []).append(right)
        similar.setdefault(right, []).append(left)
    return {index: sorted(others)[:MAX_NEIGHBOURS] for index, others in similar.items()}


def is_record_of_template(
    folded: Folded, shingle_lengths: np.ndarray, pairs: np.ndarray, starts: np.ndarray, neighbours: np.ndarray
) -> np.ndarray:
    """Whether each pair of texts are two records of one template and no copies, bool.

    The neighbours of text i are `neighbours[starts[i] : starts[i + 1]]`; of a text with fewer than MIN_NEIGHBOURS
    nothing can be told.
    """
    found = np.zeros(len(pairs), np.bool_)
    if len(pairs):
        is_rare = np.zeros(len(folded.codes), np.bool_)
        _mark_rare(*folded, shingle_lengths, starts, neighbours, is_rare)  # type: ignore[call-arg]
        _differ(*folded, shingle_lengths, pairs, is_rare, np.diff(starts) < MIN_NEIGHBOURS, found)  # type: ignore
    return found


@njit(cache=True, nogil=True)
def _table_bits(length):
    bits = 4
    while 1 << bits < 2 * length:
        bits += 1
    return bits


@njit(cache=True, nogil=True)
def _mark_rare(codes, starts, lengths, ns, group_starts, group, is_rare):
    """Mark where a shingle begins that at most RARE_SHARE of the text's neighbours have."""
    longest = max(1, lengths.max())
    own, others = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    size = 1 << _table_bits(longest)
    slots, stamps = np.empty(size, np.uint64), np.zeros(size, np.int64)
    counts, last = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for text in range(len(starts)):
        first, past = group_starts[text], group_starts[text + 1]
        if past - first < MIN_NEIGHBOURS:
            continue
        bits = _table_bits(max(1, lengths[text]))
        shift, table, stamped = np.uint64(64 - bits), slots[: 1 << bits], stamps[: 1 << bits]
        num_own = hash_ngrams(codes, starts[text], lengths[text], ns[text], own)
        for place in range(num_own):
            at = _find(table, stamped, text + 1, own[place], shift)
            table[at], stamped[at], counts[at], last[at] = own[place], text + 1, 0, -1
        for at_group in range(first, past):
            other = group[at_group]
            for place in range(hash_ngrams(codes, starts[other], lengths[other], ns[other], others)):
                at = _find(table, stamped, text + 1, others[place], shift)
                if stamped[at] == text + 1 and last[at] != at_group:
                    counts[at] += 1
                    last[at] = at_group
        for place in range(min(num_own, lengths[text])):
            at = _find(table, stamped, text + 1, own[place], shift)
            is_rare[starts[text] + place] = counts[at] <= RARE_SHARE * (past - first)


@njit(cache=True, nogil=True)
def _differ(codes, starts, lengths, ns, pairs, is_rare, is_unknown, found):
    longest = max(1, lengths.max())
    hashes = np.empty(longest, np.uint64)
    size = 1 << _table_bits(longest)
    slots, stamps = np.empty(size, np.uint64), np.zeros(size, np.int64)
    stamp = 0
    for row in range(len(pairs)):
        if is_unknown[pairs[row, 0]] or is_unknown[pairs[row, 1]]:
            continue
        num_different = num_own = 0
        fewest = longest
        for side in range(2):
            text, other = pairs[row, side], pairs[row, 1 - side]
            stamp += 1
            bits = _table_bits(max(1, lengths[other]))
            shift, table, stamped = np.uint64(64 - bits), slots[: 1 << bits], stamps[: 1 << bits]
            for place in range(hash_ngrams(codes, starts[other], lengths[other], ns[other], hashes)):
                _add(table, stamped, stamp, hashes[place], shift)
            num_places, is_inside = 0, False
            for place in range(hash_ngrams(codes, starts[text], lengths[text], ns[text], hashes)):
                is_different = stamped[_find(table, stamped, stamp, hashes[place], shift)] != stamp
                if is_different:
                    rare = place < lengths[text] and is_rare[starts[text] + place]
                    num_different += 1
                    num_own += rare
                    num_places += rare and not is_inside
                is_inside = is_different
            fewest = min(fewest, num_places)
        found[row] = num_own >= MIN_OWN * num_different and fewest >= MIN_PLACES


@njit(cache=True, nogil=True)
def _sign(codes, starts, lengths, ns, a, b, rows, keys):
    hashes = np.empty(max(1, lengths.max()), np.uint64)
    signature = np.empty(len(a), np.uint32)
    for index in range(len(starts)):
        signature[:] = np.uint32(0xFFFFFFFF)
        for place in range(hash_ngrams(codes, starts[index], lengths[index], ns[index], hashes)):
            shingle = np.uint32(hashes[place] >> _HALF)
            for column in range(len(a)):
                signature[column] = min(signature[column], np.uint32(a[column] * shingle + b[column]))
        for band in range(keys.shape[1]):
            key = np.uint64(ns[index])
            for column in range(band * rows, (band + 1) * rows):
                key = (key ^ np.uint64(signature[column])) * _MULTIPLIER
                key ^= key >> _MIX
            keys[index, band] = key


@njit(cache=True, nogil=True)
def _compare(codes, starts, lengths, ns, pairs, threshold, similarities):
    """Count the different shingles of both texts and the shared ones in two hash tables with open addressing.

    A slot belongs to a text if it carries the text's stamp, so the tables are never cleared.
    """
    longest = max(1, lengths.max())
    bits = 4
    while 1 << bits < 2 * longest:
        bits += 1
    size, shift = 1 << bits, np.uint64(64 - bits)
    hashes = np.empty(longest, np.uint64)
    slots = np.empty((2, size), np.uint64)
    stamps = np.zeros((2, size), np.int64)
    current = -1
    num_left = left_stamp = 0
    for row in range(len(pairs)):
        left, right = pairs[row, 0], pairs[row, 1]
        if ns[left] != ns[right]:
            similarities[row] = 0.0
            continue
        if left != current:
            current, num_left, left_stamp = left, 0, row + 1
            for place in range(hash_ngrams(codes, starts[left], lengths[left], ns[left], hashes)):
                num_left += _add(slots[0], stamps[0], left_stamp, hashes[place], shift)
        num_right = shared = 0
        num_shingles = hash_ngrams(codes, starts[right], lengths[right], ns[right], hashes)
        for place in range(num_shingles):
            if place % _SHINGLES_PER_LOOK == 0:
                most = shared + num_shingles - place
                if most < threshold * (num_left + num_right - shared):
                    shared = 0
                    break
            if _add(slots[1], stamps[1], row + 1, hashes[place], shift):
                num_right += 1
                shared += stamps[0, _find(slots[0], stamps[0], left_stamp, hashes[place], shift)] == left_stamp
        similarities[row] = shared / (num_left + num_right - shared)


@njit(cache=True, nogil=True)
def _add(slots, stamps, stamp, value, shift):
    """True if the value is new under this stamp."""
    at = _find(slots, stamps, stamp, value, shift)
    is_new = stamps[at] != stamp
    slots[at], stamps[at] = value, stamp
    return is_new


@njit(cache=True, nogil=True)
def _find(slots, stamps, stamp, value, shift):
    """The slot of the value, or the free one where it would stand."""
    at = np.int64(value >> shift)
    while stamps[at] == stamp and slots[at] != value:
        at = (at + 1) & (len(slots) - 1)
    return at
