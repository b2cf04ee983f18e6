"""How much the layers, heads, channels and weights of Llama's kin matter, by the weights or by what chats make of them.

Rows are those of `calibration.calibration_rows`: (token ids, which of them the assistant said).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import tensor_files
from bloomery.components.core.modelling.surgery import COLUMNS, LAYER, ROWS, Kept, Widths

if TYPE_CHECKING:
    import torch

Rows = Sequence[tuple[list[int], list[bool]]]
Observed = Literal["activation", "taylor"]
By = Literal["magnitude"] | Observed


class Importance(NamedTuple):
    """Larger matters more. Only numbers of one layer and kind can be compared, and those of `layers`."""

    groups_LG: torch.Tensor
    channels_LC: torch.Tensor
    layers_L: torch.Tensor | None
    """None where nothing was observed."""

    def kept(self, layers: Sequence[int], groups: int, channels: int) -> Kept:
        """The sub-network of `layers` with the most important groups and channels of each."""
        return Kept(
            layers, _highest(self.groups_LG[list(layers)], groups), _highest(self.channels_LC[list(layers)], channels)
        )

    def best_layers(self, count: int) -> list[int]:
        """The `count` most important layers, in their order."""
        assert self.layers_L is not None
        return _highest(self.layers_L[None], count)[0]


def _highest(numbers_LN: torch.Tensor, count: int) -> list[list[int]]:
    """The places of the `count` largest numbers of each row, in their order; of equal ones the first."""
    order_LN = numbers_LN.argsort(dim=1, descending=True, stable=True)
    return order_LN[:, :count].sort(dim=1).values.tolist()


def of_weights(path: Path, whole: Widths) -> Importance:
    """The L2 norm of all weights that go with a group or a channel, read a tensor at a time (the magnitude baseline of
    structured pruning: LLM-Pruner, arXiv 2305.11627, section 3.2)."""
    import torch

    squares = {"groups": torch.zeros(whole.layers, whole.groups), "channels": torch.zeros(whole.layers, whole.channels)}
    for name, stored in tensor_files.stored(path).items():
        found = LAYER.fullmatch(name)
        *_, part, kind = name.split(".")
        if found is None or not (part in ROWS or (part in COLUMNS and kind == "weight")):
            continue
        weights = stored.read().float().view(stored.shape).square()
        if weights.dim() == 2:
            weights = weights.sum(1 if part in ROWS else 0)
        of = "channels" if (ROWS | COLUMNS)[part] == "channels" else "groups"
        squares[of][int(found[2])] += weights.view(squares[of].shape[1], -1).sum(1)
    return Importance(squares["groups"].sqrt(), squares["channels"].sqrt(), None)


def of_rows(network: Any, whole: Widths, rows: Rows, by: Observed) -> Importance:
    """What `rows` make of each part of the loaded model.

    Layers, always: 1 minus the mean cosine of a token's state before and after the layer (block influence: ShortGPT,
    arXiv 2403.03853, equation 1). Groups and channels by `activation`: the L2 norm, over all tokens, of what each adds
    to the residual stream (the activations of Minitron, 2407.14679, section 2.2, times the weights that read them, as
    Wanda has it, 2306.11695, so that a scale moved from one to the other changes nothing); by `taylor`: the mean over
    rows of |Σ activation x gradient of the loss on the assistant's tokens|, how much the loss would change to first
    order without it (1611.06440, equation 6; for heads 1905.10650, equation 2).
    """
    import torch

    device = network.device
    of_groups, of_channels = (torch.zeros(whole.layers, n, device=device) for n in (whole.groups, whole.channels))
    cosines = torch.zeros(whole.layers, device=device, dtype=torch.float64)
    tokens = 0

    with contextlib.ExitStack() as hooks:
        for number, layer in enumerate(network.base_model.layers):
            attention, gated = (_slopes, _slopes) if by == "taylor" else (_added, _squares)
            hooks.callback(layer.self_attn.o_proj.register_forward_pre_hook(attention(of_groups[number])).remove)
            hooks.callback(layer.mlp.down_proj.register_forward_pre_hook(gated(of_channels[number])).remove)
            hooks.callback(layer.register_forward_hook(_cosines(cosines[number])).remove)
        for ids, said in rows:
            tokens += _read(network, ids, said if by == "taylor" else None)
    if not tokens:
        raise DataError("none of the calibration chats has a token that the assistant said; expected one or more")
    if by == "activation":
        # The norm of what a channel adds, a state times a column, is the product of their norms.
        for number, layer in enumerate(network.base_model.layers):
            of_channels[number] *= layer.mlp.down_proj.weight.detach().float().square().sum(0)
        of_groups, of_channels = of_groups.sqrt(), of_channels.sqrt()
    else:
        of_groups, of_channels = of_groups / len(rows), of_channels / len(rows)
    return Importance(of_groups.cpu(), of_channels.cpu(), (1 - cosines / tokens).cpu())


def _added(found_G: torch.Tensor) -> Callable[..., None]:
    """A hook that adds to `found_G` the squares of what each group's numbers add to the output of a projection."""
    import torch

    def before(module: Any, given: tuple[Any, ...]) -> None:
        states_TN, weight_DN = given[0].flatten(0, -2), module.weight
        parts = (part.unflatten(-1, (len(found_G), -1)).unbind(1) for part in (states_TN, weight_DN))
        found_G.add_(torch.stack([(a.float() @ b.float().T).square().sum() for a, b in zip(*parts, strict=True)]))

    return before


def _squares(found_N: torch.Tensor) -> Callable[..., None]:
    """A hook that adds to `found_N` the squares of what a projection reads."""

    def before(module: Any, given: tuple[Any, ...]) -> None:
        found_N.add_(given[0].flatten(0, -2).float().square().sum(0))

    return before


def _slopes(found_G: torch.Tensor) -> Callable[..., None]:
    """A hook that adds to `found_G`, for each of as many parts of what a projection reads, |Σ number x gradient|."""

    def before(module: Any, given: tuple[Any, ...]) -> None:
        states_TN = given[0].detach().flatten(0, -2).float()

        def gradient(slope_BTN: torch.Tensor) -> None:
            products_N = (states_TN * slope_BTN.flatten(0, -2).float()).sum(0)
            found_G.add_(products_N.view(len(found_G), -1).sum(1).abs())

        given[0].register_hook(gradient)

    return before


def _cosines(found: torch.Tensor) -> Callable[..., None]:
    """A hook that adds to `found` the cosine of each token's state before and after a layer."""
    import torch

    def after(module: Any, given: tuple[Any, ...], result: Any) -> None:
        left = result[0] if isinstance(result, tuple) else result
        before, behind = (part.detach().flatten(0, -2).float() for part in (given[0], left))
        found.add_(torch.nn.functional.cosine_similarity(before, behind, dim=-1).sum().double())

    return after


def input_norms(network: Any, rows: Rows) -> dict[str, torch.Tensor]:
    """The L2 norm, over the tokens of `rows`, of each input of every projection of the layers, by its name (‖X_j‖ of
    Wanda, arXiv 2306.11695, equation 1)."""
    import torch

    squares: dict[str, torch.Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for name, module in network.named_modules():
            if name.rpartition(".")[2] in ROWS | COLUMNS:
                squares[name] = torch.zeros(module.weight.shape[1], device=network.device)
                hooks.callback(module.register_forward_pre_hook(_squares(squares[name])).remove)
        for ids, _ in rows:
            _read(network, ids, None)
    return {name: found.sqrt().cpu() for name, found in squares.items()}


def _read(network: Any, ids: list[int], said: list[bool] | None) -> int:
    """Let the model read a row, with `said` also backwards from the loss on those tokens; returns the tokens read."""
    import torch

    if said is None:
        with torch.inference_mode():
            network.base_model(input_ids=torch.tensor([ids], device=network.device), use_cache=False)
        return len(ids)
    labels = [token if is_said else -100 for token, is_said in zip(ids, said, strict=True)]
    if all(label == -100 for label in labels[1:]):
        return 0
    with _gradients_of_states_alone(network):
        given = torch.tensor([ids], device=network.device)
        network(input_ids=given, labels=torch.tensor([labels], device=network.device), use_cache=False).loss.backward()
    return len(ids)


@contextlib.contextmanager
def _gradients_of_states_alone(network: Any) -> Iterator[None]:
    """Gradients flow through the model from its embeddings on, and no weight gets one."""
    network.requires_grad_(False)
    hook = network.get_input_embeddings().register_forward_hook(lambda module, given, out: out.requires_grad_())
    try:
        yield
    finally:
        hook.remove()
