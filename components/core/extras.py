"""Packages that only some settings need."""

from __future__ import annotations

import importlib.util

from bloomery.components.core.errors import MissingExtraError


def need_bitsandbytes(setting: str) -> None:
    """Raise MissingExtraError with the `setting` that asks for bitsandbytes where that is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(f"{setting} needs bitsandbytes: pip install 'bloomery[bitsandbytes]'")
