"""How much the learned quality score knows from few examples, on pages it has not seen, and how fast it reads.

    python tests/benchmarks/learned_quality.py DATA

DATA holds vs_docs_ko, web_docs_ko, nsmc_raw_dated and peps_eips, each with JSONL files of a `text`. Examples and test
paragraphs come from different pages. `calibration` is the expected calibration error in ten bins (Naeini et al. 2015).
"""

from __future__ import annotations

import json
import lzma
import random
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from bloomery.components.data_curation.clean import without_code
from bloomery.components.data_curation.learned import score, train

EXAMPLES = (50, 100, 200, 400)
NUM_TEST = 800

Split = tuple[list[str], list[str]]


def main(data: Path) -> None:
    """Print the learning curves and the speed."""
    print(f"{'set':24} examples roc_auc (folds)          accuracy calibration train_cpu_seconds")
    for name, ((good, good_test), (bad, bad_test)) in sets(data).items():
        number = min(NUM_TEST, len(good_test), len(bad_test))
        test, is_good = good_test[:number] + bad_test[:number], np.repeat([1, 0], number)
        for examples in EXAMPLES:
            started = time.process_time()
            model = train(good[:examples], bad[:examples], folds=5, seed=0)
            seconds = time.process_time() - started
            scores = score(model, test)
            mean, stderr = model.scores["roc_auc"]
            print(
                f"{name:24} {examples:8} {roc_auc_score(is_good, scores):7.3f} ({mean:.3f} ± {stderr:.3f}) "
                f"{balanced_accuracy_score(is_good, scores >= 0.5):13.3f} {calibration_error(is_good, scores):11.3f} "
                f"{seconds:17.1f}"
            )
        words = [word for text in test[:number] for word in text.split()]
        documents = [" ".join(words[start : start + 300]) for start in range(0, len(words) - 300, 20)][:4_000]
        started = time.process_time()
        score(model, documents)
        print(f"{name:24} {len(documents) / (time.process_time() - started):.0f} documents of 300 words a CPU second")


def sets(data: Path) -> dict[str, tuple[Split, Split]]:
    """(examples, test texts) of the good and the bad, by name."""
    draw = random.Random(0)
    translated = rows(data / "vs_docs_ko/ko.jsonl.xz")
    people, machine = ([row["text"] for row in translated if row["mt"] == kind] for kind in ("HT", "MT"))
    korean = [row["text"] for row in rows(data / "web_docs_ko/ko.jsonl.xz")]
    reviews = [row["text"] for row in rows(data / "nsmc_raw_dated/reviews.jsonl.xz") if len(row["text"].split()) > 7]
    peps = [row["text"] for row in rows(data / "peps_eips/peps.jsonl.xz")]
    shuffled = split(peps[1::2], draw)
    return {
        "ko human or machine": (split(people, draw), split(machine, draw)),
        "ko pages or reviews": (split(korean, draw, 12, 40), split(draw.sample(reviews, 4_000), draw, 8, 40)),
        "en pages or shuffled": (
            split(peps[::2], draw),
            tuple([" ".join(draw.sample(text.split(), len(text.split()))) for text in part] for part in shuffled),
        ),
    }


def rows(file: Path) -> list[dict]:
    """The rows of a compressed JSONL file."""
    return [json.loads(line) for line in lzma.open(file, "rt", encoding="utf-8").read().split("\n") if line]


def split(pages: list[str], draw: random.Random, shortest: int = 25, longest: int = 120) -> Split:
    """Paragraphs of at least `shortest` words, cut to `longest`, at most four a page, from disjoint halves."""
    halves: Split = ([], [])
    for index, page in enumerate(draw.sample(pages, len(pages))):
        paragraphs = [part.split()[:longest] for part in without_code(page).split("\n\n")]
        long = [" ".join(words) for words in paragraphs if len(words) >= shortest]
        halves[index % 2].extend(draw.sample(long, min(4, len(long))))
    for half in halves:
        draw.shuffle(half)
    return halves


def calibration_error(is_good: np.ndarray, scores: np.ndarray, num_bins: int = 10) -> float:
    """Mean distance of score and share of good over `num_bins` equal bins, weighted by their texts."""
    bins = np.minimum((scores * num_bins).astype(int), num_bins - 1)
    sums = np.bincount(bins, scores - is_good, minlength=num_bins)
    return float(np.abs(sums).sum() / len(scores))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
