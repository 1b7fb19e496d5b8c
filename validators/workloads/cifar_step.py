"""One step of training the network of cifar_net.py, recorded once as CUDA graphs; and its evaluation.

A step is one graph on a single GPU; in a job over several it is two, with the gradients' sum over all GPUs between
them. Where a graph cannot be recorded the same functions run as they are. A batch that does not fit into memory is
computed in parts, whose gradients are added up: what is learnt depends on the recipe, not on the card's memory.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from validators.workloads.cifar_data import FILE_IMAGES, SAMPLE, SIDE, Images, padded, synthetic
from validators.workloads.cifar_net import Network
from validators.workloads.cifar_optimizer import Optimizer, Recipe
from validators.workloads.sizing import memory_of

IMAGE_BYTES = 800_000
"""Memory for each image of a batch by byte of its dtype: about 330,000 activations kept, indices, gradients."""
FREE_SHARE = 0.7
LEAST_PART = 50
"""Images; with fewer at a time batch norm has too few to go by."""
EVALUATED = 2000
"""Images evaluated at once; as many as a step of the usual recipe, so that no new kernels are chosen."""

KERNELS_TRIED = 10
"""Kernels that cuDNN times for each convolution before it chooses; 0 takes the one it thinks best."""

Reduce = Callable[[Tensor], None]


def precision(device: torch.device) -> torch.dtype:
    """float16 where there are tensor cores for it (from compute capability 7.0 on), else float32."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0):
        return torch.float16
    return torch.float32


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Trainer:
    """A network and its optimizer; `step` trains on one batch. `batch` is this process's share of the recipe's.

    `reduce` sums a tensor over all processes of the job; None where there is but one. `note` says why steps are not
    recorded, where they are not. Raises MemoryError where not even LEAST_PART images fit.
    """

    def __init__(
        self, recipe: Recipe, device: torch.device, *, ranks: int = 1, record: bool = True,
        dtype: Optional[torch.dtype] = None,
    ) -> None:  # fmt: skip
        self.recipe, self.device, self.ranks = recipe, device, ranks
        self.batch = recipe.batch // ranks
        self.network = Network(recipe.widths, device, dtype or precision(device))
        self.optimizer = Optimizer(self.network, recipe)
        self.reduce: Optional[Reduce] = None
        self.note = "" if record and device.type == "cuda" else "steps are not recorded as CUDA graphs"
        self._graphs: Dict[bool, List[torch.cuda.CUDAGraph]] = {}
        self._pixels = torch.zeros(self.batch, SIDE, SIDE, 3, dtype=torch.uint8, device=device)
        self._labels = torch.zeros(self.batch, dtype=torch.int64, device=device)
        self.loss = torch.zeros((), device=device)
        self.part = self._fitting_part()
        self.reset(0)

    @property
    def evaluated(self) -> int:
        """Images evaluated at once: as many as fit, and the test set is a multiple of."""
        return next(size for size in range(min(self.part, EVALUATED), 0, -1) if FILE_IMAGES % size == 0)

    def _fitting_part(self) -> int:
        least = min(LEAST_PART, self.batch)
        parts = [size for size in range(self.batch, least - 1, -1) if self.batch % size == 0]
        if self.device.type == "cuda":
            free = memory_of(self.device)[0] * FREE_SHARE
            each = IMAGE_BYTES * self.network.dtype.itemsize
            parts = [one for one in parts if one * each <= free] or parts[-1:]
        return parts[0]

    def prepare(self) -> None:
        """Run and record steps on synthetic images, in smaller parts where memory runs out; then begin anew."""
        images = synthetic(self.batch, self.device)
        self._pixels.copy_(images.pixels)
        self._labels.copy_(images.labels)
        while True:
            text = ""
            try:
                self._warm_up()
                break
            except torch.cuda.OutOfMemoryError as problem:
                text = str(problem).splitlines()[0]
            self._graphs.clear()  # only now: the exception held the tensors
            torch.cuda.empty_cache()
            smaller = next((n for n in range(self.part // 2, 0, -1) if self.batch % n == 0), 0)
            if smaller < LEAST_PART:
                raise MemoryError(f"out of memory on the GPU, even at {self.part} images at a time: {text}")
            self.part = smaller
        self.reset(0)

    def _warm_up(self) -> None:
        self.network.whiten(synthetic(SAMPLE, self.device))
        if self.device.type != "cuda":
            self._compute(True)
            self.optimizer.update()
            self.evaluate(synthetic(self.evaluated, self.device), thorough=False)
            return
        torch.backends.cudnn.benchmark = KERNELS_TRIED > 0  # shapes never change
        torch.backends.cudnn.benchmark_limit = KERNELS_TRIED
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for learn_whitening in (True, False):
                self._compute(learn_whitening)
                self.optimizer.update()
        torch.cuda.current_stream(self.device).wait_stream(side)
        synchronize(self.device)
        if not self.note:
            self._record()
        self.evaluate(synthetic(self.evaluated, self.device))
        synchronize(self.device)

    def _record(self) -> None:
        pool = torch.cuda.graph_pool_handle()  # one for all: nothing outlives a graph but in the tensors made here
        try:
            for learn_whitening in (True, False):
                self._graphs[learn_whitening] = []
                for work in self._works(learn_whitening):
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                        work()
                    self._graphs[learn_whitening].append(graph)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as problem:
            self._graphs.clear()
            self.note = f"steps could not be recorded as CUDA graphs: {str(problem).splitlines()[0]}"
            synchronize(self.device)

    def _works(self, learn_whitening: bool) -> List[Callable[[], None]]:
        def whole() -> None:
            self._compute(learn_whitening)
            self.optimizer.update()

        apart: List[Callable[[], None]] = [lambda: self._compute(learn_whitening), self.optimizer.update]
        return [whole] if self.ranks == 1 else apart

    def reset(self, seed: int) -> None:
        """Begin anew: weights of this seed, no momentum, no loss."""
        self.network.reset(seed)
        self.optimizer.reset()
        self.loss.zero_()

    def _compute(self, learn_whitening: bool) -> None:
        """The gradient of the loss over the batch, in parts where they are smaller."""
        network, optimizer = self.network, self.optimizer
        leaves = network.leaves(learn_whitening)
        rooms = network.of_vector(optimizer.vector_gradient, learn_whitening)
        filters = network.of_filters(optimizer.filter_gradient)
        whole = self.part == self.batch
        if not whole or self.ranks > 1:  # what is not learnt now would be summed over the ranks again and again
            optimizer.gradient.zero_()
        for pixels, labels in zip(*self._parts()):  # noqa: B905 - strict is 3.10+
            scores = network.forward(network.normalise(pixels), train=True, learn_whitening=learn_whitening)
            loss = F.cross_entropy(
                scores.float() * self.recipe.score_scale, labels, label_smoothing=self.recipe.smoothing, reduction="sum"
            )
            gradients = torch.autograd.grad(loss, leaves)
            with torch.no_grad():
                flat = [one.permute(0, 2, 3, 1).reshape(len(one), -1) for one in gradients[: len(filters)]]
                for room, gradient in zip((*filters, *rooms), (*flat, *gradients[len(filters) :])):  # noqa: B905 - strict is 3.10+
                    if whole:
                        room.copy_(gradient)
                    else:
                        room.add_(gradient)
                self.loss.add_(loss.detach())

    def _parts(self) -> Tuple[Tensor, Tensor]:
        return self._pixels.view(-1, self.part, SIDE, SIDE, 3), self._labels.view(-1, self.part)

    def step(self, pixels: Tensor, labels: Tensor, row: Tensor, learn_whitening: bool) -> None:
        """Train on one batch at these shares of the rates. No host sync."""
        self._pixels.copy_(pixels)
        self._labels.copy_(labels)
        self.optimizer.row.copy_(row)
        graphs = self._graphs.get(learn_whitening)
        if graphs:
            graphs[0].replay()
        else:
            self._compute(learn_whitening)
        if self.reduce is not None:
            self.reduce(self.optimizer.gradient)
        if not graphs:
            self.optimizer.update()
        elif len(graphs) > 1:
            graphs[1].replay()

    def copy_only(self, pixels: Tensor, labels: Tensor, row: Tensor) -> None:
        """What `step` copies, alone, to be timed."""
        self._pixels.copy_(pixels)
        self._labels.copy_(labels)
        self.optimizer.row.copy_(row)

    @torch.no_grad()
    def evaluate(self, images: Images, thorough: bool = True) -> float:
        """Share of the images that are named rightly; `thorough`: mirrored and moved by one pixel, too, and averaged.

        That is the paper's test-time augmentation: half the score as they are, a quarter each moved to two corners,
        each the mean of the image and its mirror image.
        """
        at_once = self.evaluated
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        for start in range(0, len(images.labels), at_once):
            pixels = images.pixels[start : start + at_once]
            scores = self._both(pixels, thorough)
            if thorough:
                wider = padded(pixels, 1)
                corners = (wider[:, :SIDE, :SIDE], wider[:, 2:, 2:])
                scores = 0.5 * scores + 0.25 * sum(self._both(one.contiguous(), True) for one in corners)
            right += (scores.argmax(1) == images.labels[start : start + at_once]).sum()
        return int(right) / len(images.labels)

    def _both(self, pixels: Tensor, mirrored: bool) -> Tensor:
        scores = self.network.forward(self.network.normalise(pixels), train=False).float()
        if mirrored:
            scores = scores + self.network.forward(self.network.normalise(pixels.flip(2)), train=False).float()
        return scores
