"""A training whose weights, gradients and optimiser states lie in parts in the processes that share it: FSDP2, by
torch's `fully_shard` (the method: ZeRO stage 3, arXiv 1910.02054; PyTorch FSDP, 2304.11277).

A process holds its part of each weight, and of what belongs to it, all the time; the whole of a block's weights only
while the block computes. The parts are made here, on CPUs as on GPUs, and not by accelerate, which on CPUs takes a wish
for FSDP and trains with whole weights.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bloomery.components.core import processes
from bloomery.components.core.modelling import adapters
from bloomery.components.core.modelling.adapters import AdapterConfig

OPTIMISERS = ("adamw", "radam")
"""Those that treat each number of a weight alone, and so a part of it as the whole: Muon makes whole matrices
orthogonal, Adafactor keeps means of rows and columns, those of bitsandbytes know no parts."""
ADAPTERS = ("lora", "rslora")
"""Those that have been tried."""
PARTS = "parts"
"""In a checkpoint: the folder with a file of each process."""
ARGUMENTS = {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}
"""Of the trainer: gradients are summed over the processes after each forward pass, and not first collected whole."""


def problem(optimizer: str, adapter: AdapterConfig | None) -> str:
    """Which of the two does not go with weights in parts, and what would; empty if both do."""
    if optimizer not in OPTIMISERS:
        return f"optimizer: found {optimizer}, expected {' or '.join(OPTIMISERS)}"
    if adapter and adapter.kind not in ADAPTERS:
        return f"adapter.kind: found {adapter.kind}, expected {' or '.join(ADAPTERS)}, or no adapter"
    return ""


def shared_out(trainer: type) -> type:
    """The `trainer` class, each of whose processes holds a part of the model; `make_whole` puts it together."""
    import torch
    from torch.distributed import checkpoint as parts
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.tensor import DTensor

    class SharedOut(trainer):  # type: ignore[misc]
        model: Any

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.whole = _in_parts(self.model, in_16_bits=self.args.bf16)
            # The trainer then puts nothing around it that would hold it whole.
            self.is_distributed_loading_by_transformers = True

        def _move_model_to_device(self, *_: Any) -> None:
            """Nothing: what one device cannot hold goes there in parts."""

        def _clip_grad_norm(self, model: Any) -> Any:
            norm = super()._clip_grad_norm(model)
            return norm.full_tensor() if isinstance(norm, DTensor) else norm

        def _states(self) -> dict[str, Any]:
            """This process's part of what training changes."""
            weights = {name: own.detach() for name, own in self.model.named_parameters() if own.requires_grad}
            return {"weights": weights, "optimiser": get_optimizer_state_dict(self.model, self._plain_optimizer())}

        def _plain_optimizer(self) -> Any:
            return getattr(self.optimizer, "optimizer", self.optimizer)

        def save_model(self, *_: Any, **__: Any) -> None:
            """Nothing: a checkpoint has the weights in parts, and what is trained is written when it is whole."""

        def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
            parts.save(self._states(), checkpoint_id=Path(output_dir) / PARTS)
            if self.args.should_save:
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

        def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
            """Nothing: the weights come with the optimiser's states, when there is one to take them."""

        def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
            if checkpoint is None:
                return
            states = self._states()
            parts.load(states, checkpoint_id=Path(checkpoint) / PARTS)  # into the weights themselves
            set_optimizer_state_dict(self.model, self._plain_optimizer(), states["optimiser"])
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))

        def make_whole(self) -> None:
            """Let the first process hold the model with all its weights, in the host's memory."""
            found = dict(self.whole.named_parameters())
            for name, own in self.model.named_parameters():
                gathered = own.detach().full_tensor()
                if not processes.rank():
                    found[name].data = gathered.cpu()
            self.model = self.whole

    return SharedOut


def _in_parts(model: Any, *, in_16_bits: bool) -> Any:
    """Leave each process a part of the weights of `model`, in the memory of its device; returns a model of the same
    modules, which stays as it is, with weights that are empty until they are given back.

    `in_16_bits` computes in bfloat16, to which the parts are rounded on their way. By autocast each process would keep
    all weights in 16 bits from the forward to the backward pass.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import DTensor

    whole = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    for module in whole.modules():
        vars(module).pop("forward", None)  # the one that TRL gives it belongs to the training
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (processes.count(),))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if in_16_bits else MixedPrecisionPolicy()
    for part in (*adapters.blocks(model), model):
        weights = [weight for weight in part.parameters() if not isinstance(weight, DTensor)]
        fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        for weight in weights:
            weight.data = torch.empty(0, dtype=weight.dtype)
    if hasattr(model, "generate"):
        register_fsdp_forward_method(model, "generate")
    return whole


@contextlib.contextmanager
def unsharded(model: Any) -> Iterator[None]:
    """While it lasts each process holds all weights of `model`, in the dtype that it computes in, and passes over them
    as often as it likes, whatever the others do; of a model that is not shared out, nothing changes."""
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def own_part(weight: Any) -> Any:
    """What this process holds of `weight`, which is all of it where nothing is shared out; changed in place, it is the
    weight that changes."""
    return weight.detach().to_local() if hasattr(weight, "to_local") else weight.detach()
