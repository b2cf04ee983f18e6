"""A teacher beside a student: what is looked at inside of both, and the trainer whose loss it is."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bloomery.components.core.config import digest
from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import adapters, batches, likelihood
from bloomery.components.core.modelling.fine_tuning import rows_at_once
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.modelling.token_shards import IGNORED
from bloomery.components.distillation import losses
from bloomery.components.distillation.config import DistillationConfig
from bloomery.components.distillation.losses import Comparison

PROJECTIONS = "distillation_projections"
"""What the projections are called as a part of the student, whose optimiser trains them too."""
FILE = "projections.pt"
"""In a checkpoint: their weights."""
LAST = "last"
"""Key of the hidden states that the head reads."""
VECTORS = ("q_proj", "k_proj", "v_proj")
"""Of a layer: what makes its queries, keys and values."""
READ = ("input_ids", "attention_mask", "position_ids")
"""Of a batch: what a model reads."""


def compared(student: Any, teacher: Any, **settings: Any) -> Comparison:
    """How the logits of two models of one tokenizer are compared. Raises: ModelError if it is not known how one of them
    makes logits of hidden states."""
    import torch

    found = []
    for who, network in (("student", student), ("teacher", teacher)):
        with torch.no_grad():
            size = network.config.get_text_config().vocab_size
            head = likelihood.output_head(network.eval(), [index % size for index in range(1, 9)])
        if head is None:
            raise ModelError(
                f"distillation: it is not known how the {who} ({network.config.model_type}) makes logits of hidden "
                "states, so that they cannot be compared a tile at a time; take another architecture"
            )
        found.append(head)
    rows = min(network.get_output_embeddings().weight.shape[0] for network in (student, teacher))
    return Comparison(*found, rows, **settings)


def measured(student: Any, teacher: Any, rows: Sequence[dict[str, list[int]]], pad: int) -> dict[str, float]:
    """Of the trained tokens of `rows`: `kl` (nats a token, KL of the teacher from the student) and `agreement` (share
    of them at which both find the same token likeliest)."""
    import torch

    comparison, collate, size = compared(student, teacher), batches.collator(pad), rows_at_once(rows)
    nats, agreed, count = 0.0, 0, 0
    with torch.inference_mode():
        for start in range(0, len(rows), size):
            batch = {name: part.to(student.device) for name, part in collate(list(rows[start : start + size])).items()}
            labels_BL = batch.pop("labels")[:, 1:]
            asked_BL = labels_BL != IGNORED
            states = (
                network.base_model(**batch, use_cache=False).last_hidden_state[:, :-1][asked_BL]
                for network in (student, teacher)
            )
            divergence_N, _, agrees_N = comparison.by_token(*states, labels_BL[asked_BL])
            nats += divergence_N.double().sum().item()
            agreed += int(agrees_N.sum())
            count += len(agrees_N)
    return {"kl": nats / count, "agreement": agreed / count}


@contextlib.contextmanager
def caught(modules: Mapping[Any, Any]) -> Iterator[dict[Any, Any]]:
    """What each of `modules` gives in the forward pass of the context, by its key."""
    found: dict[Any, Any] = {}

    def keep(key: Any) -> Callable[..., None]:
        def hook(module: Any, given: Any, output: Any) -> None:
            output = getattr(output, "last_hidden_state", output)
            found[key] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [module.register_forward_hook(keep(key)) for key, module in modules.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class Lessons:
    """What a teacher says of a batch, and the projections, which a checkpoint has to hold."""

    def __init__(self, config: DistillationConfig, teacher: Any) -> None:
        self.config = config
        self.teacher = teacher.eval().requires_grad_(False)
        self.projections: Any = None

    def begin(self, model: Any, device: Any) -> None:
        """Look at the student, the `model` of a trainer, and make the projections a part of it."""
        import torch

        config = self.config
        student = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.teacher.to(device)
        own, theirs = adapters.blocks(student), adapters.blocks(self.teacher)
        settings = {"kind": config.divergence, "beta": config.beta, "temperature": config.temperature}
        self.comparison = compared(student, self.teacher, **settings)
        self.pairs = list(enumerate(losses.layer_map(len(own), len(theirs)))) if config.features else []
        self.student_modules = {LAST: student.base_model, **{index: own[index] for index, _ in self.pairs}}
        self.teacher_modules = {LAST: self.teacher.base_model, **{index: theirs[index] for _, index in self.pairs}}
        if config.attention:
            self.student_modules |= vectors("student", own[-1])
            self.teacher_modules |= vectors("teacher", theirs[-1])
        widths = [network.config.get_text_config().hidden_size for network in (student, self.teacher)]
        if config.features and widths[0] != widths[1]:
            made = [torch.nn.Linear(*widths, bias=False, device=device) for _ in self.pairs]
            model.add_module(PROJECTIONS, torch.nn.ModuleList(made))
            self.projections = getattr(model, PROJECTIONS)

    def of_batch(self, batch: dict[str, Any], inside: dict[Any, Any], asked_BL: Any, chosen_N: Any) -> dict[str, Any]:
        """By name what the tokens after the places `asked_BL` [B, L - 1] are told, [N] each: `divergence`, `nats` of
        the `chosen_N` tokens, their `agreement` and, where they are asked for, `features` and `attention`; `inside`
        are the student's states."""
        import torch

        with torch.no_grad(), caught(self.teacher_modules) as theirs:
            self.teacher.base_model(**{name: batch[name] for name in READ if name in batch}, use_cache=False)
        before = [states[LAST][:, :-1][asked_BL] for states in (inside, theirs)]
        told = dict(zip(("divergence", "nats", "agreement"), self.comparison.by_token(*before, chosen_N), strict=True))
        if self.pairs:
            apart = [
                losses.of_features(
                    inside[own][:, :-1][asked_BL],
                    theirs[their][:, :-1][asked_BL],
                    self.projections[own] if self.projections else torch.nn.Identity(),
                )
                for own, their in self.pairs
            ]
            told["features"] = torch.stack(apart).mean(0)
        if self.config.attention:
            rows = range(len(asked_BL))
            told["attention"] = torch.cat([_attention(inside, theirs, batch, asked_BL, row) for row in rows])
        return told

    def save(self, folder: Path) -> None:
        """Write the projections into a checkpoint."""
        import torch

        torch.save(self.projections.state_dict() if self.projections else {}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Take them out of one."""
        import torch

        if self.projections:
            self.projections.load_state_dict(torch.load(folder / FILE, weights_only=True))


def vectors(who: str, layer: Any) -> dict[str, Any]:
    """The modules that make queries, keys and values in a layer, by name. Raises: ModelError if it has others."""
    found = {name: module for path, module in layer.named_modules() for name in VECTORS if path.endswith(f".{name}")}
    if lacking := [name for name in VECTORS if name not in found]:
        raise ModelError(
            f"distillation.attention: the last layer of the {who} has no {', '.join(lacking)}, whose vectors are "
            "compared; set attention: 0"
        )
    return found


def _attention(inside: dict[Any, Any], theirs: dict[Any, Any], batch: dict[str, Any], asked_BL: Any, row: int) -> Any:
    """[N] of one row of the batch: the mean over queries, keys and values."""
    import torch

    sequence_L = torch.zeros_like(batch["input_ids"][row])
    if "position_ids" in batch:
        sequence_L = (batch["position_ids"][row] == 0).cumsum(0)
    asked_N = asked_BL[row].nonzero()[:, 0]
    apart = [losses.of_relations(inside[name][row], theirs[name][row], asked_N, sequence_L) for name in VECTORS]
    return torch.stack(apart).mean(0)


def taught_by(lessons: Lessons) -> Callable[[type], type]:
    """What makes of a trainer class of `batches.with_prompts` one whose loss `lessons` give, on the chats' answers or,
    in some batches, on the student's own."""
    import torch
    from trl.models import unwrap_model_for_generation

    config = lessons.config

    def make(trainer: type) -> type:
        class Taught(trainer):  # type: ignore[misc]
            def __init__(self, **given: Any) -> None:
                super().__init__(**given)
                lessons.begin(self.model, self.args.device)

            def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
                found, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
                answered = [self._perhaps_answered(batch, index) for index, batch in enumerate(found)]
                return answered, self._get_num_items_in_batch(answered, device)

            def _perhaps_answered(self, batch: dict[str, Any], index: int) -> dict[str, Any]:
                """The batch, or one of the student's own answers; which one follows from the place of the batch, so
                that a training that goes on does the same."""
                number = int(digest([config.seed, self.state.global_step, index])[:8], 16)
                if random.Random(number).random() >= config.on_policy_share:
                    return batch
                rows = unpadded(batch)
                prompts = [(at, prompt) for at, row in enumerate(rows) if (prompt := prompt_of(**row))]
                answers = self._answers([prompt for _, prompt in prompts], number) if prompts else []
                for (at, prompt), answer in zip(prompts, answers, strict=True):
                    own = answer[: config.max_length - len(prompt)]
                    rows[at] = {"input_ids": [*prompt, *own], "labels": [IGNORED] * len(prompt) + own}
                is_own_B = torch.zeros(len(rows), dtype=torch.bool)
                is_own_B[[at for at, _ in prompts]] = True
                made = {**self.data_collator(rows), "is_own": is_own_B}
                return {name: part.to(batch["labels"].device) for name, part in made.items()}

            def _answers(self, prompts: list[list[int]], number: int) -> list[list[int]]:
                room = config.max_length - min(map(len, prompts))
                recomputing = {"gradient_checkpointing_kwargs": self.args.gradient_checkpointing_kwargs}
                unwrapped = unwrap_model_for_generation(self.model_wrapped, self.accelerator, **recomputing)
                with torch.random.fork_rng(), unwrapped as model:
                    torch.manual_seed(number + self.accelerator.process_index)
                    model.eval()  # as it is served, without dropout
                    found = Generator(model, self.processing_class).continued(
                        prompts, max_new_tokens=min(config.max_new_tokens, room), temperature=1.0
                    )
                    model.train()
                return [ids for (ids,) in found]

            def compute_loss(
                self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
            ) -> Any:
                is_own_B = inputs.pop("is_own", None)
                weights_BL = (inputs["labels"][:, 1:] != IGNORED).float()  # validation asks for the answers alone
                if self.model.training:
                    _, weights_BL = self._weighted(inputs)
                asked_BL = weights_BL > 0
                read = {name: inputs[name] for name in READ if name in inputs}
                with self.accelerator.autocast(), caught(lessons.student_modules) as inside:
                    # Its layers alone work: no token is scored.
                    nothing_BL = torch.full_like(inputs["labels"], IGNORED)
                    outputs = model(**read, labels=nothing_BL, use_cache=False, fused_lm_head=True)
                    told = lessons.of_batch(read, inside, asked_BL, inputs["input_ids"][:, 1:][asked_BL])
                if is_own_B is not None:  # nobody says that its own answers are right
                    told["nats"] = told["nats"] * ~is_own_B[:, None].expand_as(asked_BL)[asked_BL]
                weights_N = weights_BL[asked_BL]
                loss = (weighed(config, told) * weights_N).sum()
                if is_own_B is not None:
                    told.pop("nats")
                self._tell(read, told, weights_N)
                if num_items_in_batch is None:
                    loss = loss / weights_N.sum()
                else:
                    loss = loss / num_items_in_batch * self.accelerator.num_processes
                return (loss, outputs) if return_outputs else loss

            def _tell(self, read: dict[str, Any], told: dict[str, Any], weights_N: Any) -> None:
                measures = self._metrics["train" if self.model.training else "eval"]
                for name, values_N in told.items():
                    measures[name].append(((values_N.detach() * weights_N).sum() / weights_N.sum()).item())
                if self.model.training:
                    self._total_train_tokens += int(read.get("attention_mask", read["input_ids"] >= 0).sum())
                    measures["num_tokens"] = [self._total_train_tokens]

        return Taught

    return make


def weighed(config: DistillationConfig, told: Mapping[str, Any]) -> Any:
    """[N]: the loss of each token, of what it is told."""
    loss_N = config.alpha * told["divergence"] + (1 - config.alpha) * told["nats"]
    for name, weight in (("features", config.features), ("attention", config.attention)):
        loss_N = loss_N + weight * told[name] if weight else loss_N
    return loss_N


def unpadded(batch: dict[str, Any]) -> list[dict[str, list[int]]]:
    """The rows that `batches.collator` made an unpacked batch of."""
    lengths = batch["attention_mask"].sum(-1).tolist()
    names = ("input_ids", "labels")
    return [{name: batch[name][at, :length].tolist() for name in names} for at, length in enumerate(lengths)]


def prompt_of(input_ids: list[int], labels: list[int]) -> list[int]:
    """What stands before the last answer of a row; nothing of a text, which is no answer."""
    is_trained = [label != IGNORED for label in labels]
    start = len(labels) - is_trained[::-1].index(True)
    while start and is_trained[start - 1]:
        start -= 1
    return input_ids[:start]
