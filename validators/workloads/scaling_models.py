"""The networks of the scaling check, the images they train on, and one training step of each.

- vgg19_bn: VGG19 with batch normalisation (Simonyan and Zisserman 2014, configuration E) in the form used for 32 x 32
  images: 16 convolutions, five poolings down to 1 x 1, one dense layer. 20,035,018 parameters, 0.398 10**9
  multiply-adds an image forwards.
- mnist_cnn: two convolutions and two dense layers on 28 x 28 images, 1,199,882 parameters: the usual example network.

Throughput needs no accuracy: images are random numbers of the data's shape and scale unless a folder of CIFAR-10 is
given, and labels of random images are random. Both lie on the device, so that neither disk nor PCIe is measured here.
"""

from __future__ import annotations

import inspect
import os
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

SEED = 20260
CLASSES = 10
BUCKET_MB = 25
"""Gradients are exchanged in pieces of about so much, as they come. Nothing is left for the last piece to hide behind:
for VGG19-bn it is the first nine convolutions, 3.5 million parameters, 14 MB."""
_VGG19 = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""Channels, and how many convolutions of so many, before each pooling."""
CIFAR_BYTES = 10_000 * 3073
"""A file of CIFAR-10's binary form: 10,000 times a label and 3 x 32 x 32 bytes."""


def vgg19_bn() -> nn.Module:
    """VGG19 with batch normalisation for (N, 3, 32, 32)."""
    layers: List[nn.Module] = []
    channels = 3
    for width, repeats in _VGG19:
        for _ in range(repeats):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),  # the normalisation has one
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, CLASSES))


def mnist_cnn() -> nn.Module:
    """The example network for (N, 1, 28, 28); without dropout, so that its steps can be compared."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 3), nn.ReLU(inplace=True),
        nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(9216, 128), nn.ReLU(inplace=True),
        nn.Linear(128, CLASSES),
    )  # fmt: skip


MODELS: Mapping[str, Tuple[Callable[[], nn.Module], Tuple[int, int, int]]] = {
    "vgg19_bn": (vgg19_bn, (3, 32, 32)),
    "mnist_cnn": (mnist_cnn, (1, 28, 28)),
}
"""Name -> how it is made, and the shape of an image."""


def make(name: str, device: torch.device) -> nn.Module:
    """The network with the same parameters on every rank. Raises ValueError for a name that there is none of."""
    if name not in MODELS:
        raise ValueError(f"no such model: {name}; there are {', '.join(MODELS)}")
    torch.manual_seed(SEED)
    return MODELS[name][0]().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def number_format(device: torch.device) -> Optional[torch.dtype]:
    """What convolutions compute in: bfloat16 from compute capability 8.0 on, float16 from 7.0, None for float32.

    float16 runs without loss scaling: small gradients become zero, which costs accuracy and no time.
    """
    if device.type != "cuda":
        return None
    capability = torch.cuda.get_device_capability(device)
    return torch.bfloat16 if capability >= (8, 0) else torch.float16 if capability >= (7, 0) else None


class Batches:
    """Batches of (images, labels) on the device, each a slice of a pool that holds two of the largest."""

    def __init__(self, name: str, largest: int, rank: int, device: torch.device, folder: str = "") -> None:
        shape = MODELS[name][1]
        dtype = number_format(device) or torch.float32
        real = cifar(folder, 2 * largest, rank) if shape == (3, 32, 32) and folder else None
        self.origin = "CIFAR-10" if real is not None else "random numbers"
        if real is not None:
            images, labels = real
            self._images = images.to(device, dtype).contiguous(memory_format=torch.channels_last)
            self._labels = labels.to(device)
            return
        generator = torch.Generator(device).manual_seed(SEED + rank)
        drawn = torch.randn(2 * largest, *shape, generator=generator, device=device, dtype=dtype)
        self._images = drawn.contiguous(memory_format=torch.channels_last)
        self._labels = torch.randint(CLASSES, (2 * largest,), generator=generator, device=device)

    def take(self, number: int, size: int) -> Tuple[Tensor, Tensor]:
        """The `number`th batch of `size` images; they repeat."""
        at = number % (len(self._images) // size) * size
        return self._images[at : at + size], self._labels[at : at + size]


def cifar(folder: str, count: int, rank: int) -> Optional[Tuple[Tensor, Tensor]]:
    """`count` normalised images (N, 3, 32, 32) float32 and labels (N,), other ones for each rank.

    None where data_batch_1.bin to _5.bin do not lie there whole.
    """
    paths = [os.path.join(folder, f"data_batch_{i}.bin") for i in range(1, 6)]
    if not all(os.path.isfile(path) and os.path.getsize(path) == CIFAR_BYTES for path in paths):
        return None
    with open(paths[rank % 5], "rb") as stream:
        records = torch.frombuffer(bytearray(stream.read()), dtype=torch.uint8).view(-1, 3073)
    records = records.repeat(-(-count // len(records)), 1)[:count]
    images = records[:, 1:].reshape(-1, 3, 32, 32).float()
    mean, deviation = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    return (images - mean) / deviation, records[:, 0].long()


class Trainer:
    """A network with its optimizer: SGD with momentum, as both networks are usually trained.

    `net` is what steps run through: the bare network, or its DistributedDataParallel once that was put there.
    """

    def __init__(self, name: str, device: torch.device, *, rate: float = 1e-3, whole: bool = False) -> None:
        self.device = device
        self.dtype = None if whole else number_format(device)
        self.model = make(name, device)
        self.net: nn.Module = self.model
        self._initial = [parameter.detach().clone() for parameter in self.model.parameters()]
        # A small rate: random labels must not drive it to infinities, whose products cost less power.
        fused = True if device.type == "cuda" else None
        parameters = self.model.parameters()
        self.optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=5e-4, fused=fused)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Forwards, backwards, new parameters; gives the loss, still on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            loss: Tensor = nn.functional.cross_entropy(self.net(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.optimizer.step()
        return loss

    def join(self) -> None:
        """From here on steps exchange gradients with the other ranks. Raises what torch raises where they don't answer.

        Running means of the normalisation stay each rank's own: sent by rank 0 before each step, as is the default,
        they make every rank wait for it.
        """
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        ours: Dict[str, Any] = {
            "bucket_cap_mb": BUCKET_MB,
            "gradient_as_bucket_view": True,
            "static_graph": True,
            # torch 2.13 renamed it
            "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False,
        }
        ids = [self.device] if self.device.type == "cuda" else None
        self.net = DistributedDataParallel(self.model, device_ids=ids, **ours)

    def reset(self) -> None:
        """The parameters of the beginning, the same on every rank again, and no momentum."""
        with torch.no_grad():
            for parameter, initial in zip(self.model.parameters(), self._initial):  # noqa: B905 - strict is 3.10+
                parameter.copy_(initial)
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()

    def update(self) -> Tensor:
        """What training added to the parameters, as one vector of float64."""
        pairs = zip(self.model.parameters(), self._initial)  # noqa: B905 - strict is 3.10+
        return torch.cat([(parameter.detach() - initial).double().flatten() for parameter, initial in pairs])


def digest(model: nn.Module) -> Tensor:
    """One int64 of all bits of the parameters: the sum of each 32-bit word times an odd number, modulo 2**64.

    Odd numbers have inverses, so one word that differs always shows; two or more would have to cancel out.
    """
    total = torch.zeros((), dtype=torch.int64, device=next(model.parameters()).device)
    for number, parameter in enumerate(model.parameters()):
        words = parameter.detach().flatten().view(torch.int32).to(torch.int64)
        total += (words * (torch.arange(len(words), device=words.device) * 2 + 2 * number + 1)).sum()
    return total
