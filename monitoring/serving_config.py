"""The recipe's `serving:` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from bloomery.components.core.config import Config


class ServingConfig(Config):
    """How `bloomery serve` answers."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """What decodes. `vllm`: vLLM in a process of its own, by the interpreter that BLOOMERY_VLLM names."""
    vllm_arguments: list[str] = []
    """Further arguments of vLLM's server, such as `--gpu-memory-utilization=0.45`: while a new champion is loaded, two
    share the accelerator."""
    max_batch: int = Field(default=32, ge=1)
    """Answers decoded together. Long ones are fewer: prompts and answers of a batch stay within 16,384 tokens."""
    max_waiting: int = Field(default=256, ge=1)
    """Answers that may wait for a batch; a request beyond them is refused with status 503."""
    gather_seconds: float = Field(default=0.01, ge=0)
    """How long the first request waits for others to share its batch. Clients that ask again once answered come
    back within milliseconds of each other; without a wait the fastest of them would be answered alone."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Longest answer in tokens where a request names no `max_tokens`."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """Where a request names none; 0 is greedy, as the model was evaluated."""
    max_request_bytes: int = Field(default=4 * 2**20, ge=1024)
    """Size of the body of a request; a larger one is refused with status 413."""
    poll_seconds: float = Field(default=10, gt=0)
    """How often the registry is asked which version is champion."""
    flush_rows: int = Field(default=1000, ge=1)
    """Answers in a file of the prediction log, at most."""
    flush_seconds: float = Field(default=30, gt=0)
    """Longest time that an answer waits to be written to the prediction log; so much a killed server loses."""

    @field_validator("vllm_arguments")
    @classmethod
    def _runs_no_code(cls, arguments: list[str]) -> list[str]:
        if told := [one for one in arguments if one.replace("_", "-").startswith("--trust-remote-code")]:
            raise ValueError(f"{told[0]} would run code that nobody has named; leave it out")
        return arguments
