"""What limits a configuration of the scaling check, said from its own figures by one rule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Mapping

WORTH_NAMING = 0.05
"""A smaller loss is not explained: it is of the size of the figures' spread."""
HOST_BOUND = 0.8
"""The host needs so much of a step to queue it: then the GPU waits for the host, and no link would help."""


@dataclass(frozen=True)
class Cell:
    """One configuration on so many GPUs."""

    framework: str
    model: str
    mode: str
    batch: int
    gpus: int

    @classmethod
    def of(cls, labels: Mapping[str, str]) -> Cell:
        """The cell that a measurement's labels name."""
        return cls(labels["framework"], labels["model"], labels["mode"], int(labels["batch"]), int(labels["gpus"]))

    def on(self, gpus: int) -> Cell:
        """The same configuration on another number of GPUs."""
        return replace(self, gpus=gpus)

    def each(self) -> int:
        """Images a GPU and step."""
        return self.batch if self.mode == "weak" else self.batch // self.gpus


def limited_by(cell: Cell, found: Mapping[str, float], efficiency: float) -> str:
    """What keeps the efficiency from 1.

    The loss, 1 - efficiency, has three parts, each a share of the step: exchange of gradients that is not hidden
    (time_communicating), waiting for the slowest GPU (time_waiting), and computing that takes longer than a fair share
    of one GPU's time (time_computing - efficiency). The largest is named; where the host needs 0.8 of the step to queue
    it, that is named before communication and computing.
    """
    loss = 1 - efficiency
    if loss < WORTH_NAMING:
        return f"nothing of weight: {max(0.0, loss):.1%} is lost"
    if "time_computing" not in found:
        return f"not known: {loss:.0%} is lost, and a step's parts were not measured"
    parts = {
        "communicating": found["time_communicating"],
        "waiting": found.get("time_waiting", 0.0),
        "computing": found["time_computing"] - efficiency,
    }
    largest = max(parts, key=lambda name: parts[name])
    return _in_words(largest, cell, found, parts[largest])


def _in_words(largest: str, cell: Cell, found: Mapping[str, float], part: float) -> str:
    launching = found.get("time_launching", 0.0)
    if largest == "waiting":
        return f"waiting: {part:.0%} of the step goes to waiting for the slowest GPU"
    if launching >= HOST_BOUND:
        return (
            f"small batch: launch overhead: the host needs {launching:.0%} of the step to queue the work of "
            f"{cell.each()} images, so the GPU waits for it; a larger batch or a faster host core helps"
        )
    if largest == "communicating":
        alone = f"; alone it would take {found['all_reduce_alone']:.0%}" if "all_reduce_alone" in found else ""
        runtime = ", and what MirroredStrategy adds to it" if cell.framework == "tensorflow" else ""
        return f"communication: {part:.0%} of the step is exchange of gradients not hidden{alone}{runtime}"
    if cell.mode == "strong":
        return f"small batch: {cell.each()} images a GPU use it less well than {cell.batch} did"
    return f"computing: each GPU is {part:.0%} of the step slower beside the others (power, heat, host)"
