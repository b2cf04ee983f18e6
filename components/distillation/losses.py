"""What a student is told token by token: divergences of logits, of hidden states and of attention relations.

Logits of a vocabulary V are made a tile of tokens at a time, in the backward pass again, so that [N, V] of neither
model, nor a gradient of it, ever stands in memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from bloomery.components.core.modelling.training import LOSS_TILE_BYTES

LEAST_WIDTH = 16
"""Numbers of a relation head, at least: those of MiniLMv2, which has 48 heads where the width is 768 (2012.15828)."""

Kind = Literal["forward_kl", "reverse_kl", "jsd"]
Head = Callable[[Any], Any]


def divergence(student_NV: Any, teacher_NV: Any, kind: Kind, beta: float = 0.5) -> Any:
    """[N], in nats: how far the distribution of the student's logits is from that of the teacher's."""
    import torch

    q_NV, p_NV = student_NV.log_softmax(-1), teacher_NV.log_softmax(-1)

    def kl(from_NV: Any, to_NV: Any) -> Any:
        return (from_NV.exp() * (from_NV - to_NV)).sum(-1)

    if kind == "forward_kl":
        return kl(p_NV, q_NV)
    if kind == "reverse_kl":
        return kl(q_NV, p_NV)
    m_NV = torch.logaddexp(p_NV + math.log(beta), q_NV + math.log(1 - beta))
    return beta * kl(p_NV, m_NV) + (1 - beta) * kl(q_NV, m_NV)


class Comparison(NamedTuple):
    """How the logits of two models are compared."""

    student: Head
    """What makes logits of hidden states."""
    teacher: Head
    vocabulary: int
    """Tokens that both have: rows of embeddings beyond it are of none."""
    kind: Kind = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0

    def by_token(self, student_NH: Any, teacher_NH: Any, chosen_N: Any) -> tuple[Any, Any, Any]:
        """([N] divergence times temperature², [N] nats of the chosen tokens under the student, [N] whether both models
        find the same token likeliest) of the hidden states before N tokens."""
        import torch

        parts = (part.split(self.rows) for part in (student_NH, teacher_NH, chosen_N))
        tiles = [_again(self._tile, *tile) for tile in zip(*parts, strict=True)]
        divergence_N, nats_N, agrees_N = (torch.cat(part) for part in zip(*tiles, strict=True))
        return divergence_N, nats_N, agrees_N

    @property
    def rows(self) -> int:
        """Tokens of a tile."""
        return max(1, LOSS_TILE_BYTES // (4 * self.vocabulary))

    def _tile(self, student_TH: Any, teacher_TH: Any, chosen_T: Any) -> tuple[Any, Any, Any]:
        import torch

        student_TV = self.student(student_TH)[:, : self.vocabulary].float()
        with torch.no_grad():
            teacher_TV = self.teacher(teacher_TH)[:, : self.vocabulary].float()
        heat = self.temperature
        divergence_T = heat**2 * divergence(student_TV / heat, teacher_TV / heat, self.kind, self.beta)
        nats_T = student_TV.logsumexp(-1) - student_TV.gather(-1, chosen_T[:, None])[:, 0]
        return divergence_T, nats_T, student_TV.argmax(-1) == teacher_TV.argmax(-1)


def _again(function: Callable[..., Any], *given: Any) -> Any:
    """What `function` makes of `given`, without what its backward pass needs: that is computed again for it."""
    import torch
    from torch.utils.checkpoint import checkpoint

    if not torch.is_grad_enabled():
        return function(*given)
    return checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)


def layer_map(student: int, teacher: int) -> list[int]:
    """By layer of the student, from 0, the layer of the teacher that it is compared with: evenly spaced, the last with
    the last (TinyBERT, arXiv 1909.10351, section 4.1)."""
    return [max(1, round((layer + 1) * teacher / student)) - 1 for layer in range(student)]


def of_features(student_NH: Any, teacher_NH: Any, projection: Head) -> Any:
    """[N]: 1 - the cosine between the projected hidden states of the student and those of the teacher."""
    return _again(functools.partial(_apart, projection), student_NH, teacher_NH)


def _apart(projection: Head, student_NH: Any, teacher_NH: Any) -> Any:
    from torch.nn.functional import cosine_similarity

    return 1 - cosine_similarity(projection(student_NH.float()).float(), teacher_NH.float(), dim=-1)


def relation_heads(widths: list[int]) -> int:
    """Into how many heads queries, keys or values of these widths, of two models, are cut: as many as divide both and
    leave LEAST_WIDTH numbers in each, if one can."""
    shared = math.gcd(*widths)
    return max(heads for heads in range(1, shared + 1) if shared % heads == 0 and (heads == 1 or _wide(widths, heads)))


def _wide(widths: list[int], heads: int) -> bool:
    return min(widths) // heads >= LEAST_WIDTH


def of_relations(student_LD: Any, teacher_LE: Any, asked_N: Any, sequence_L: Any) -> Any:
    """[N]: KL of the relations of the tokens at the places `asked_N` of a row with those up to them, of the teacher's
    vectors (queries, keys or values) from the student's, mean over the relation heads.

    `sequence_L` numbers the sequences of a packed row, which do not see one another. What stands in memory at once are
    relations of LOSS_TILE_BYTES."""
    import torch

    heads = relation_heads([student_LD.shape[-1], teacher_LE.shape[-1]])
    length = len(sequence_L)
    block = functools.partial(_relations, student_LD, teacher_LE, heads, sequence_L)
    rows = max(1, LOSS_TILE_BYTES // (4 * heads * length))
    return torch.cat([_again(block, asked) for asked in asked_N.split(rows)])


def _relations(student_LD: Any, teacher_LE: Any, heads: int, sequence_L: Any, asked_N: Any) -> Any:
    import torch

    places_L = torch.arange(len(sequence_L), device=asked_N.device)
    seen_NL = (places_L <= asked_N[:, None]) & (sequence_L == sequence_L[asked_N][:, None])

    def log_relations(vectors_LD: Any) -> Any:
        cut_RLd = vectors_LD.float().unflatten(-1, (heads, -1)).transpose(0, 1)
        products_RNL = cut_RLd[:, asked_N] @ cut_RLd.mT / math.sqrt(cut_RLd.shape[-1])
        return products_RNL.masked_fill(~seen_NL, -1e9).log_softmax(-1)  # of -inf the gradient is none

    q_RNL, p_RNL = log_relations(student_LD), log_relations(teacher_LE.detach())
    return (p_RNL.exp() * (p_RNL - q_RNL)).sum(-1).mean(0)
