"""Horovod's adapter. Its last release, 0.28.1, is of 2023. It computes nothing itself: it sums over processes.

The sum is asked of processes that `horovodrun` itself starts, as its users' programs are started. Each gives its
number, from 1 on; the sum that every one of them gets back must be 1 + 2 + ... + n.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, List

from validators import lease
from validators.frameworks import cuda
from validators.frameworks.base import Missing

BINDINGS = ("torch", "tensorflow", "mxnet")
"""What Horovod can be built for; the first that imports is asked."""

_RANK = """
import importlib, json, sys
binding, on_gpu = sys.argv[1], sys.argv[2] == "gpu"
hvd = importlib.import_module("horovod." + binding)
hvd.init()
framework = importlib.import_module(binding)
mine = [hvd.rank() + 1.0] * 4
if binding == "mxnet":
    place = framework.gpu(hvd.local_rank()) if on_gpu else framework.cpu()
    total = hvd.allreduce(framework.nd.array(mine, ctx=place), average=False, name="known").asnumpy().tolist()
elif binding == "torch":
    place = "cuda:%d" % hvd.local_rank() if on_gpu else "cpu"
    total = hvd.allreduce(framework.tensor(mine, device=place), op=hvd.Sum, name="known").tolist()
else:
    with framework.device("/GPU:%d" % hvd.local_rank() if on_gpu else "/CPU:0"):
        total = hvd.allreduce(framework.constant(mine), op=hvd.Sum, name="known").numpy().tolist()
print("KNOWN " + json.dumps({"rank": hvd.rank(), "size": hvd.size(), "sum": total}), flush=True)
hvd.shutdown()
"""


@dataclass(frozen=True)
class Summed:
    """What came of the sum: what each process got back, what is right, and how it went between them."""

    processes: int
    sums: List[List[float]]
    expected: List[float]
    over: str


class Horovod:
    """Horovod under the interpreter that runs this. Making it imports it: ImportError and OSError come through."""

    def __init__(self) -> None:
        self._horovod: Any = importlib.import_module("horovod")
        said = []
        for name in BINDINGS:
            try:
                self._hvd: Any = importlib.import_module(f"horovod.{name}")
            except Exception as problem:  # noqa: BLE001 - the next binding may be there; all their words are kept
                said.append(f"{name}: {type(problem).__name__}: {str(problem)[:150]}")
                continue
            if hasattr(self._hvd, "init"):  # without its extension the module is there, and empty
                self.binding = name
                return
            said.append(f"{name}: not built")
        raise ImportError("Horovod is built for none of its frameworks that is installed: " + "; ".join(said))

    def version(self) -> str:
        """Such as "0.28.1"."""
        return str(self._horovod.__version__)

    def cuda_build(self) -> str:
        """Raises Missing: Horovod does not tell a version, and is often built without CUDA."""
        built = bool(self._hvd.cuda_built())
        raise Missing(
            f"Horovod is built {'with' if built else 'without'} CUDA; the version is that of {self.binding}"
            + ("" if built else "; it sums in the host's memory")
        )

    def nccl(self) -> str:
        """NCCL's version. Raises Missing where it is built without, LookupError where the library is not found."""
        if not self._hvd.nccl_built():
            raise Missing("this Horovod is built without NCCL: it sums in the host's memory")
        return cuda.loaded_nccl()

    def allreduce(self, gpus: int, timeout_s: float) -> Summed:
        """A known sum over a process for each GPU where it is built with NCCL, else over two on the CPU.

        Raises RuntimeError with horovodrun's words where no sum comes back.
        """
        on_gpu = bool(self._hvd.nccl_built()) and gpus > 0
        count = gpus if on_gpu else 2
        how = ["--gloo"] if self._hvd.gloo_built() else ["--mpi"]
        argv = [sys.executable, "-m", "horovod.runner.launch", "-np", str(count), *how]
        argv += [sys.executable, "-c", _RANK, self.binding, "gpu" if on_gpu else "cpu"]
        words = _run(argv, timeout_s)
        answers = [json.loads(line.partition("KNOWN ")[2]) for line in words.splitlines() if "KNOWN {" in line]
        if len(answers) != count or any(one["size"] != count for one in answers):
            said = " | ".join(line.strip() for line in words.splitlines()[-4:] if line.strip())
            raise RuntimeError(f"{len(answers)} of {count} processes answered: {said[:600]}")
        over = ("NCCL" if on_gpu else "gloo" if how == ["--gloo"] else "MPI") + f", {self.binding}"
        return Summed(count, [list(one["sum"]) for one in answers], [count * (count + 1) / 2] * 4, over)


def _run(argv: List[str], timeout_s: float) -> str:
    """What the program and its processes wrote. At the deadline all of them are ended. Raises RuntimeError."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOROVOD_")}
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, cwd="/"
    )  # in this process's group: the end of the lease ends it too
    try:
        out, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"horovodrun did not end within {timeout_s:g} s: its processes do not meet") from None
    finally:
        if process.poll() is None:
            lease.kill_descendants(process.pid)  # they have sessions of their own
            process.kill()
            process.wait()
    words = out.decode("utf-8", "replace")
    if process.returncode and "KNOWN {" not in words:
        said = " | ".join(line.strip() for line in words.splitlines()[-4:] if line.strip())
        raise RuntimeError(f"horovodrun ended with exit status {process.returncode}: {said[:600]}")
    return words
