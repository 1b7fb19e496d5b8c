"""Stubs of the CUDA toolkits, of the container toolkit, and of cuda-keyring."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tests.hosts.nvidia_repository.deb import Package
from tests.hosts.nvidia_repository.driver import libraries, text

NVCC = """#!/bin/sh
[ "${1:-}" = --version ] || [ "${1:-}" = -V ] || { echo "nvcc fatal   : No input files specified" >&2; exit 1; }
cat <<END
nvcc: NVIDIA (R) Cuda compiler driver
Copyright (c) 2005-2025 NVIDIA Corporation
Built on Wed_Aug_20_01:58:59_PM_PDT_2025
Cuda compilation tools, release @SHORT@, V@FULL@
Build cuda_@SHORT@.r@SHORT@/compiler.00000000_0
END
"""
LINKS = "set -e\n" + "".join(
    f"update-alternatives --install /usr/local/{name} {name} /usr/local/cuda-@SHORT@ @PRIORITY@ >/dev/null\n"
    for name in ("cuda", "cuda-@MAJOR@")
)
UNLINKS = 'set -e\n[ "$1" = upgrade ] || ' + " && ".join(
    f"update-alternatives --remove {name} /usr/local/cuda-@SHORT@" for name in ("cuda", "cuda-@MAJOR@")
)


def cuda(version: str) -> list[Package]:
    """One toolkit ("13.0.2"): what NVIDIA spreads over dozens of packages, in the three whose names one meets."""
    major, minor, _ = version.split(".")
    short, dashed = f"{major}.{minor}", f"{major}-{minor}"
    pv = f"{version}-1"
    root = f"/usr/local/cuda-{short}"
    fill = {"@SHORT@": short, "@FULL@": f"{short}.88", "@MAJOR@": major, "@PRIORITY@": f"{major}{minor}"}

    def filled(template: str) -> str:
        for key, value in fill.items():
            template = template.replace(key, value)
        return template

    versions = {"cuda": {"name": "CUDA SDK", "version": version}, "cuda_nvcc": {"name": "CUDA NVCC", "version": pv}}
    target = f"{root}/targets/x86_64-linux"
    return [
        Package(
            f"cuda-toolkit-{dashed}",
            pv,
            f"cuda-nvcc-{dashed}, cuda-toolkit-{dashed}-config-common",
            files={f"{root}/version.json": json.dumps(versions, indent=2) + "\n"},
        ),
        Package(
            f"cuda-nvcc-{dashed}",
            f"{short}.88-1",
            files={
                f"{root}/bin/nvcc": filled(NVCC),
                f"{target}/lib/libcudart.so.{version}": "stub\n",
                f"{target}/include/cuda.h": "",
            },
            links={f"{root}/lib64": "targets/x86_64-linux/lib", f"{root}/include": "targets/x86_64-linux/include"},
        ),
        Package(
            f"cuda-toolkit-{dashed}-config-common",
            pv,
            f"cuda-toolkit-{major}-config-common, cuda-toolkit-config-common",
            files={f"/usr/share/doc/cuda-toolkit-{dashed}-config-common/stub": ""},
            scripts={"postinst": filled(LINKS), "prerm": filled(UNLINKS) + "\n"},
            architecture="all",
        ),
        Package(f"cuda-runtime-{dashed}", pv, "cuda-drivers (>= 575.57.08)"),
        Package(f"cuda-{dashed}", pv, f"cuda-runtime-{dashed}, cuda-toolkit-{dashed}", architecture="all"),
    ]


def cuda_metapackages(versions: Sequence[str]) -> list[Package]:
    """`cuda` (which drags a driver) and `cuda-toolkit` (which doesn't), of the newest toolkit."""
    newest = max(versions, key=lambda version: [int(part) for part in version.split(".")])
    dashed = "-".join(newest.split(".")[:2])
    packages = [
        Package("cuda", f"{newest}-1", f"cuda-{dashed} (>= {newest})"),
        Package("cuda-toolkit", f"{newest}-1", f"cuda-toolkit-{dashed} (>= {newest})"),
        Package(
            "cuda-toolkit-config-common",
            f"{newest}-1",
            files={"/etc/ld.so.conf.d/000_cuda.conf": "/usr/local/cuda/targets/x86_64-linux/lib\n"},
            architecture="all",
        ),
    ]
    for major in sorted({version.split(".")[0] for version in versions}):
        conf = f"/usr/local/cuda-{major}/targets/x86_64-linux/lib\n"
        packages.append(
            Package(
                f"cuda-toolkit-{major}-config-common",
                f"{newest}-1",
                files={f"/etc/ld.so.conf.d/988_cuda-{major}.conf": conf},
                architecture="all",
            )
        )
    return packages


def container_toolkit(version: str) -> list[Package]:
    """The four packages of the container toolkit ("1.18.2"), each depending on the others of its own version."""
    pv = f"{version}-1"
    same = f"(= {pv})"
    hook = '#!/bin/sh\necho "a stub of the NVIDIA container runtime" >&2\nexit 1\n'
    cli = f'#!/bin/sh\n[ "${{1:-}}" != --version ] || {{ echo "cli-version: {version}"; exit 0; }}\nexit 1\n'
    return [
        libraries("libnvidia-container1", pv, version, ["libnvidia-container"]),
        Package(
            "libnvidia-container-tools",
            pv,
            f"libnvidia-container1 (>= {version})",
            files={"/usr/bin/nvidia-container-cli": cli},
        ),
        Package(
            "nvidia-container-toolkit-base",
            pv,
            "python3",
            files={
                "/usr/bin/nvidia-ctk": text("nvidia-ctk", version=version),
                "/usr/bin/nvidia-container-runtime": hook,
                "/usr/bin/nvidia-cdi-hook": hook,
            },
        ),
        Package(
            "nvidia-container-toolkit",
            pv,
            f"nvidia-container-toolkit-base {same}, libnvidia-container-tools (>= {version})",
            files={"/usr/bin/nvidia-container-runtime-hook": hook},
        ),
    ]


def keyring(key: bytes, distro: str, url: str) -> Package:
    """cuda-keyring: the key, the repository's line and its priority."""
    ring = "/usr/share/keyrings/cuda-archive-keyring.gpg"
    return Package(
        "cuda-keyring",
        "1.1-1",
        files={
            ring: key,
            f"/etc/apt/sources.list.d/cuda-{distro}-x86_64.list": f"deb [signed-by={ring}] {url} /\n",
            "/etc/apt/preferences.d/cuda-repository-pin-600": (
                "Package: *\nPin: release l=NVIDIA CUDA\nPin-Priority: 600\n"
            ),
        },
        architecture="all",
    )
