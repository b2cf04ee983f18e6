"""Tell people by webhook, in the form that Slack takes and other receivers can read."""

from __future__ import annotations

import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
TIMEOUT_SECONDS = 10.0
PAUSE_SECONDS = 1.0
"""Before the second attempt; twice as long before each one after."""
MAX_PAUSE_SECONDS = 30.0
"""What a receiver may ask us to wait (`Retry-After`): a check must not stand still for an alert."""


def send(webhook: str, message: dict[str, Any], *, pause_seconds: float = PAUSE_SECONDS) -> bool:
    """POST `message` as JSON to the address that the environment variable `webhook` holds.

    Tries again where the receiver does not answer, is overloaded or fails, and not where it refuses. Returns True if
    it was taken; never raises: an alert that cannot be sent is logged, and the check goes on. The log names the host
    alone, for whoever knows such an address can write to it.
    """
    address = os.environ.get(webhook, "")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        state = "holds no http or https address" if address else "is not set"
        logger.warning("no alert was sent: the variable %s of monitoring.alerts.webhook %s", webhook, state)
        return False
    body = json.dumps(message, ensure_ascii=False).encode()
    problem = ""
    for attempt in range(MAX_ATTEMPTS):
        request = urllib.request.Request(address, body, {"Content-Type": "application/json; charset=utf-8"})
        pause = pause_seconds * 2**attempt
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
                return True
        except urllib.error.HTTPError as error:
            problem = f"status {error.code}"
            if error.code != 429 and error.code < 500:
                break
            asked = error.headers.get("Retry-After", "")
            pause = max(pause, min(float(asked), MAX_PAUSE_SECONDS)) if asked.isdigit() else pause
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        if attempt + 1 < MAX_ATTEMPTS:
            time.sleep(pause)
    logger.warning("no alert was sent: %s answered with %s", parts.hostname, problem)
    return False
