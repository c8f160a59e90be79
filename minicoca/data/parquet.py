"""Lists of captions in Parquet files, read by pyarrow where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from minicoca.data.records import Reading, Record
from minicoca.images import name_of, open_file
from minicoca.words import clip

PARQUET = ".parquet"
ROWS = 4096  # that are read at once


def read_parquet(path: Path, reading: Reading) -> Iterator[Record]:
    """Records of a table whose image column holds paths. Raises ValueError where pyarrow is not
    installed, or the file is none, or breaks the rules of lists."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            f"{name_of(path)}: reading Parquet needs pyarrow; install it with "
            "pip install 'minicoca[parquet]', or convert the list to CSV"
        ) from error
    reading.kind = "a Parquet table"
    where = name_of(path)
    with open_file(path) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)
            names = list(table.schema_arrow.names)
            wanted = [name for name in reading.columns(names, where) if name]
            number = 0
            for batch in table.iter_batches(ROWS, columns=[*dict.fromkeys(wanted)]):
                for row in batch.to_pylist():
                    number += 1
                    yield record_of(row, wanted, f"{where}, row {number}")
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            if getattr(error, "errno", None):
                raise
            raise ValueError(f"{where}: no Parquet, or damaged ({clip(str(error))})") from error


def record_of(row: dict, wanted: list[str], where: str) -> Record:
    image, caption, *split = (row[name] for name in wanted)
    if isinstance(image, dict | bytes):
        raise ValueError(
            f"{where}: column {clip(wanted[0], 40)} holds pictures, not their paths; save them as "
            "files, and their paths in the list"
        )
    return Record(image, caption, where, *split)
