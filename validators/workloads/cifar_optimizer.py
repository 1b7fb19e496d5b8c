"""How the network learns: the recipe, its rates over the steps, and one update of all weights.

Filters: Muon (K. Jordan and others, 2024, https://kellerjordan.github.io/posts/muon/): momentum made orthogonal by
three Newton-Schulz steps, each filter held at one norm; or Nesterov's momentum. Everything else: Nesterov's momentum,
with much higher rates for biases (arXiv:2404.00498). Lookahead (M. Zhang and others, 2019) where the recipe says so.
All filters are updated as one batch of padded matrices: zeros stay zeros, so nothing changes but the kernels' number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List, Tuple

import torch
from torch import Tensor

from validators.workloads.cifar_net import WHITENED, Network

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic: singular values go to 0.7 .. 1.2 in a few steps (the Muon post above)."""
ORTHOGONAL_STEPS = 3
LOOK_AHEAD_EVERY = 5


@dataclass(frozen=True)
class Recipe:
    """All that decides what is learnt. Rates are for a loss summed over the batch; `decay` is their product with it.

    Ten epochs: 94.26 % on average of ten runs on an H200 (standard deviation 0.0008), in 1.70 s; of three runs each,
    nine 94.21 % in 1.54 s, eight 93.90 % in 1.37 s (2026-11-21). Other batches, rates and widths were no better there.
    """

    epochs: float = 10.0
    batch: int = 2000
    muon: bool = True
    widths: Tuple[int, ...] = (64, 256, 256)
    filter_rate: float = 0.24
    bias_rate: float = 0.053
    head_rate: float = 0.67
    decay: float = 0.004
    filter_momentum: float = 0.6
    momentum: float = 0.85
    score_scale: float = 1 / 256
    smoothing: float = 0.2
    whitening_epochs: float = 3.0
    start: float = 1.0
    peak_at: float = 0.0
    end: float = 0.0
    look_ahead: bool = False

    def steps(self, per_epoch: int) -> int:
        """Steps of the whole training."""
        return math.ceil(self.epochs * per_epoch)

    def rates(self, per_epoch: int) -> Tensor:
        """Shares of the rates for each step (steps, 2): of the whitening's bias, of everything else."""
        steps = self.steps(per_epoch)
        bias_steps = max(1, min(steps, math.ceil(self.whitening_epochs * per_epoch)))
        peak = self.peak_at * steps
        rows: List[Tuple[float, float]] = []
        for step in range(steps):
            rising = self.start + (1 - self.start) * step / peak if step < peak else 1.0
            share = rising if step < peak else 1 - (1 - self.end) * (step - peak) / (steps - peak)
            rows.append((max(0.0, 1 - step / bias_steps) if self.muon else share * (step < bias_steps), share))
        return torch.tensor(rows)


MUON = Recipe()
_SGD_RATE = 11.5 / (1024 * (1 + 1 / (1 - 0.85)))
SGD = Recipe(
    epochs=9.9, batch=1024, muon=False, filter_rate=_SGD_RATE, bias_rate=64 * _SGD_RATE, head_rate=_SGD_RATE,
    decay=0.0153 * 1024 / (1024 * (1 + 1 / (1 - 0.85))), filter_momentum=0.85, score_scale=1 / 9,
    start=0.2, peak_at=0.23, end=0.07, look_ahead=True,
)  # fmt: skip
"""The paper's own rates; MUON is the faster one."""


class Optimizer:
    """One update of a network from `gradient`, whose parts are `filter_gradient` and `vector_gradient`.

    `row` holds the shares of the rates for the step at hand, so that a recorded update reads the new ones.
    """

    def __init__(self, network: Network, recipe: Recipe) -> None:
        self.network, self.recipe = network, recipe
        filters, vector, device = network.filters, network.vector, network.device
        self.gradient = torch.zeros(filters.numel() + vector.numel(), device=device)
        self.filter_gradient = self.gradient[: filters.numel()].view_as(filters)
        self.vector_gradient = self.gradient[filters.numel() :]
        self._filter_momentum, self._vector_momentum = torch.zeros_like(filters), torch.zeros_like(vector)
        self.row = torch.zeros(2, device=device)
        sizes = [WHITENED, sum(out for out, _ in network.shapes)]
        head = vector.numel() - sum(sizes)
        bias, rate = recipe.bias_rate, recipe.head_rate
        self._rates = torch.tensor([bias] * sum(sizes) + [rate] * head, device=device)
        self._decay = recipe.decay / self._rates
        self._which = torch.tensor([0] * sizes[0] + [1] * (sizes[1] + head), device=device)
        self._norm = torch.tensor([out**0.5 for out, _ in network.shapes], device=device).view(-1, 1, 1)
        self._slow = [torch.zeros_like(one) for one in self._fast()]

    def _fast(self) -> List[Tensor]:
        return [self.network.filters, self.network.vector, self.network.statistics]

    @torch.no_grad()
    def reset(self) -> None:
        """Forget the momenta; Lookahead begins at the network's present weights."""
        self._filter_momentum.zero_()
        self._vector_momentum.zero_()
        for slow, fast in zip(self._slow, self._fast()):  # noqa: B905 - strict is 3.10+, the host may have 3.9
            slow.copy_(fast)

    @torch.no_grad()
    def update(self) -> None:
        """Learn from `gradient`. No host sync: it can be recorded in a CUDA graph."""
        recipe, network = self.recipe, self.network
        gradient = torch.addcmul(self.vector_gradient, network.vector, self._decay)
        step = _nesterov(gradient, self._vector_momentum, recipe.momentum)
        network.vector.sub_(step.mul_(self._rates).mul_(self.row.index_select(0, self._which)))
        filters, share = network.filters, self.row[1]
        if recipe.muon:
            step = _nesterov(self.filter_gradient, self._filter_momentum, recipe.filter_momentum)
            filters.mul_(self._norm / torch.linalg.vector_norm(filters, dim=(1, 2), keepdim=True))
            step = orthogonal(step, network.dtype).float()
        else:
            gradient = self.filter_gradient.add(filters, alpha=recipe.decay / recipe.filter_rate)
            step = _nesterov(gradient, self._filter_momentum, recipe.filter_momentum)
        filters.sub_(step.mul_(share * recipe.filter_rate))
        network.publish()

    @torch.no_grad()
    def look_ahead(self, share: float) -> None:
        """Move the slow weights towards the present ones, `share` of the old kept, and go on from there."""
        for slow, fast in zip(self._slow, self._fast()):  # noqa: B905 - strict is 3.10+, the host may have 3.9
            slow.lerp_(fast, 1 - share)
            fast.copy_(slow)
        self.network.publish()


def _nesterov(gradient: Tensor, buffer: Tensor, momentum: float) -> Tensor:
    buffer.mul_(momentum).add_(gradient)
    return torch.add(gradient, buffer, alpha=momentum)


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices (k, rows <= columns), each nearly its closest orthogonal one, in `dtype`."""
    a, b, c = NEWTON_SCHULZ
    found: Tensor = (matrices / (torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(ORTHOGONAL_STEPS):
        square = torch.bmm(found, found.transpose(1, 2))
        found = torch.baddbmm(found, torch.baddbmm(square, square, square, beta=b, alpha=c), found, beta=a)
    return found
