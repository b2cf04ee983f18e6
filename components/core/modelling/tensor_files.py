"""The tensors of checkpoints, read and written in parts, so that memory is bounded by the parts and not by the model.

A safetensors file is 8 bytes with the size of its table of contents, the table as JSON, and the numbers
(github.com/huggingface/safetensors#format). Plain reads take what is asked for; a mapped file would stay in memory.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bloomery.components.core import artifact, repository_code
from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import faults

if TYPE_CHECKING:
    import torch

PART = 2**20
"""Numbers of a tensor that are held at once: 4 MiB in 32 bits, which stay in a processor's cache."""
DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"},
}
"""torch's names of the dtypes of safetensors that are read here."""
SMALL = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
"""Files of a checkpoint that are not its weights."""


class Stored(NamedTuple):
    """Where a tensor lies."""

    file: Path
    offset: int
    """Bytes before its first number."""
    dtype: str
    """As safetensors names it."""
    shape: list[int]

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Its numbers from `start` to `stop`, flat, in the dtype that they are stored in."""
        import torch

        dtype = getattr(torch, DTYPES[self.dtype])
        part = torch.empty(min(self.size, self.size if stop is None else stop) - start, dtype=dtype)
        with self.file.open("rb", buffering=0) as opened:
            opened.seek(self.offset + start * dtype.itemsize)
            into = part.view(torch.uint8).numpy().data
            while into and (count := opened.readinto(into)):  # one read ends at 2 GiB
                into = into[count:]
        return part

    def parts(self) -> Iterator[torch.Tensor]:
        """Its numbers, flat, PART at a time."""
        for start in range(0, self.size, PART):
            yield self.read(start, start + PART)


def stored(path: Path) -> dict[str, Stored]:
    """The tensors in a folder's safetensors by name. Raises: ModelError for a dtype that is not read here."""
    found = {}
    for file in faults.safetensors_files(path):
        with file.open("rb") as opened:
            begin = 8 + int.from_bytes(opened.read(8), "little")
        for name, entry in faults.head(file).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in DTYPES:
                raise ModelError(
                    f"{file}: {name} holds {entry['dtype']}; expected weights that are not quantised, such as BF16"
                )
            found[name] = Stored(file, begin + entry["data_offsets"][0], entry["dtype"], entry["shape"])
    return found


class Made(NamedTuple):
    """A tensor to be written."""

    name: str
    dtype: str
    """As safetensors names it."""
    shape: list[int]
    parts: Callable[[], Iterable[torch.Tensor]]
    """Its numbers, flat, one part after the other, in any dtype."""


def write(path: Path, tensors: Iterable[Made], *, like: Path) -> None:
    """Write a checkpoint of `tensors`, with config, tokenizer, templates and code of the checkpoint `like` as far as
    `path` has none of its own. It is whole once the caller has sealed it.

    One tensor is made at a time. Raises: ModelError naming a tensor that is not finite.
    """
    import torch

    made = _ordered(tensors)
    path.mkdir(parents=True, exist_ok=True)
    for file in [*(file for kind in SMALL for file in like.glob(kind)), *like.glob("*/*.jinja")]:
        copy = path / file.relative_to(like)
        if file.name not in (faults.INDEX, artifact.MANIFEST) and not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
    repository_code.carry(like, path)
    with (path / faults.SINGLE).open("wb") as opened:
        opened.write(_head(made))
        for one in made:
            for part in (part.to(_dtype(one)) for part in one.parts()):
                if part.is_floating_point() and not torch.isfinite(part).all():
                    raise ModelError(f"{one.name} would hold numbers that are not finite in {one.dtype}")
                opened.write(part.contiguous().view(torch.uint8).numpy().data)


def num_bytes(tensors: Iterable[Made]) -> int:
    """Bytes of the file that `write` makes of `tensors`; none of them is made."""
    made = _ordered(tensors)
    return len(_head(made)) + sum(math.prod(one.shape) * _dtype(one).itemsize for one in made)


def _ordered(tensors: Iterable[Made]) -> list[Made]:
    """Wide numbers first, so that each tensor begins at a multiple of its own width, as readers expect."""
    return sorted(tensors, key=lambda one: (-_dtype(one).itemsize, one.name))


def _dtype(one: Made) -> torch.dtype:
    import torch

    return getattr(torch, DTYPES[one.dtype])


def _head(tensors: list[Made]) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in tensors:
        begin, end = end, end + math.prod(one.shape) * _dtype(one).itemsize
        table[one.name] = {"dtype": one.dtype, "shape": one.shape, "data_offsets": [begin, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
