"""Which files of a folder are its data: a data set comes from a hub with its card, licence and metadata beside them."""

from __future__ import annotations

import logging
import re
from pathlib import Path, PurePosixPath

logger = logging.getLogger(__name__)

ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Suffixes of files that hold rows."""
METADATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "croissant.json")
"""What the hub and the library `datasets` write beside the rows."""

_ABOUT = re.compile(r"(?:readme|licen[cs]e|copying|notice|citation|changelog|contributing|code_of_conduct)\b", re.I)
_CARD = re.compile(
    r"\A---\s*\n(?:.*\n)*?(?:license|task_categories|task_ids|dataset_info|configs|size_categories|pretty_name|viewer"
    r"|annotations_creators|source_datasets|tags|language)[ \t]*:"
)
_CARD_CHARACTERS = 4096


def data_files(root: str, files: list[str]) -> list[str]:
    """`files` of the folder `root` without what is about them, where some of them hold rows.

    In a folder with a hub's card or metadata the files with rows are the data; in any other folder its own README,
    licence and the like are left out, and pages stay.
    """
    names = {file: file.removeprefix(root.rstrip("/") + "/") for file in files}
    with_rows = [file for file, name in names.items() if _has_rows(name)]
    if not with_rows:
        return files
    is_hub = any(PurePosixPath(name).name in METADATA for name in names.values()) or _has_card(root, names)
    kept = with_rows if is_hub else [file for file, name in names.items() if not _is_about(name)]
    if len(kept) < len(files):
        others = [names[file] for file in files if file not in set(kept)]
        told = ", ".join(others[:5]) + (", …" if len(others) > 5 else "")
        logger.info("%s: %d files beside the data are left out: %s", root, len(others), told)
    return kept


def _has_rows(name: str) -> bool:
    path = PurePosixPath(name.lower())
    return bool(set(path.suffixes) & set(ROW_SUFFIXES)) and path.name not in METADATA


def _is_about(name: str) -> bool:
    return "/" not in name and not _has_rows(name) and (_ABOUT.match(name) is not None or name in METADATA)


def _has_card(root: str, names: dict[str, str]) -> bool:
    card = next((file for file, name in names.items() if name.lower() == "readme.md"), "")
    if not card or "://" in card:
        return bool(card) and root.startswith("hf://")
    with Path(card).open(encoding="utf-8", errors="replace") as stream:
        return _CARD.match(stream.read(_CARD_CHARACTERS)) is not None
