"""The likelihood of given tokens under a model, in memory that does not grow with the number of rows.

The logits of a batch take rows x tokens x vocabulary x 4 bytes: 80 GB for 64 rows of 2,048 tokens and a vocabulary of
152,000. Here the layers read a batch of tokens, and the output head turns only the positions that are scored into
logits, LOGIT_BYTES at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

LOGIT_BYTES = 2**27
"""128 MiB: the fp32 logits that are held at once. The logarithm of their softmax takes as much again."""
BATCH_TOKENS = 8_192
"""Tokens, padding among them, that go through the layers at once; one row may be longer."""
NEAR = 32
"""Tokens of a row that are told together, before positions are told by doubling."""


def log_likelihoods(
    model: Any, rows: Sequence[Sequence[int]], scored: Sequence[Sequence[bool]] | None = None
) -> list[tuple[float, int]]:
    """(sum of log-likelihoods in nats, number of scored tokens) of each row of token ids.

    `scored` marks the tokens of each row that count, none given: all. The first token of a row has nothing before it
    and never counts. `model` is any causal language model of transformers, with an adapter of PEFT or without.
    """
    sums = [(0.0, 0)] * len(rows)
    for batch, nats_BL, counts_BL in in_batches(model, rows, scored):
        found = zip(nats_BL.sum(-1).tolist(), counts_BL.sum(-1).tolist(), strict=True)
        for index, (total, count) in zip(batch, found, strict=True):
            sums[index] = (total, count)
    return sums


def by_position(model: Any, rows: Sequence[Sequence[int]]) -> dict[int, tuple[float, int]]:
    """(sum of log-likelihoods in nats, number of tokens) of all rows together by position, under where it begins:
    0, NEAR, 2 NEAR, 4 NEAR, …, each to the next. The first token of a row stands at 0 and never counts."""
    import torch

    found: dict[int, tuple[float, int]] = {}
    for _, nats_BL, counts_BL in in_batches(model, rows):
        parts = torch.tensor([(at // NEAR).bit_length() for at in range(1, nats_BL.shape[1] + 1)])
        nats_L, counts_L = nats_BL.sum(0).cpu(), counts_BL.sum(0).cpu()
        for part in range(int(parts[-1]) + 1):
            begin, is_own = NEAR * 2**part // 2 if part else 0, parts == part
            nats, count = found.get(begin, (0.0, 0))
            found[begin] = (nats + float(nats_L[is_own].sum()), count + int(counts_L[is_own].sum()))
    return {begin: found[begin] for begin in sorted(found) if found[begin][1]}


def in_batches(
    model: Any,
    rows: Sequence[Sequence[int]],
    scored: Sequence[Sequence[bool]] | None = None,
    is_known: Sequence[bool] | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[list[int], Any, Any]]:
    """(indices of some rows, nats [B, L - 1] of their tokens after the first, whether these count [B, L - 1]), for all
    rows of more than one token, the shortest first, but for batches of which all rows are marked as known. Of `share`
    (k, n) every nth batch, from the kth: what one of n processes has to find.

    Rows may be made as they are asked for: those of a batch stand in memory, and of the others their lengths.
    """
    import torch

    lengths = [len(row) for row in rows]
    order = [index for index in sorted(range(len(rows)), key=lengths.__getitem__) if lengths[index] > 1]
    if not order:
        return
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # its layers hold the adapter
    most = rows_of_logits(model)
    own, of = share
    with torch.inference_mode():
        head = output_head(model, rows[order[-1]][:8])
        batches = _batches(lengths, order, BATCH_TOKENS if head else min(BATCH_TOKENS, most))
        for number, batch in enumerate(batches):
            if number % of != own or (is_known is not None and all(is_known[index] for index in batch)):
                continue
            ids_BL, attended_BL, counts_BL = (part.to(model.device) for part in _padded(rows, scored, batch))
            inputs = {"input_ids": ids_BL, "attention_mask": attended_BL, "use_cache": False}
            next_BL, counts_BL = ids_BL[:, 1:], counts_BL[:, 1:]
            if head:
                hidden_NH = model.base_model(**inputs).last_hidden_state[:, :-1][counts_BL]
                chosen_N = next_BL[counts_BL]
                nats_N = torch.empty(len(chosen_N), dtype=torch.float64, device=model.device)
                parts = zip(nats_N.split(most), hidden_NH.split(most), chosen_N.split(most), strict=True)
                for nats, hidden, chosen in parts:
                    nats.copy_(_chosen(head(hidden), chosen))
            else:
                nats_N = _chosen(model(**inputs).logits[:, :-1][counts_BL], next_BL[counts_BL])
            nats_BL = torch.zeros(next_BL.shape, dtype=nats_N.dtype, device=model.device)
            nats_BL[counts_BL] = nats_N
            yield batch, nats_BL, counts_BL


def _padded(rows: Sequence[Sequence[int]], scored: Sequence[Sequence[bool]] | None, batch: list[int]) -> Any:
    """(token ids [B, L], which are no padding [B, L], which are scored [B, L]) of some rows, padded on the right."""
    import torch

    own = [rows[index] for index in batch]
    width = max(map(len, own))
    empty = [[0] * (width - len(row)) for row in own]
    marks = [[True] * len(row) if scored is None else scored[index] for index, row in zip(batch, own, strict=True)]
    ids_BL = torch.tensor([[*row, *rest] for row, rest in zip(own, empty, strict=True)])
    attended_BL = torch.tensor([[1] * len(row) + rest for row, rest in zip(own, empty, strict=True)])
    counts_BL = torch.tensor([[*mark, *rest] for mark, rest in zip(marks, empty, strict=True)]).bool()
    return ids_BL, attended_BL, counts_BL


def rows_of_logits(model: Any) -> int:
    """How many positions' logits fit in LOGIT_BYTES."""
    return max(1, LOGIT_BYTES // (4 * model.config.get_text_config().vocab_size))


def _batches(lengths: Sequence[int], order: Sequence[int], most: int) -> Iterator[list[int]]:
    """`order`, in which lengths rise, in pieces of at most `most` padded tokens."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[index] > most:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _chosen(logits_NV: Any, chosen_N: Any) -> Any:
    """Log-likelihood in nats of each chosen token."""
    logits_NV = logits_NV.float()
    return (logits_NV.gather(-1, chosen_N[:, None])[:, 0] - logits_NV.logsumexp(-1)).double()


def output_head(model: Any, probe: Sequence[int]) -> Callable[[Any], Any] | None:
    """What makes logits of hidden states, or None where it is not known what the architecture does between them.

    Some scale the logits or cap them (arXiv 2408.00118, section 2). The names of their settings are those of
    transformers' configs; that nothing else happens is seen on `probe`, by the model's own logits.
    """
    import torch

    if model.base_model is model:
        return None
    output, settings = model.get_output_embeddings(), model.config.get_text_config()
    cap = getattr(settings, "final_logit_softcapping", None)
    divisor = getattr(settings, "logits_scaling", None)  # Granite
    factor = next(
        (value for name in ("logit_scale", "lm_head_multiplier") if (value := getattr(settings, name, None))), None
    )  # Cohere, Falcon-H1

    def head(hidden_NH: Any) -> Any:
        logits_NV = output(hidden_NH.to(model.dtype))  # Mamba keeps its states in 32 bits
        if divisor is not None:
            logits_NV = logits_NV / divisor
        if factor is not None:
            logits_NV = logits_NV * factor
        return logits_NV if cap is None else torch.tanh(logits_NV / cap) * cap

    ids_1L = torch.tensor([list(probe)], device=model.device)
    expected = model(input_ids=ids_1L, use_cache=False).logits[0].float()
    states = model.base_model(input_ids=ids_1L, use_cache=False)
    found = head(states.last_hidden_state[0]).float()
    close = 1e-5 if model.dtype == torch.float32 else 1e-2
    near = found.shape == expected.shape and (found - expected).abs().max() <= close * expected.abs().max()
    return head if near else None
