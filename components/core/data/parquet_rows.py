"""Rows of Parquet, a batch of bounded bytes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from bloomery.components.core.data.json_rows import shown, value_row
from bloomery.components.core.data.raw_rows import (
    BLOCK_BYTES,
    MAX_ROW_BYTES,
    RAW_CHARACTERS,
    RawRow,
)

_MAX_BATCH_ROWS = 256


def read_parquet(stream: IO[bytes]) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # With a buffer a column is read page by page, without one a row group at once.
        file = pq.ParquetFile(stream, buffer_size=BLOCK_BYTES)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            yield RawRow(0, None, "wrong_columns", ", ".join(names)[:RAW_CHARACTERS])
            return
        number = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group)
            fitting = MAX_ROW_BYTES * size.num_rows // max(1, size.total_byte_size)
            batch_rows = max(1, min(_MAX_BATCH_ROWS, fitting))
            for batch in file.iter_batches(batch_size=batch_rows, row_groups=[group]):
                yield from _arrow_rows(number + 1, batch)
                number += batch.num_rows
    except pa.ArrowException as error:
        raise OSError(str(error)) from error


def _arrow_rows(number: int, batch: Any) -> Iterator[RawRow]:
    try:
        values = batch.to_pylist() if batch.nbytes <= MAX_ROW_BYTES else None
    except (ValueError, OverflowError):
        values = None
    if values is None:
        return (_arrow_row(number + index, batch.slice(index, 1)) for index in range(batch.num_rows))
    return (_arrow_value(number + index, value) for index, value in enumerate(values))


def _arrow_row(number: int, row: Any) -> RawRow:
    if row.nbytes > MAX_ROW_BYTES:
        return RawRow(number, None, "too_large", "")
    try:
        return _arrow_value(number, row.to_pylist()[0])
    except UnicodeDecodeError:
        return RawRow(number, None, "bad_encoding", "")
    except (ValueError, OverflowError) as error:
        # Values that Python has no type for, such as a time after the year 9999.
        return RawRow(number, None, "wrong_type", str(error)[:RAW_CHARACTERS])


def _arrow_value(number: int, value: dict[str, Any]) -> RawRow:
    value = {field: _written(cell) for field, cell in value.items()}
    holds_nul = any("\0" in cell for cell in value.values() if isinstance(cell, str))
    return value_row(number, value, shown(value), holds_nul)


def _written(cell: Any) -> Any:
    """A cell without the nulls that the rows' structs, which share their fields, have where nothing was written."""
    if isinstance(cell, dict):
        return {name: _written(value) for name, value in cell.items() if value is not None}
    if isinstance(cell, list) and cell and isinstance(cell[0], dict | list):
        return [_written(item) for item in cell]
    return cell
