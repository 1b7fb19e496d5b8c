"""A profile: the software of a GPU host as a file, `profiles/*.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from provision.compat.model import Wish


@dataclass(frozen=True)
class Profile:
    """What a host should have. `wish` goes to the resolver; the rest goes to the roles as it is.

    `gpu_required`: false lets a host without an NVIDIA GPU go on without the GPU's parts (it says so). Where a driver
    branch is named, it is installed without a card too: images are built on machines without one.
    `docker`: vendor (Docker's own packages), distro, or none. `extras`: framework -> further pinned packages in its
    environment (keras, opencv). `nvtop`: auto, package, source or none. `images`: container images by digest.
    """

    name: str
    description: str = ""
    wish: Wish = field(default_factory=Wish)
    gpu_required: bool = True
    docker: Literal["vendor", "distro", "none"] = "vendor"
    nvtop: Literal["auto", "package", "source", "none"] = "auto"
    extras: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    images: tuple[str, ...] = ()
