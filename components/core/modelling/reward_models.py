"""Reward models: checkpoints that give a chat one number, higher for a better answer.

It is read at the last token of the chat, which is the one that ends the answer. The number has mean 0 and standard
deviation 1 over the answers that it was measured on (Ziegler et al., arXiv 1909.08593, section 2), so that it can be
weighed beside a verifier's score.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact, repository_code
from bloomery.components.core.data.chats import Turn, message
from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import adapters, checkpoints, templates
from bloomery.components.core.modelling.likelihood import BATCH_TOKENS
from bloomery.components.core.modelling.preference_pairs import chat_tokens

SCHEMA = "reward_model/1"
SCALE = "reward_scale.json"
"""Mean and standard deviation of the raw scores."""
NO_END = -1.0
"""Score of an answer that does not end: one standard deviation below the mean ('The N+ Implementation Details of RLHF
with PPO', arXiv 2403.17031, section 'EOS trick')."""


class RewardModel:
    """A loaded reward model."""

    def __init__(self, network: Any, tokenizer: Any, mean: float = 0.0, deviation: float = 1.0) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.mean = mean
        self.deviation = deviation

    @classmethod
    def load(cls, path: Path) -> RewardModel:
        """Load a `reward_model/1`. Raises: ModelError if it does not load."""
        scale = json.loads((path / SCALE).read_text(encoding="utf-8"))
        network, tokenizer = load(path, dtype="auto", on=checkpoints.device())
        return cls(network.eval(), tokenizer, scale["mean"], scale["deviation"])

    def save(self, path: Path, *, like: Path) -> artifact.Manifest:
        """Write network, tokenizer and scale under `path`, in the dtype of the checkpoint `like`, and seal it."""
        import torch

        own = getattr(torch, checkpoints.own_dtype(like), None)
        self.network.to(own or self.network.dtype).save_pretrained(path)
        self.tokenizer.save_pretrained(path)
        repository_code.carry(like, path)
        artifact.write_atomically(path / SCALE, json.dumps({"mean": self.mean, "deviation": self.deviation}))
        return artifact.seal(path, SCHEMA)

    def scores(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The score of each chat of token ids, which ends with the end of its answer; NO_END for one that does not."""
        ends = set(templates.end_tokens(self.tokenizer))
        raw = self.raw_scores(rows)
        return [
            (score - self.mean) / self.deviation if row[-1] in ends else NO_END
            for row, score in zip(rows, raw, strict=True)
        ]

    def raw_scores(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """What the head says of each row, before mean and deviation are taken out of it. Rows may be made as they are
        asked for: those of a batch stand in memory."""
        import torch

        found = [0.0] * len(rows)
        lengths = [len(row) for row in rows]
        order = sorted(range(len(rows)), key=lengths.__getitem__)
        pad = self.network.config.get_text_config().pad_token_id
        while order:
            width = lengths[order[-1]]
            most = max(1, BATCH_TOKENS // width)
            batch = order[-most:]
            del order[-most:]
            own = [rows[index] for index in batch]
            ids_BL = torch.tensor([[*row, *[pad] * (width - len(row))] for row in own])
            mask_BL = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in own])
            device = self.network.device
            with torch.inference_mode():
                logits_B1 = self.network(ids_BL.to(device), attention_mask=mask_BL.to(device), use_cache=False).logits
            for index, score in zip(batch, logits_B1[:, 0].float().tolist(), strict=True):
                found[index] = score
        return found

    def scores_of_answers(self, messages: Sequence[Turn], tools: str, answers: Sequence[str]) -> list[float]:
        """The score of each text as the answer to a conversation; NO_END for one that cannot be an answer of its
        template, such as one with an end inside."""
        rows: list[list[int]] = []
        for text in answers:
            try:
                rows.append(chat_tokens(self.tokenizer, [*messages, message("assistant", text)], tools))
            except ModelError:
                rows.append([])
        found = iter(self.scores([row for row in rows if row]))
        return [next(found) if row else NO_END for row in rows]


def load(path: Path, *, dtype: str = "auto", on: str = "cpu", in_4_bits: bool = False) -> tuple[Any, Any]:
    """(network with a head of one number, tokenizer) of a reward model or, with a new head, of a model's checkpoint;
    `in_4_bits`: all but the head in NF4, in place of `dtype`, to be trained under an adapter.

    The network knows padding by its token, so that this is one that ends no turn: where a tokenizer pads with the end,
    the end of the answer would not be seen.
    Raises: ModelError if transformers has no such head for the architecture, or the checkpoint does not load;
            MissingExtraError for 4 bits without bitsandbytes.
    """
    from transformers import AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = checkpoints.load_tokenizer(path)
    ends = templates.end_tokens(tokenizer)
    if tokenizer.pad_token_id in ends:
        other = next(index for index in range(len(tokenizer)) if index not in ends)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(other)
    weights = adapters.settings_of_4_bits() if in_4_bits else {"dtype": dtype}
    try:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=1,
            device_map=None if on == "cpu" else on,
            use_safetensors=True,
            output_loading_info=True,
            **repository_code.allowed(path),
            **weights,
        )
        network, found = loaded
    except Exception as error:  # of any kind: config and weights are read by code of each architecture
        raise ModelError(f"{path}: no reward model can be made of it: {checkpoints.reason(path, error)}") from None
    if lacking := [name for name in sorted(found["missing_keys"]) if name.startswith(f"{network.base_model_prefix}.")]:
        raise ModelError(
            f"{path}: {len(lacking)} of the weights that config.json wants would be random numbers: "
            f"{', '.join(lacking[:3])}{' …' if len(lacking) > 3 else ''}; fetch the checkpoint again, whole"
        )
    network.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return adapters.trainable_in_4_bits(network) if in_4_bits else network, tokenizer
