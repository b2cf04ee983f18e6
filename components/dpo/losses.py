"""The trainers of the losses, on tokens that are ours and on log-likelihoods of the reference that are known before.

DPO and IPO are losses of TRL's DPOTrainer, KTO is its KTOTrainer. Its ORPO and SimPO are experimental trainers that
tokenise and cut for themselves and hold the logits of a whole batch, so these two terms stand here, and the DPOTrainer
gives them the log-likelihoods.

The reference is read once, before the first step and before there is an adapter: no second copy of the weights is
loaded, no step reads it again, and it is the model that training began with whatever an adapter does to the weights.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling.context import positions
from bloomery.components.core.modelling.lazy import Lazily
from bloomery.components.core.modelling.likelihood import log_likelihoods
from bloomery.components.core.modelling.preference_pairs import Pair
from bloomery.components.dpo import kept_likelihoods
from bloomery.components.dpo.config import DpoConfig

Answer = tuple[list[int], list[int]]
"""Token ids of a prompt and of an answer to it."""

Rows = Sequence[dict[str, Any]]
"""As a trainer takes them, made as they are asked for."""


def prepared(config: DpoConfig, network: Any, pairs: Sequence[Pair]) -> tuple[tuple[type, type], Rows, dict[str, Any]]:
    """((trainer, class of its arguments), rows, keyword arguments) for `config.loss` on `pairs`; `network` is the model
    as it is before training, and so the reference, whose log-likelihoods are kept for a step that is begun again.

    Raises: DataError if the loss is `kto` and there are only good answers, or only bad ones.
    """
    import trl

    shared = {"beta": config.beta, "precompute_ref_log_probs": True, "remove_unused_columns": False}
    if config.loss == "kto":
        good, bad = single(pairs)
        shared |= {"loss_type": "kto", **_weights(len(good), len(bad))}
        with arithmetic(config):
            rows = single_rows(config, network, pairs, (good, bad))
        return (on_tokens(trl.KTOTrainer), trl.KTOConfig), rows, shared
    with arithmetic(config):
        rows = pair_rows(network, pairs)
    terms = {"simpo": _simpo, "orpo": _orpo}
    term = terms[config.loss](config) if config.loss in terms else None
    losses = {} if term else {config.loss: 1.0}
    if config.sft_weight or term:  # the trainer wants a loss of its own, of whatever weight
        losses["sft"] = config.sft_weight
    shared |= {"loss_type": list(losses), "loss_weights": list(losses.values())}
    return (on_tokens(trl.DPOTrainer, term), trl.DPOConfig), rows, shared


def arithmetic(config: DpoConfig) -> Any:
    """What the trainer computes in: the reference's likelihoods are subtracted from those of the model in training."""
    import torch

    return torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available() and config.precision != "fp32")


def nats(network: Any, answers: Sequence[Answer], name: str = "") -> list[float]:
    """Log-likelihood in nats of each answer, its end included, given its prompt; with a `name` kept under it, as
    `kept_likelihoods` does."""

    def marks(at: int) -> list[bool]:
        prompt, answer = answers[at]
        return [False] * len(prompt) + [True] * len(answer)

    rows = Lazily(lambda at: [token for part in answers[at] for token in part], len(answers))
    scored = Lazily(marks, len(answers))
    if name:
        return kept_likelihoods.nats(network, rows, scored, name)
    return [total for total, _ in log_likelihoods(network, rows, scored)]


def answer(pairs: Sequence[Pair], number: int) -> Answer:
    """An answer, with its prompt, by its number: of pair n the chosen one is 2 n, the rejected one 2 n + 1."""
    pair = pairs[number // 2]
    return pair.prompt, pair.rejected if number % 2 else pair.chosen


def pair_rows(network: Any, pairs: Sequence[Pair]) -> Rows:
    """Pairs as TRL's DPOTrainer takes them."""
    found = nats(network, Lazily(lambda at: answer(pairs, at), 2 * len(pairs)), "reference")

    def row(at: int) -> dict[str, Any]:
        pair = pairs[at]
        return {
            "prompt_ids": pair.prompt,
            "chosen_ids": pair.chosen,
            "rejected_ids": pair.rejected,
            "ref_chosen_logps": found[2 * at],
            "ref_rejected_logps": found[2 * at + 1],
        }

    return Lazily(row, len(pairs))


def single_rows(
    config: DpoConfig, network: Any, pairs: Sequence[Pair], answers: tuple[Sequence[int], Sequence[int]]
) -> Rows:
    """The `single` answers of `pairs` with a label as TRL's KTOTrainer takes them, shuffled by the seed, each with the
    answer of the row before it, of which the divergence is estimated (KTO, section 4.1).

    Such an answer is cut to what of it fits behind the other prompt in `max_length` tokens, or the positions that the
    model knows.
    """
    numbers = [*answers[0], *answers[1]]
    random.Random(config.seed).shuffle(numbers)
    most = int(min(config.max_length, positions(network.config)))

    def other(at: int) -> Answer:
        prompt, _ = answer(pairs, numbers[at])
        _, before = answer(pairs, numbers[at - 1])
        return prompt, before[: most - len(prompt)]

    others = Lazily(other, len(numbers))
    own_nats = nats(network, Lazily(lambda at: answer(pairs, numbers[at]), len(numbers)), "reference")
    other_nats = nats(network, others, "reference_of_others")

    def row(at: int) -> dict[str, Any]:
        prompt, own = answer(pairs, numbers[at])
        return {
            "prompt_ids": prompt,
            "completion_ids": own,
            "label": numbers[at] % 2 == 0,
            "KL_completion_ids": others[at][1],
            "ref_logps": own_nats[at],
            "ref_KL_logps": other_nats[at],
        }

    return Lazily(row, len(numbers))


def single(pairs: Sequence[Pair]) -> tuple[list[int], list[int]]:
    """The numbers, as `answer` has them, of the chosen answers and of the rejected ones that are there."""
    are_there = [(bool(pair.chosen), bool(pair.rejected)) for pair in pairs]
    good, bad = ([2 * at + side for at, there in enumerate(are_there) if there[side]] for side in (0, 1))
    return good, bad


def _weights(good: int, bad: int) -> dict[str, float]:
    """Weights of so many good and bad answers with which both sides weigh the same: arXiv 2402.01306, equation 8."""
    if not good or not bad:
        raise DataError(
            f"dpo: loss: kto found {good} good and {bad} bad answers to train on, and learns from what tells them "
            "apart; give it both (of good answers alone, sft learns)"
        )
    return {"desirable_weight": min(1.0, bad / good), "undesirable_weight": min(1.0, good / bad)}


Term = Callable[[Any, Any], Any]
"""The loss of each pair of a batch [B], from the log-likelihoods a token of its chosen and its rejected answers [B]."""


def _simpo(config: DpoConfig) -> Term:
    """-log sigmoid(beta (chosen - rejected) - gamma): arXiv 2405.14734, equation 6."""
    from torch.nn.functional import logsigmoid

    return lambda chosen_B, rejected_B: -logsigmoid(config.beta * (chosen_B - rejected_B) - config.gamma)


def _orpo(config: DpoConfig) -> Term:
    """-beta log sigmoid(log odds(chosen) - log odds(rejected)): arXiv 2403.07691, equations 4 and 7, where the
    probability of an answer is that of its tokens in the geometric mean."""
    import torch

    def log_odds(nats_B: Any) -> Any:
        nats_B = nats_B.clamp(max=-1e-6)  # of a certain answer the odds are infinite
        return nats_B - torch.log(-torch.expm1(nats_B))

    def term(chosen_B: Any, rejected_B: Any) -> Any:
        return -config.beta * torch.nn.functional.logsigmoid(log_odds(chosen_B) - log_odds(rejected_B))

    return term


def on_tokens(trainer: type, term: Term | None = None) -> type:
    """The `trainer` of TRL for rows that are tokens already, so that training sees those of every other step, and hold
    the reference's log-likelihoods; `term` is added to its loss. Of pairs, the loss of an optimiser step is the mean
    over all of them, and that on chosen answers over all their tokens, in however many passes and processes they come.

    It logs two measures more, of the batch: reference_kl (nats an answer, see `measures.divergence`) and chosen_change
    (mean change of the log-likelihood of a chosen answer, in nats a token).
    """
    import torch
    import trl

    is_of_pairs = issubclass(trainer, trl.DPOTrainer)

    class OnTokens(trainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def get_batch_samples(self, *given: Any) -> Any:
            passes, count = super().get_batch_samples(*given)
            if passes and is_of_pairs:
                held_P2 = torch.stack([self._held(inputs) for inputs in passes])
                self.mean_2 = self.accelerator.gather(held_P2).mean(0)
            return passes, count

        def _held(self, inputs: dict[str, Any]) -> Any:
            """The pairs of a forward pass, and the tokens of their chosen answers."""
            mask_BL = inputs["completion_mask"][:, 1:].chunk(2)[0]
            return torch.tensor([len(mask_BL), mask_BL.sum()], dtype=torch.float32, device=self.accelerator.device)

        def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
            passes = []

            def remembered(**named: Any) -> Any:
                passes.append(model(**named))
                return passes[-1]

            mask_NL = inputs["completion_mask"][:, 1:]
            if is_of_pairs:
                # The trainer takes the mean of the passes of all processes, whatever each of them holds.
                pairs, tokens = (self._held(inputs) / self.mean_2).tolist()
                weights = zip(self.loss_types, self.args.loss_weights, strict=True)
                self.loss_weights = [weight * (tokens if kind == "sft" else pairs) for kind, weight in weights]
            loss = super()._compute_loss(remembered, inputs, False)
            # The last pass is that of the answers themselves; virtual tokens of an adapter stand before the real ones.
            lengths_N = mask_NL.sum(1)
            nats_N = passes[-1].log_probs[:, -mask_NL.shape[1] :].sum(1) / lengths_N
            if "label" in inputs:
                reference_N, is_chosen_N = inputs["ref_logps"], inputs["label"]
            else:
                reference_N = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
                is_chosen_N = torch.arange(len(reference_N), device=reference_N.device) < len(reference_N) // 2
            change_N = nats_N.detach() - reference_N / lengths_N
            kl_N = lengths_N * (torch.expm1(-change_N.abs()) + change_N.abs())
            sums = [kl_N.sum(), len(kl_N), (change_N * is_chosen_N).sum(), is_chosen_N.sum()]
            sums_K4 = self.accelerator.gather(torch.stack([torch.as_tensor(one).to(kl_N) for one in sums])[None])
            kl, count, change, num_chosen = sums_K4.sum(0).tolist()
            self._metrics["train"]["reference_kl"].append(kl / count)
            if num_chosen:
                self._metrics["train"]["chosen_change"].append(change / num_chosen)
            if term:
                loss = loss + pairs * term(*nats_N.chunk(2)).mean()
            return loss

    return OnTokens
