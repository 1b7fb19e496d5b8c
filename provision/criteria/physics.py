"""What a card can do at most: from the table by NVML name, else derived from what NVML says of its build.

Derived figures need the measured SMs, clocks and bus width (check `compute_capability`):
- peak:fp32 (TFLOP/s)        = CUDA cores x 2 x highest SM clock
- peak:<dtype> (TFLOP/s)     = SMs x rate per SM and clock of the architecture x highest SM clock
- memory_bandwidth (GB/s)    = bus width / 8 x memory clock x 2; H200: 6016 bits, 3201 MHz -> 4814 GB/s
- power_limit (W)            = the default limit that NVML gives
A figure that is not established is None: then a measurement is reported as not judged.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.resources import files
from typing import Any

FIGURES: Mapping[str, str] = {
    "peak:fp64": "TFLOP/s",
    "peak:fp64_tensor": "TFLOP/s",
    "peak:fp32": "TFLOP/s",
    "peak:tf32_tensor": "TFLOP/s",
    "peak:fp16_tensor": "TFLOP/s",
    "peak:bf16_tensor": "TFLOP/s",
    "peak:fp8_tensor": "TFLOP/s",
    "peak:int8_tensor": "TOP/s",
    "memory_bandwidth": "GB/s",
    "power_limit": "W",
}
"""Every figure that a criterion may take a fraction of, and its unit."""


@dataclass(frozen=True)
class GpuFacts:
    """What `compute_capability` measured of a card. None: not measured. Clocks in MHz, bus in bits, power in W."""

    name: str = ""
    capability: str = ""
    sm_count: float | None = None
    cuda_cores: float | None = None
    sm_clock_max: float | None = None
    memory_clock_max: float | None = None
    memory_bus_width: float | None = None
    power_limit_default: float | None = None


@dataclass(frozen=True)
class Card:
    """An entry of the table: the figures that are established, by figure name."""

    name: str
    nvml_names: tuple[str, ...]
    confidence: str
    source: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Architecture:
    """Rates per SM and clock; `names` are patterns of the NVML names that it holds for."""

    capability: str
    names: tuple[str, ...]
    confidence: str
    cores_per_sm: float
    rates: Mapping[str, float]
    source: str


def figure(of: str, gpu: GpuFacts) -> tuple[float, str] | None:
    """The figure `of` (a key of FIGURES, in its unit) for this card, with its source. None: not known."""
    card = card_named(gpu.name)
    if card is not None and of in card.figures:
        return card.figures[of], f"{card.name}: {card.source}"
    if of == "memory_bandwidth":
        return _bandwidth(gpu)
    if of == "power_limit":
        limit = gpu.power_limit_default
        return (limit, "the default power limit that NVML gives") if limit is not None and _positive(limit) else None
    if of.startswith("peak:"):
        return _peak(of.removeprefix("peak:"), gpu)
    return None


def card_named(name: str) -> Card | None:
    """The table's entry for an NVML name. Entries of low confidence are left out."""
    return _by_name().get(_plain(name))


def cards_matching(pattern: str) -> tuple[Card, ...]:
    """The table's cards that a criterion's `gpu` pattern is about."""
    return tuple(card for card in _cards() if any(name_matches(name, pattern) for name in card.nvml_names))


def name_matches(name: str, pattern: str) -> bool:
    """Whether a GPU's name fits a shell pattern; the vendor's prefix may be left out."""
    return fnmatchcase(name, pattern) or fnmatchcase(_plain(name), pattern)


def _peak(dtype: str, gpu: GpuFacts) -> tuple[float, str] | None:
    clock = gpu.sm_clock_max
    if clock is None or not _positive(clock):
        return None
    if dtype == "fp32" and gpu.cuda_cores is not None and _positive(gpu.cuda_cores):
        return gpu.cuda_cores * 2 * clock * 1e-6, f"derived: {gpu.cuda_cores:g} CUDA cores x 2 x {clock:g} MHz"
    if gpu.sm_count is None or not _positive(gpu.sm_count):
        return None
    found = _rate(dtype, gpu)
    if found is not None and found[0] == 0 and dtype == "fp64_tensor":
        found = _rate("fp64", gpu)  # no such unit: a plain fp64 product runs at the vector rate
    if found is None or found[0] == 0:
        return None
    rate, source = found
    peak = gpu.sm_count * rate * clock * 1e-6
    return peak, f"derived: {gpu.sm_count:g} SMs x {rate:g} a clock x {clock:g} MHz ({source})"


def _rate(dtype: str, gpu: GpuFacts) -> tuple[float, str] | None:
    for entry in _architectures():
        fits = entry.capability == gpu.capability and any(fnmatchcase(gpu.name, name) for name in entry.names)
        if fits and dtype in entry.rates:
            return entry.rates[dtype], f"architecture {entry.capability}: {entry.source}"
    return None


def _bandwidth(gpu: GpuFacts) -> tuple[float, str] | None:
    width, clock = gpu.memory_bus_width, gpu.memory_clock_max
    if width is None or clock is None or not (_positive(width) and _positive(clock)):
        return None
    return width / 8 * clock * 2 * 1e-3, f"derived: {width:g} bits / 8 x {clock:g} MHz x 2"


def _positive(number: float | None) -> bool:
    return number is not None and 0 < number < 1e9


def _plain(name: str) -> str:
    return name.strip().removeprefix("NVIDIA ")


@functools.cache
def _data() -> dict[str, Any]:
    return tomllib.loads((files("provision.criteria") / "gpus.toml").read_text(encoding="utf-8"))


@functools.cache
def _cards() -> tuple[Card, ...]:
    return tuple(_card(entry) for entry in _data()["gpu"] if entry["confidence"] in ("high", "medium"))


@functools.cache
def _by_name() -> Mapping[str, Card]:
    return {_plain(name): card for card in _cards() for name in card.nvml_names}


def _card(entry: Mapping[str, Any]) -> Card:
    figures = {f"peak:{key.removesuffix('_tops')}": float(value) for key, value in entry["dense_tflops"].items()}
    figures["memory_bandwidth"] = float(entry["memory_bandwidth_gbs"])
    figures["power_limit"] = float(entry["power_limit_w"])
    source = "; ".join(entry["source"]) + f" (confidence {entry['confidence']})"
    return Card(entry["name"], tuple(entry["nvml_names"]), entry["confidence"], source, figures)


@functools.cache
def _architectures() -> tuple[Architecture, ...]:
    return tuple(
        Architecture(
            entry["capability"],
            tuple(entry["name"].split("|")),
            entry["confidence"],
            float(entry["cuda_cores_per_sm"]),
            {dtype: float(rate) for dtype, rate in entry["rates"].items()},
            "; ".join(entry["source"]),
        )
        for entry in _data()["architecture"]
        if entry["confidence"] in ("high", "medium")
    )
