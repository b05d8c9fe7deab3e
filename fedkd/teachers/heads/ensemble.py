"""The head of an ensemble: the weighted mean of the members' log-probabilities. The weights can be fitted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.teachers.heads.clients import HeadClients
from fedkd.teachers.heads.head import FederatedHead, FittedHead
from fedkd.teachers.teacher import Teacher


class EnsembleHead(nn.Module):
    """Features (B, D_1 + ... + D_M) -> logits (B, K) = sum_m w_m log softmax(head_m(x_m)).

    It is the logarithmic pool of the members' distributions (Genest & Zidek 1986). At any temperature, its softmax
    equals the softmax of the members' weighted mean logits. But logits may contain a constant that a member adds to all
    classes, such as SigLIP's bias, which would change a loss on logits. Log-probabilities do not contain it.

    Args:
        heads: One for each member, features (B, D_m) -> logits (B, K).
        widths: D_1 ... D_M.
        weights: w, (M,), which sum to one.
    """

    weights: Tensor

    def __init__(self, heads: Sequence[nn.Module], widths: Sequence[int], weights: Tensor) -> None:
        super().__init__()
        self.heads, self.widths = nn.ModuleList(heads), tuple(widths)
        self.register_buffer("weights", weights.float())

    def opinions(self, features: Tensor) -> Tensor:
        """Return each member's log-probabilities: (B, D_1 + ... + D_M) -> (M, B, K)."""
        parts = features.split(self.widths, dim=1)
        return torch.stack([head(part).float().log_softmax(1) for head, part in zip(self.heads, parts, strict=True)])

    def forward(self, features: Tensor) -> Tensor:
        """(B, D_1 + ... + D_M) -> (B, K)."""
        return torch.einsum("m,mbk->bk", self.weights, self.opinions(features))


class MembersHeads(FederatedHead):
    """Fits the head of each member without a head, on the member's own features.

    Args:
        members: The teachers.
        widths: The number of features of each.
        weights: (M,), which sum to one.
    """

    def __init__(self, members: Sequence[Teacher], widths: Sequence[int], weights: Tensor) -> None:
        self.members, self.widths, self.weights = members, widths, weights

    def fit(self, clients: HeadClients) -> FittedHead:
        """Fit the heads: see `FederatedHead.fit`."""
        heads, fits, stops = [], [], np.cumsum(self.widths).tolist()
        for member, width, stop in zip(self.members, self.widths, stops, strict=True):
            given = head_of(member)
            if given is None:
                fits.append(member.head_method.fit(clients.part(stop - width, stop)))
                given = fits[-1].module
            heads.append(given)
        return FittedHead(
            EnsembleHead(heads, self.widths, self.weights),
            sends="; and ".join(dict.fromkeys(fit.sends for fit in fits)),
            chosen={f"{name}_{i}": value for i, fit in enumerate(fits) for name, value in fit.chosen.items()},
        )


def fitted_weights(opinions: Tensor, targets: Tensor, steps: int = 2000) -> Tensor:
    """Return the weights on the simplex with the least cross-entropy, (M,) float64.

    The problem is convex. It is solved by exponentiated gradients (Kivinen & Warmuth 1997). Their steps keep the
    weights positive, with sum one.

    Args:
        opinions: The members' log-probabilities, (M, P, K).
        targets: (P,) labels.
        steps: The maximum number of steps.
    """
    opinions = opinions.double()
    right = opinions.gather(2, targets.expand(len(opinions), -1)[..., None])[..., 0]  # (M, P)
    excess = opinions - right[..., None]  # (M, P, K), so that the loss is logsumexp(w . excess)
    weights = torch.full((len(opinions),), 1 / len(opinions), dtype=torch.float64)
    loss, rate = _pool_loss(excess, weights), 1.0
    for _ in range(steps):
        pooled = torch.einsum("m,mpk->pk", weights, excess)
        gradient = torch.einsum("mpk,pk->m", excess, pooled.softmax(1)) / len(targets)
        proposed = (weights.log() - rate * gradient).softmax(0).clamp(min=1e-12)
        proposed /= proposed.sum()
        now = _pool_loss(excess, proposed)
        if now > loss:
            rate /= 2
            if rate < 1e-6:
                break
            continue
        done = (proposed - weights).abs().max() < 1e-7
        weights, loss, rate = proposed, now, rate * 1.5
        if done:
            break
    return weights


def head_of(member: Teacher) -> nn.Module | None:
    """Return the module that maps a member's outputs to logits, or None if the member needs a fitted head."""
    if member.overrides_forward:
        return nn.Identity()
    return None if member.head_is_fitted else member.head


def _pool_loss(excess: Tensor, weights: Tensor) -> float:
    return float(torch.einsum("m,mpk->pk", weights, excess).logsumexp(1).mean())
