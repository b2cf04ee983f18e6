"""Token ids on disk, memory-mapped: a corpus is tokenised once, in batches over the cores, and trained on without ever
standing in memory.

A folder of token ids holds `ids.bin` (all rows one after the other, two bytes an id where the vocabulary allows it,
else four), `offsets.bin` (where each row begins, and the last one ends, in tokens; 64 bits), `labels.bin` (32 bits a
token, where rows have a mask), `groups.bin` (32 bits a row, where they have groups), and `index.json`, written last.
With a store (`BLOOMERY_STORE`) it is kept there under a digest of what it was made from, and found again by a run with
other settings of the training; of a store on S3 a copy is read.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bloomery.components.core import artifact, processes, scratch, store
from bloomery.components.core.config import digest
from bloomery.components.core.modelling import lazy, proof, rendering, templates
from bloomery.components.core.modelling.lazy import Lazily

if TYPE_CHECKING:
    import numpy as np

IGNORED = -100
"""Label of a token without loss, in torch and in TRL."""
INDEX = "index.json"
BATCH_ROWS, BATCH_CHARACTERS = 1_000, 1_000_000
"""Texts that a worker tokenises at once, and their characters, whichever is reached first."""


@dataclass(frozen=True)
class Encoded:
    """Some rows of token ids, one after the other, and what was counted while they were made."""

    ids: np.ndarray
    """[T], unsigned 32 bits."""
    lengths: np.ndarray
    """Tokens of each row."""
    labels: np.ndarray | None
    """[T], signed 32 bits, IGNORED where there is no loss; None: a loss on every token."""
    counts: dict[str, int]
    groups: np.ndarray | None = None
    """Of each row, such as the number of its task; None: they have none."""


def encoded(
    rows: Sequence[tuple[Sequence[int], Sequence[bool] | None]],
    counts: dict[str, int] | None = None,
    groups: Sequence[int] | None = None,
) -> Encoded:
    """Rows of (token ids, which of them have a loss); the mask is None in every row or in none."""
    import numpy as np

    ids_T = np.array([token for ids, _ in rows for token in ids], dtype=np.uint32)
    labels_T = None
    if rows and rows[0][1] is not None:
        trained_T = np.array([own for _, trained in rows for own in trained or ()], dtype=bool)
        labels_T = np.where(trained_T, ids_T.astype(np.int32), np.int32(IGNORED))
    lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int64)
    return Encoded(ids_T, lengths, labels_T, counts or {}, None if groups is None else np.array(groups, dtype=np.int32))


class Tokens:
    """The rows of a folder of token ids, read from disk as they are needed."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self.counts = Counter(index["counts"])
        """What was counted as the rows were made."""
        self.digest: str = index["digest"]
        self._folder = folder
        self._ids = _mapped(folder / "ids.bin", np.dtype(index["dtype"]))
        self._offsets = _mapped(folder / "offsets.bin", np.dtype(np.int64))
        self._labels = _mapped(folder / "labels.bin", np.dtype(np.int32)) if index["has_labels"] else None
        self.groups = _mapped(folder / "groups.bin", np.dtype(np.int32))
        """The group of each row; empty where rows have none."""

    @property
    def num_rows(self) -> int:
        return len(self._offsets) - 1

    @property
    def num_tokens(self) -> int:
        return len(self._ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        import numpy as np

        return np.diff(self._offsets)

    def highest(self) -> int:
        """The highest token of all rows; -1 of none."""
        return int(self._ids.max()) if self.num_tokens else -1

    def row(self, number: int) -> list[int]:
        """The token ids of a row."""
        begin, end = self._offsets[number : number + 2].tolist()
        return self._ids[begin:end].tolist()

    def __reduce__(self) -> tuple[type[Tokens], tuple[Path]]:
        """Their folder stands for them: a dataset with a transform is named by a digest of all that this can reach,
        which would else be read into memory."""
        return Tokens, (self._folder,)

    def rows(self) -> Any:
        """A dataset with one item a row: `input_ids`, and `labels` where the rows have a mask."""
        return self._dataset(self._offsets, "rows")

    def blocks(self, length: int, whole: int = 0) -> Any:
        """A dataset of the rows joined and cut every `length` tokens; the last block is what is left.

        The last `whole` rows, of at most `length` tokens each, are not cut: they fill blocks of their own, of which
        each ends before the row that would not fit.
        """
        import numpy as np

        offsets = self._offsets[self.num_rows - whole :].tolist()
        starts = np.arange(0, offsets[0], length, dtype=np.int64)
        uncut = offsets[:1] if whole else []
        for begin, end in zip(offsets, offsets[1:], strict=False):
            if end - uncut[-1] > length:
                uncut.append(begin)
        ends = np.array([*uncut, self.num_tokens], dtype=np.int64)
        return self._dataset(np.append(starts, ends), f"blocks of {length}, {whole} rows whole")

    def packed(self, groups: Sequence[Sequence[int]]) -> Any:
        """A dataset with one item a group of rows, one after the other: `input_ids`, `labels`, and `seq_lengths`, the
        tokens of each row; read as it is asked for."""

        def made(at: int) -> dict[str, list[int]]:
            labels = self._ids if self._labels is None else self._labels
            spans = [slice(*self._offsets[row : row + 2].tolist()) for row in groups[at]]
            return {
                "input_ids": [token for span in spans for token in self._ids[span].tolist()],
                "labels": [label for span in spans for label in labels[span].tolist()],
                "seq_lengths": [span.stop - span.start for span in spans],
            }

        return lazy.dataset(Lazily(made, len(groups)))

    def _dataset(self, offsets: np.ndarray, form: str) -> Any:
        import pyarrow as pa
        from datasets import Dataset
        from datasets.table import InMemoryTable

        columns = {"input_ids": self._ids} | ({} if self._labels is None else {"labels": self._labels})
        arrays = {
            name: pa.LargeListArray.from_arrays(pa.array(offsets), _arrow(values)) for name, values in columns.items()
        }
        # Its own fingerprint would be a digest of all tokens, read into memory.
        return Dataset(InMemoryTable(pa.table(arrays)), fingerprint=digest([self.digest, form])[:16])


def _mapped(file: Path, dtype: np.dtype) -> np.ndarray:
    import numpy as np

    return np.memmap(file, dtype, mode="r") if file.stat().st_size else np.zeros(0, dtype)


def _arrow(values: np.ndarray) -> Any:
    """Memory-mapped numbers as an Arrow array over the same pages."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


@contextlib.contextmanager
def tokenised(tokenizer: Any, parts: Sequence[Any], batches: Callable[[], Iterable[Encoded]]) -> Iterator[Tokens]:
    """The rows that `batches` makes, on disk while the context lasts.

    `parts` is all that they depend on beside `tokenizer` and its template: digests of artifacts, settings. With a store
    they are kept and taken from there the next time, and `batches` is not called.
    """
    state = _state(tokenizer)
    with contextlib.ExitStack() as stack:
        modules = (__file__, templates.__file__, rendering.__file__, proof.__file__)
        code = [artifact.file_digest(Path(module)) for module in modules]
        name = f"tokens/{digest([state, list(parts), code])[:24]}"
        shared = store.shared(name) if state else None
        folder = shared or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bloomery-"))) / "tokens"
        while processes.local_rank() and shared and not (folder / INDEX).is_file():
            time.sleep(0.1)  # the first process of this machine writes it
        if not (folder / INDEX).is_file() and not (state and store.fetch(name, folder)):
            _write(folder, batches(), len(tokenizer))
            if state:
                store.keep(name, folder)
        yield Tokens(folder)


def _state(tokenizer: Any) -> str:
    """Digest of all that decides how a text or a chat is cut into tokens; "" of a tokenizer that is not one file."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ""
    content = json.loads(backend.to_str())
    lasting = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    return digest([type(tokenizer).__name__, lasting, tokenizer.chat_template, tokenizer.special_tokens_map])


def _write(folder: Path, batches: Iterable[Encoded], vocabulary: int) -> None:
    """Write `folder`, whole or not at all."""
    import numpy as np

    dtype = np.dtype(np.uint16 if vocabulary <= 2**16 else np.uint32)
    counts: Counter[str] = Counter()
    end, has_labels = 0, False
    with scratch.beside(folder) as made:
        if (folder / INDEX).is_file():  # another process has made it meanwhile
            return
        with contextlib.ExitStack() as stack:
            ids, offsets, labels, groups = (
                stack.enter_context((made / f"{name}.bin").open("wb"))
                for name in ("ids", "offsets", "labels", "groups")
            )
            offsets.write(np.zeros(1, np.int64).tobytes())
            for batch in batches:
                ids.write(batch.ids.astype(dtype).tobytes())
                offsets.write((end + batch.lengths.cumsum()).astype(np.int64).tobytes())
                end += len(batch.ids)
                if batch.labels is not None:
                    labels.write(batch.labels.tobytes())
                    has_labels = True
                if batch.groups is not None:
                    groups.write(batch.groups.tobytes())
                counts.update(batch.counts)
        index = {
            "dtype": dtype.name,
            "has_labels": has_labels,
            "counts": counts,
            "digest": digest({file.name: artifact.file_digest(file) for file in sorted(made.glob("*.bin"))}),
        }
        artifact.write_atomically(made / INDEX, json.dumps(index))
        os.replace(made, folder)


def in_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in lists of at most BATCH_ROWS, each ended by the text with which it reaches BATCH_CHARACTERS."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def whole_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts as a model reads them to the end: with EOS after each."""
    return [templates.text_tokens(tokenizer, text, end=True) for text in texts]
