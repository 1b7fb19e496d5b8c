"""The network that learns CIFAR-10, its memory laid out for few kernels.

The design is that of K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024, arXiv:2404.00498): a frozen
2 x 2 convolution that whitens the patches of the training images, three blocks of two 3 x 3 convolutions each
(64, 256, 256 channels; pooling after the first of each), batch norm without scale, GELU, filters that begin as the
identity where they can, a linear head whose output is scaled down.

All 3 x 3 filters lie in one float32 tensor (filters, out, 9 x in), padded with zeros to the largest, everything else
that learns in one float32 vector: the optimizer then works on two tensors, and a job over several GPUs reduces one.
The network computes on copies in its own dtype, in the layout that the tensor cores want (channels last).
"""

from __future__ import annotations

from itertools import accumulate
from typing import List, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from validators.workloads.cifar_data import CLASSES, SIDE, Images

MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
"""Of the training images' pixels, red, green, blue, 0..255."""
WHITENED = 24
"""Channels after whitening: 3 x 2 x 2 directions, each with both signs."""
STATISTICS_MOMENTUM = 0.4
"""Share of the newest batch in the statistics that evaluation uses."""
EPSILON = 1e-5


def cut(vector: Tensor, sizes: Sequence[int]) -> List[Tensor]:
    """Consecutive parts of a vector, sharing its memory."""
    ends = list(accumulate(sizes))
    return [vector[end - size : end] for size, end in zip(sizes, ends)]  # noqa: B905 - strict is 3.10+


class Network:
    """What learns, and the forward pass. `filters` and `vector` are the float32 originals; `publish` copies them."""

    def __init__(self, widths: Sequence[int], device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        ins = (WHITENED, *(width for width in widths for _ in (0, 1)))[: 2 * len(widths)]
        outs = tuple(width for width in widths for _ in (0, 1))
        self.shapes: List[Tuple[int, int]] = list(zip(outs, ins))  # noqa: B905 - strict is 3.10+
        rows, columns = max(outs), 9 * max(ins)
        self.filters = torch.zeros(len(outs), rows, columns, device=device)
        self.vector = torch.zeros(WHITENED + sum(outs) + CLASSES * widths[-1], device=device)
        self.statistics = torch.zeros(2 * sum(outs), device=device)
        self._lay_out(outs, widths[-1])
        self._mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1).to(dtype)
        self._scale = (1 / torch.tensor(STD, device=device)).view(1, 3, 1, 1).to(dtype)

    def _lay_out(self, outs: Sequence[int], last: int) -> None:
        bias, *norms, head = cut(self.vector, [WHITENED, *outs, CLASSES * last])
        self.filter_parts = self.of_filters(self.filters)
        kernels = [torch.empty(out, 3, 3, into, device=self.device, dtype=self.dtype) for out, into in self.shapes]
        self._bias = torch.empty(WHITENED, device=self.device, dtype=self.dtype)
        self._head = torch.empty(CLASSES, last, device=self.device, dtype=self.dtype)
        self._copies = [
            *((kernel.view(len(kernel), -1), part) for kernel, part in zip(kernels, self.filter_parts)),  # noqa: B905 - strict is 3.10+
            (self._bias, bias),
            (self._head, head.view(CLASSES, last)),
        ]
        self.whitening = torch.zeros(WHITENED, 2, 2, 3, device=self.device, dtype=self.dtype).permute(0, 3, 1, 2)
        self._ones = [torch.ones(out, device=self.device) for out in outs]
        self._means = cut(self.statistics[: sum(outs)], outs)
        self._variances = cut(self.statistics[sum(outs) :], outs)
        self._kernels = [kernel.permute(0, 3, 1, 2).detach().requires_grad_() for kernel in kernels]
        self._norms = [norm.detach().requires_grad_() for norm in norms]
        self._bias.requires_grad_()
        self._head.requires_grad_()

    def of_filters(self, like: Tensor) -> List[Tensor]:
        """The parts of a tensor laid out as `filters` that are in use: (out, 9 x in) each."""
        return [one[:out, : 9 * into] for one, (out, into) in zip(like, self.shapes)]  # noqa: B905 - strict is 3.10+

    def leaves(self, learn_whitening: bool) -> List[Tensor]:
        """What the loss is differentiated by: filters, then the parts of the vector from its end to its beginning."""
        return [*self._kernels, self._head, *reversed(self._norms), *([self._bias] if learn_whitening else [])]

    def of_vector(self, like: Tensor, learn_whitening: bool) -> List[Tensor]:
        """The parts of a tensor laid out as `vector`, each for one of `leaves` after the filters."""
        sizes = [WHITENED, *(out for out, _ in self.shapes), self._head.numel()]
        bias, *norms, head = cut(like, sizes)
        return [head.view(self._head.shape), *reversed(norms), *([bias] if learn_whitening else [])]

    @torch.no_grad()
    def publish(self) -> None:
        """Copy what was learnt to where the forward pass reads it."""
        for copy, original in self._copies:
            copy.copy_(original)

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Begin anew: identity where a filter can be, small random numbers elsewhere."""
        generator = torch.Generator().manual_seed(seed)
        for part, (out, into) in zip(self.filter_parts, self.shapes):  # noqa: B905 - strict is 3.10+
            limit = (9 * into) ** -0.5
            start = torch.empty(out, into, 3, 3).uniform_(-limit, limit, generator=generator)
            torch.nn.init.dirac_(start[:into])
            part.copy_(start.permute(0, 2, 3, 1).reshape(out, -1))
        self.vector.zero_()
        limit = self._head.shape[1] ** -0.5
        start = torch.empty(self._head.numel()).uniform_(-limit, limit, generator=generator)
        self.vector[-len(start) :].copy_(start)
        self.statistics.zero_()
        self.statistics[len(self.statistics) // 2 :].fill_(1.0)
        self.publish()

    @torch.no_grad()
    def whiten(self, images: Images) -> None:
        """Set the first convolution from the covariance of 2 x 2 patches of the images."""
        pixels = images.pixels.permute(0, 3, 1, 2)
        values = (pixels.float() - self._mean.float()) * self._scale.float()
        corners = [
            values[:, :, down : down + SIDE - 1, right : right + SIDE - 1] for down in (0, 1) for right in (0, 1)
        ]
        patches = torch.stack(corners, 2).flatten(1, 2).transpose(0, 1).flatten(1)
        covariance = (patches @ patches.t() / patches.shape[1]).cpu().double()
        variances, directions = torch.linalg.eigh(covariance)  # on the CPU: 12 x 12 is not worth a solver's start-up
        filters = (directions / (variances + 5e-4).sqrt()).t().flip(0).reshape(12, 3, 2, 2)
        self.whitening.copy_(torch.cat([filters, -filters]))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Images (n, 32, 32, 3) of bytes as the network's input (n, 3, 32, 32), channels last."""
        return pixels.permute(0, 3, 1, 2).to(self.dtype).sub_(self._mean).mul_(self._scale)

    def forward(self, images: Tensor, *, train: bool, learn_whitening: bool = False) -> Tensor:
        """Scores (n, 10) of normalised images, not yet scaled."""
        bias = self._bias if learn_whitening else self._bias.detach()
        found = F.gelu(F.conv2d(images, self.whitening, bias))
        for index, kernel in enumerate(self._kernels):
            found = F.conv2d(found, kernel, padding=1)
            if index % 2 == 0:
                found = F.max_pool2d(found, 2)
            found = F.batch_norm(
                found, self._means[index], self._variances[index], self._ones[index], self._norms[index],
                train, STATISTICS_MOMENTUM, EPSILON,
            )  # fmt: skip
            found = F.gelu(found)
        return F.linear(F.max_pool2d(found, found.shape[-1]).flatten(1), self._head)
