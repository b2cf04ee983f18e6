"""Look again and again, until someone ends it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

from bloomery.components.core.errors import DataError, ServiceError


def watch(look: Callable[[], str], every_seconds: float, tell: Callable[[str], None]) -> None:
    """Call `look` every so many seconds and `tell` what it says where that has changed.

    SIGINT and SIGTERM end it after the look that is under way: what it starts is recorded whole. What a later look may
    find cured, a ServiceError or a DataError, is told and tried again; other errors end it.
    """
    over = threading.Event()
    before = {number: signal.signal(number, lambda *_: over.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    told = None
    try:
        while not over.is_set():
            started = time.monotonic()
            try:
                found = look()
            except (ServiceError, DataError) as error:
                found = f"not checked: {error}"
            if found != told:
                tell(found)
                told = found
            over.wait(max(0.0, every_seconds - (time.monotonic() - started)))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
