"""MNIST with torch: the MLP 784-512-512-10 with dropout 0.2, or a small CNN, trained to 98.5 %, the data on the GPU.

Run by the host's torch Python with one GPU visible. On a GPU the training step is one CUDA graph where that works:
launched kernel by kernel, networks as small as these measure the host.
"""

from __future__ import annotations

import math
import time
from typing import Any, Callable, Dict, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from validators.schema import Record
from validators.workloads import mnist_data
from validators.workloads.mnist_data import PARAMETERS, RATE, SIDE, Asked, Idx
from validators.workloads.scaling_models import mnist_cnn

WINDOW_S = 0.1
EVALUATE = 2000


def main(params: Dict[str, Any], emit: Callable[[Record], None]) -> None:
    """Train and measure; `params` are those of mnist_data.Asked. Raises RuntimeError for a torch without a GPU."""
    asked = Asked.of(params)
    if asked.gpus and not torch.cuda.is_available():
        raise RuntimeError(_without_gpu())
    device = torch.device("cuda" if asked.gpus else "cpu")
    train, test = asked.images()
    mnist_data.results(asked, "torch", emit).progress("building the network")
    machine = Machine(asked.model, device, _tensors(train, device), _tensors(test, device), asked.batch)
    if asked.gpus and not machine.on_gpu:
        raise RuntimeError("the trained weights are not on the GPU")
    if asked.model == "mlp" and machine.parameters != PARAMETERS:
        raise RuntimeError(f"the network has {machine.parameters} parameters, not {PARAMETERS}")
    found = mnist_data.results(asked, "torch", emit, mode=machine.mode)
    found.value("parameters", machine.parameters)
    mnist_data.train(found, machine, asked)


def _without_gpu() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    except (RuntimeError, AssertionError) as problem:
        return f"torch {torch.__version__} sees no GPU: {str(problem).splitlines()[0]}"
    return f"torch {torch.__version__} sees no GPU; see preflight"


def mlp() -> nn.Module:
    """The network of Keras's example mnist_mlp, for (n, 784) images."""
    return nn.Sequential(
        nn.Linear(SIDE * SIDE, 512), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(512, 10),
    )  # fmt: skip


def _tensors(idx: Idx, device: torch.device) -> Tuple[Tensor, Tensor]:
    """Images (n, 28, 28) between 0 and 1, labels (n)."""
    images = torch.frombuffer(bytearray(idx.images), dtype=torch.uint8).view(-1, SIDE, SIDE)
    labels = torch.frombuffer(bytearray(idx.labels), dtype=torch.uint8)
    return images.to(device).float() / 255, labels.to(device).long()


class Machine:
    """The training of one network on one device; see mnist_data.Machine."""

    def __init__(
        self, model: str, device: torch.device, train: Tuple[Tensor, Tensor], test: Tuple[Tensor, Tensor], batch: int
    ) -> None:
        torch.manual_seed(1)
        self.device, self.batch, self._flat = device, batch, model == "mlp"
        self._images, self._labels = train
        self._test = test
        self.net = (mlp() if self._flat else mnist_cnn()).to(device)
        self.rate = RATE[model]
        self._rate = torch.zeros((), device=device)
        graphed = device.type == "cuda"
        # As a tensor, the rate can change between replays of a graph.
        self._adam = torch.optim.Adam(self.net.parameters(), lr=self._rate if graphed else 0.0, capturable=graphed)
        self._seen = 0
        self._x = torch.zeros(batch, SIDE, SIDE, device=device)
        self._y = torch.zeros(batch, dtype=torch.int64, device=device)
        self._loss = torch.zeros((), device=device)
        self.mode = "eager"
        self._step: Callable[[], None] = self._compute
        if graphed:
            self._record()

    @property
    def parameters(self) -> int:
        """Trained numbers of the network."""
        return sum(one.numel() for one in self.net.parameters())

    @property
    def on_gpu(self) -> bool:
        """Whether the weights and the images lie on a GPU."""
        return all(one.is_cuda for one in (*self.net.parameters(), self._images))

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self._labels) / self.batch)

    def _record(self) -> None:
        """Make the step a CUDA graph, with weights and optimizer left as they were. Where that fails: eager."""
        kept = {name: value.clone() for name, value in self.net.state_dict().items()}
        self.net.train()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._compute()
            self._step, self.mode = graph.replay, "cuda graph"
        except RuntimeError as problem:  # a driver or a build that cannot: the kernels are the same
            torch.cuda.synchronize()
            self.mode = f"eager (no CUDA graph: {str(problem).splitlines()[0][:200]})"
        self.net.load_state_dict(kept)
        for state in self._adam.state.values():
            for value in state.values():
                value.zero_()

    def _compute(self) -> None:
        self._adam.zero_grad(set_to_none=False)
        images = self._x.flatten(1) if self._flat else self._x[:, None]
        loss = F.cross_entropy(self.net(images), self._y)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._adam.step()
        self._loss.copy_(loss.detach())

    def _train(self, which: Tensor, rate: float) -> None:
        self._x.copy_(torch.roll(self._images[which], mnist_data.moved(self._seen), (1, 2)))
        self._y.copy_(self._labels[which])
        if self.device.type == "cuda":
            self._rate.fill_(rate)
        else:
            for group in self._adam.param_groups:
                group["lr"] = rate
        self._step()
        self._seen += 1

    def _order(self) -> Tensor:
        """An order of the images, (steps, batch); the last step is filled up with images of another order."""
        count = len(self._labels)
        orders = [torch.randperm(count, device=self.device) for _ in range(-(-self.steps * self.batch // count))]
        return torch.cat(orders)[: self.steps * self.batch].view(self.steps, self.batch)

    def epoch(self, epochs: int) -> float:
        """Train for one of `epochs` epochs, over which the rate falls to 0; seconds. Raises RuntimeError for a NaN."""
        began = time.perf_counter()
        self.net.train()
        for which in self._order():
            self._train(which, max(0.0, self.rate * (1 - self._seen / (epochs * self.steps))))
        if not math.isfinite(float(self._loss)):  # waits for the GPU
            raise RuntimeError(f"the loss is {float(self._loss)} after {self._seen} steps")
        return time.perf_counter() - began

    @torch.no_grad()
    def accuracy(self) -> float:
        """Share of the test images named rightly."""
        self.net.eval()
        right = 0
        images, labels = self._test
        for begin in range(0, len(labels), EVALUATE):
            some = images[begin : begin + EVALUATE]
            named = self.net(some.flatten(1) if self._flat else some[:, None]).argmax(1)
            right += int((named == labels[begin : begin + EVALUATE]).sum())
        return right / len(labels)

    def speeds(self, seconds: float) -> List[float]:
        """Images a second in windows of at least WINDOW_S, at rate 0: what was trained stays. At least 3 windows."""
        self.net.train()
        order, at, steps = self._order(), 0, 10
        found: List[float] = []
        end = time.perf_counter() + seconds
        while len(found) < 3 or time.perf_counter() < end:
            began = time.perf_counter()
            for _ in range(steps):
                self._train(order[at % self.steps], 0.0)
                at += 1
            float(self._loss)  # waits for the GPU
            took = time.perf_counter() - began
            if took < WINDOW_S:
                steps = min(4 * steps, max(steps + 1, math.ceil(1.2 * steps * WINDOW_S / took)))
                found.clear()
                continue
            found.append(steps * self.batch / took)
        return found
