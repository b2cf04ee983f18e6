"""Which rows go into a batch together, and in which order."""

from __future__ import annotations

import bisect
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bloomery.components.core import processes, tracking
from bloomery.components.core.errors import ConfigError
from bloomery.components.core.modelling.token_shards import IGNORED


def grouped_by_length(
    trainer: type, lengths: Sequence[int], seed: int, chosen: Callable[[int], Sequence[int]] | None = None
) -> type:
    """The `trainer` class, with batches of rows of like `lengths`, which hold little padding.

    `chosen` gives the rows of an epoch, as many as there are, by its number; none: all of them.

    The batches come in random order, but the longest row in the first, so that a lack of memory shows at once: in that
    of transformers they fall in length some times an epoch, and the loss rises and falls with them. The order of an
    epoch follows from `seed` and its number, so that a training that goes on in the third finds its place.
    """
    import torch
    from torch.utils.data import Sampler
    from transformers.trainer_pt_utils import get_length_grouped_indices

    class ByLength(Sampler[int]):
        def __init__(self, group: int) -> None:
            self.group = group
            self.epoch = 0

        def __len__(self) -> int:
            return len(lengths)

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[int]:
            chance = torch.Generator()
            chance.manual_seed(1_000_003 * seed + self.epoch)
            own = chosen(self.epoch) if chosen else range(len(lengths))
            of_own = [lengths[row] for row in own] if chosen else lengths
            rows = get_length_grouped_indices(of_own, self.group, generator=chance)
            batches = [rows[at : at + self.group] for at in range(0, len(rows), self.group)]
            # The first holds the longest row, and the last may be smaller than the others.
            order = [0, *(1 + torch.randperm(max(0, len(batches) - 2), generator=chance)).tolist(), len(batches) - 1]
            return (own[row] for at in dict.fromkeys(order) for row in batches[at])

    class Grouped(trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Sampler[int]:
            passes = self.args.gradient_accumulation_steps * processes.count()
            return ByLength(self.args.train_batch_size * passes)

    return Grouped


def validated_alike(trainer: type) -> type:
    """The `trainer` class, each of whose processes validates on all rows: the loss is that of one process, to whose
    last batch accelerate would add rows until each process has as many."""

    class Alike(trainer):  # type: ignore[misc]
        def get_eval_dataloader(self, *given: Any) -> Any:
            loader = super().get_eval_dataloader(*given)
            if processes.count() == 1:
                return loader
            from accelerate.data_loader import prepare_data_loader
            from torch.utils.data import DataLoader

            whole = DataLoader(loader.dataset, batch_size=self.args.eval_batch_size, collate_fn=loader.collate_fn)
            return prepare_data_loader(whole, self.args.device, num_processes=1, process_index=0, put_on_device=True)

        def evaluate(self, *given: Any, **named: Any) -> Any:
            if processes.count() > 1:
                self.gather_function = self._own
            return super().evaluate(*given, **named)

        def _own(self, losses_B: Any) -> Any:
            """The losses of a batch that count: of the last one, as many as it has rows."""
            state = self.accelerator.gradient_state
            return losses_B[: state.remainder] if state.end_of_dataloader and state.remainder > 0 else losses_B

    return Alike


def bins(lengths: Sequence[int], most: int, seed: int) -> list[list[int]]:
    """Indices of rows in groups of at most `most` tokens together, by best fit: first the rows longer than a quarter of
    that, the longest first, then the shorter ones in an order drawn from `seed`.

    Were all rows taken by length (best-fit decreasing), some groups would hold long rows alone and others short ones:
    after as many tokens of short chats the loss was 0.11 nats higher (tests/benchmarks/train.py; 5 seeds). It would
    save 0.3 % of the groups at most (six distributions of lengths).
    """
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda row: -int(lengths[row]) if 4 * lengths[row] > most else 0)
    open_bins: dict[int, list[list[int]]] = defaultdict(list)
    room: list[int] = []  # the different numbers of tokens for which an open bin has room, rising
    found: list[list[int]] = []
    for row in order:
        length = int(lengths[row])
        at = bisect.bisect_left(room, length)
        if at == len(room):
            chosen: list[int] = []
            left = most
            found.append(chosen)
        else:
            left = room[at]
            chosen = open_bins[left].pop()
            if not open_bins[left]:
                room.pop(at)
        chosen.append(row)
        left -= length
        if left > 0:
            if not open_bins[left]:
                bisect.insort(room, left)
            open_bins[left].append(chosen)
    return found


def check_packs(network: Any) -> None:
    """Raise ConfigError unless `network` keeps sequences that stand in one row apart by their positions."""
    import torch

    size = network.config.get_text_config().vocab_size
    ids = torch.arange(16, device=network.device)[None] * 7919 % size
    positions = torch.tensor([[*range(6), *range(10)]], device=network.device)
    network.eval()
    with torch.inference_mode():
        packed = network(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 6:].float()
        alone = network(input_ids=ids[:, 6:], use_cache=False).logits.float()
    leak = float((packed - alone).abs().max() / alone.abs().max())
    tracking.show("packing", leak)
    if leak > 0.01:
        raise ConfigError(
            f"packing: {network.config.model_type} lets sequences in one row see each other; set packing: false, with "
            "which chats of like lengths share a batch"
        )


def collator(pad: int) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """What makes a batch [B, L] of rows: `input_ids`, `labels`, and `attention_mask`, or of packed rows `position_ids`,
    which begin anew with each sequence, so that none sees another."""
    import torch

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in rows)

        def padded(values: list[Any], filling: int) -> Any:
            return torch.tensor([[*own, *[filling] * (width - len(own))] for own in values])

        batch = {
            "input_ids": padded([row["input_ids"] for row in rows], pad),
            "labels": padded([row.get("labels", row["input_ids"]) for row in rows], IGNORED),
        }
        if "seq_lengths" not in rows[0]:
            return {**batch, "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0)}
        lengths = [[*row["seq_lengths"], width - len(row["input_ids"])] for row in rows]
        batch["position_ids"] = torch.tensor([[at for length in own for at in range(length)] for own in lengths])
        # The first token of a sequence has none before it in it.
        batch["labels"] = batch["labels"].masked_fill(batch["position_ids"] == 0, IGNORED)
        return batch

    return collate


def with_prompts(trainer: type, prompt_loss_weight: float) -> type:
    """TRL's fine-tuning `trainer`, with a loss on the tokens around the answers too, of this weight: 0 is a loss on
    answers alone, 1 the same on all tokens. The loss is the mean of those of the tokens, each by its weight."""
    import torch

    class WithPrompts(trainer):  # type: ignore[misc]
        def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any) -> Any:
            own = torch.stack([self._weighted(batch)[1].sum() for batch in batch_samples]).sum().to(device)
            return self.accelerator.gather(own).sum()

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if not self.model.training:  # validation asks for the answers alone
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if not prompt_loss_weight:  # of packed rows TRL counts one
                self._total_train_tokens += self._of_all(inputs["input_ids"][1:].numel())
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            labels, weights = self._weighted(inputs)
            outputs = model(**{**inputs, "labels": labels}, use_cache=False, fused_lm_head=True)
            total = weights.sum() if num_items_in_batch is None else num_items_in_batch
            self._total_train_tokens += self._of_all(int(outputs.label_mask.sum()))
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
            loss = -(outputs.log_probs * weights).sum() / total * self.accelerator.num_processes
            return (loss, outputs) if return_outputs else loss

        def _of_all(self, count: int) -> int:
            return int(self.accelerator.gather(torch.tensor(count, device=self.args.device)).sum())

        def _weighted(self, batch: dict[str, Any]) -> tuple[Any, Any]:
            """(labels [B, L] of all tokens that follow another, weights [B, L - 1] of those after the first)."""
            ids, labels, pad = batch["input_ids"], batch["labels"], self.processing_class.pad_token_id
            is_answer = labels != IGNORED
            is_told = batch["attention_mask"].bool() if "attention_mask" in batch else batch["position_ids"] > 0
            # Of packed rows, what fills them is a sequence of pad tokens.
            is_told = is_answer | is_told & (ids != pad)
            weights = is_answer + is_told.logical_and(~is_answer) * prompt_loss_weight
            return ids.masked_fill(~is_told, IGNORED), weights[:, 1:].to(torch.float32)

    return WithPrompts
