"""How many numbers an adapter has, by its kind and the shape of the model."""

from __future__ import annotations

import math

from bloomery.components.core.modelling.adapters import AdapterConfig
from bloomery.components.core.modelling.shapes import Shape


def of_adapter(shape: Shape, adapter: AdapterConfig) -> int:
    """Of a soft prompt its embeddings, and the LSTM and layers that they come out of; else those beside each matrix."""
    if adapter.is_soft:
        encoder = 14 * shape.hidden**2 + 18 * shape.hidden if adapter.kind == "p_tuning" else 0
        return adapter.tokens * shape.hidden + encoder
    named = adapter.target_modules
    wanted = None if isinstance(named, str) else {name.rpartition(".")[2] for name in named}
    chosen = [item for item in shape.linear if wanted is None or item[0] in wanted]
    return sum(count * beside(adapter.kind, adapter.rank, rows, columns) for _, rows, columns, count in chosen)


def beside(kind: str, rank: int, rows: int, columns: int) -> int:
    """Numbers that an adapter of `rank` learns beside one matrix of rows (outputs) x columns (inputs).

    LoRA and its kin: A and B (2106.09685, section 4); DoRA: a magnitude a row, too (2402.09353); LoHa: two such
    products (2108.06098); LoKr: a Kronecker product, whose larger factor is a product itself where that is smaller
    (2212.10650); VeRA: two vectors that scale random A and B (2310.11454); RandLoRA: the same for as many bases as make
    full rank (2502.00987); HRA: `rank` reflections (2405.17484); MiSS: a block that all shards of the inputs share
    (2409.15371); DeLoRA: A, B and a norm (2503.18225); OFT: skew-symmetric blocks of width `rank` (2306.07280); IA3: a
    scale an output (2205.05638).
    """
    low_rank = rank * (rows + columns)
    of_kind = {
        "dora": low_rank + rows,
        "loha": 2 * low_rank,
        "lokr": _of_kronecker(rank, rows, columns),
        "vera": rows + rank,
        "randlora": math.ceil(min(rows, columns) / rank) * (rank + min(rows, columns)),
        "hra": rank * columns,
        "miss": rank * rows,
        "delora": low_rank + 1,
        "oft": columns * (rank - 1) // 2,
        "ia3": rows,
    }
    return of_kind.get(kind, low_rank)


def _of_kronecker(rank: int, rows: int, columns: int) -> int:
    (few_rows, many_rows), (few_columns, many_columns) = _near_square(rows), _near_square(columns)
    is_product = rank < max(many_rows, many_columns) / 2
    larger = rank * (many_rows + many_columns) if is_product else many_rows * many_columns
    return few_rows * few_columns + larger


def _near_square(width: int) -> tuple[int, int]:
    """The factors of a width that are nearest to each other, the smaller first."""
    smaller = next(factor for factor in range(math.isqrt(width), 0, -1) if width % factor == 0)
    return smaller, width // smaller
