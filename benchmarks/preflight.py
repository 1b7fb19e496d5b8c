"""What preflight costs beside the least that anybody can do: import torch, put a number on each GPU, read it back.

    python3 benchmarks/preflight.py [--quick]

Run from the repository root under the Python that has torch.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

PLAIN = (
    "import torch\n"
    "for n in range(torch.cuda.device_count()):\n"
    "    torch.zeros(1, device=f'cuda:{n}').add_(1)\n"
    "    torch.cuda.synchronize(n)\n"
)


def bundle(folder: Path) -> Path:
    """The bundle as the operator builds it; where this Python lacks what that needs, the same files zipped."""
    path = folder / "validators.pyz"
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder has files named like packages
    try:
        from provision.bundle import build_bundle  # noqa: PLC0415 - it may not import here

        path.write_bytes(build_bundle().data)
    except ImportError as problem:
        print(f"the bundle is zipped by hand: {problem}")
        root = Path(sys.path[0])
        with zipfile.ZipFile(path, "w") as pack:
            for one in sorted((root / "validators").rglob("*.py")):
                pack.write(one, one.relative_to(root))
            for one in filter(None, [importlib.util.find_spec("pynvml")]):
                pack.write(str(one.origin), "pynvml.py")
            pack.writestr(
                "__main__.py", "import sys\nfrom validators.__main__ import main\nsys.exit(main(sys.argv[1:]))"
            )
    return path


def timed(argv: list[str], rounds: int) -> list[float]:
    """Seconds of each round; a round that fails prints its last words."""
    found = []
    for _ in range(rounds):
        began = time.monotonic()
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        found.append(time.monotonic() - began)
        if ran.returncode:
            print(f"exit status {ran.returncode}: {(ran.stderr or ran.stdout).strip()[-600:]}")
    return found


def main() -> None:
    rounds = 1 if "--quick" in sys.argv else 3
    with tempfile.TemporaryDirectory() as folder:
        ours_argv = [sys.executable, str(bundle(Path(folder))), "run", "preflight", "--json"]
        os.environ["VIRTUAL_ENV"] = sys.prefix
        plain, ours = [], []
        for _ in range(rounds):  # in turn: the first of each finds the disk cold
            plain += timed([sys.executable, "-c", PLAIN], 1)
            ours += timed(ours_argv, 1)
        for name, seconds in (("plain torch, a kernel on each GPU", plain), ("preflight", ours)):
            spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
            print(f"{name}: first {seconds[0]:.1f} s, median {statistics.median(seconds):.1f} s ({spread})")
        print(f"ratio of the medians: {statistics.median(ours) / statistics.median(plain):.2f}; the target is 8 s")


if __name__ == "__main__":
    main()
