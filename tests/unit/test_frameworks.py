"""The real frameworks on the CPU, each through the check; frameworks that fail to come up, as real processes."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from provision.report.model import Verdict
from tests.doubles import h200
from tests.need import need
from tests.unit import load_check
from tests.unit.host_tree import Measured
from tests.unit.load_check import fake_python
from validators import check as checks
from validators.frameworks import cuda
from validators.probes import gpu_contexts, nvml, pci
from validators.probes.gpu_contexts import Card
from validators.probes.sysfs import Files
from validators.schema import (
    ERROR,
    HOST,
    NOT_APPLICABLE,
    RAN,
    CheckRequest,
    Outcome,
    Plan,
    Record,
    Scalar,
    encode,
)

UUID = "GPU-bc0980de-e367-052e-70cb-c28b0154c9a8"


def run(named: dict[str, str], device: str = "cpu", **params: Scalar) -> tuple[Measured, dict[str, Outcome]]:
    """The check in this process, its workloads in theirs; of the frameworks that are named."""
    params.setdefault("frameworks", ",".join(named))
    records: list[Record] = []

    def take(record: Record) -> None:
        encode(record)
        records.append(record)

    request = CheckRequest("preflight", 60.0, params)
    ctx = checks.Context(checks.load("preflight").info, request, Plan((request,), 60.0, named, device), take)
    with ctx.subject(HOST):
        checks.load("preflight").run(ctx)
    return Measured(records), {one.subject: one for one in records if isinstance(one, Outcome)}


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has one GPU, as NVML says."""
    lay_one_gpu(monkeypatch)


def lay_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pci, "nvidia_devices", lambda _files: None)
    monkeypatch.setattr(gpu_contexts, "cards", lambda: {UUID: Card(UUID, "9.0", free_mib=100_000)})


def judged(found: Measured, outcomes: dict[str, Outcome]) -> list[Verdict]:
    records = [*load_check.identity([UUID]), *found.records, *outcomes.values()]
    return load_check.judged(records, load_check.plan_of("preflight"))


@pytest.fixture(scope="module")
def on_the_cpu() -> tuple[Measured, dict[str, Outcome], list[str]]:
    """Every framework that this Python has, in one run of the check."""
    names = [name for name in ("torch", "tensorflow", "jax") if importlib.util.find_spec(name)]
    found, outcomes = run(dict.fromkeys(names, sys.executable))
    return found, outcomes, names


@pytest.mark.parametrize("framework", ["torch", "tensorflow", "jax"])
def test_a_real_framework_computes_and_learns_on_the_cpu(
    on_the_cpu: tuple[Measured, dict[str, Outcome], list[str]], framework: str
) -> None:
    found, outcomes, names = on_the_cpu
    need(framework in names, f"{framework} for this Python")

    assert outcomes[HOST].status == RAN, outcomes[HOST].detail
    assert found.value("known_answer", framework=framework) is True
    assert "cpu" in str(found.value("device_ran_on", framework=framework)).lower()
    assert found.value("loss_falls", framework=framework) is True
    assert found.one("loss_falls", framework=framework).note.startswith("0.05669 to 0.0261")  # in each the same
    if found.one("cuda_build", framework=framework).absence == NOT_APPLICABLE:
        assert found.one("cudnn_version", framework=framework).absence == NOT_APPLICABLE
        assert found.one("nccl_version", framework=framework).absence == NOT_APPLICABLE
    assert found.one("ran_on_gpu", framework=framework).absence == NOT_APPLICABLE


@pytest.fixture(scope="module")
def on_a_gpu_host() -> tuple[Measured, dict[str, Outcome], list[str]]:
    """The same on a host that has a GPU, as NVML says."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        lay_one_gpu(monkeypatch)
        names = [name for name in ("torch", "tensorflow", "jax") if importlib.util.find_spec(name)]
        found, outcomes = run(dict.fromkeys(names, sys.executable), "gpu")
        return found, outcomes, names


@pytest.mark.parametrize(
    ("framework", "reason", "where"),
    [
        ("torch", "this torch is a CPU-only build", "on cpu"),
        ("tensorflow", "this TensorFlow is a CPU-only build", "device:CPU:0"),
        ("jax", "no CUDA plugin of JAX is installed", "on cpu:0"),
    ],
)
def test_a_cpu_build_on_a_host_with_a_gpu_fails_and_says_so(
    on_a_gpu_host: tuple[Measured, dict[str, Outcome], list[str]], framework: str, reason: str, where: str
) -> None:
    found, outcomes, names = on_a_gpu_host
    need(framework in names, f"{framework} for this Python")
    built = found.one("cuda_build", framework=framework)
    need(built.absence == NOT_APPLICABLE, f"a CPU-only build of {framework}", installable=False)

    assert found.value("devices_seen", framework=framework) == 0
    assert found.value("devices_missing", framework=framework) == 1
    assert reason in found.one("devices_seen", framework=framework).note
    assert UUID in found.one("devices_missing", framework=framework).note
    assert found.value("ran_on_gpu", framework=framework) is False
    assert where in found.one("ran_on_gpu", framework=framework).note
    failed = [one for one in judged(found, outcomes) if one.status == "FAIL" and one.metric == "ran_on_gpu"]
    assert any(reason in one.reason for one in failed)


@pytest.mark.usefixtures("one_gpu")
def test_jax_s_own_words_about_a_gpu_that_it_cannot_use_are_the_reason(tmp_path: Path) -> None:
    need(importlib.util.find_spec("jax") is not None, "jax for this Python")
    (tmp_path / "sitecustomize.py").write_text(
        "import jax._src.hardware_utils as h\nh.has_visible_nvidia_gpu = lambda: True\n"
    )
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)

    found, _ = run(
        {"torch": fake_python(tmp_path / "no", torch="raise ImportError('not here')"), "jax": str(python)}, "gpu"
    )

    told = found.one("devices_seen", framework="jax").note
    assert "a CUDA-enabled jaxlib is not installed. Falling back to cpu" in told


SILENT = """
import os
os.write(2, b"I0000 00:00:1795271972.548184   31196 dso_loader.cc:144] Could not load dynamic library 'libcudnn.so.9'; "
            b"dlerror: libcudnn.so.9: cannot open shared object file: No such file or directory\\x1b[31m\\n")
os.write(2, b"W0000 00:00:1795271972.548184   31196 gpu_device.cc:2342] Cannot dlopen some GPU libraries. Please make "
            b"sure the missing libraries mentioned above are installed\\nSkipping registering GPU devices...\\n")
__version__ = "2.21.0"
class errors:
    class OpError(Exception): pass
class sysconfig:
    get_build_info = staticmethod(lambda: {"is_cuda_build": True, "cuda_version": "12.5.1",
                                           "cuda_compute_capabilities": ["sm_80", "compute_90"]})
class config:
    list_physical_devices = staticmethod(lambda kind: [])
class device:
    def __init__(self, place): self.place = place
    def __enter__(self): pass
    def __exit__(self, *a): pass
class Tensor:
    device = "/job:localhost/replica:0/task:0/device:CPU:0"
    def numpy(self): return self
    def tolist(self): return [[22.0, 28.0], [49.0, 64.0]]
constant = lambda value: value
matmul = lambda left, right: Tensor()
"""


@pytest.mark.usefixtures("one_gpu")
def test_a_silent_fallback_fails_with_the_library_that_the_log_names(tmp_path: Path) -> None:
    broken = fake_python(tmp_path / "t", torch="raise ImportError('no torch')")

    found, outcomes = run({"torch": broken, "tensorflow": fake_python(tmp_path, tensorflow=SILENT)}, "gpu")

    note = found.one("ran_on_gpu", framework="tensorflow").note
    assert "goes on without an error, on /job:localhost/replica:0/task:0/device:CPU:0" in note
    assert "libcudnn.so.9: cannot open shared object file" in note
    assert "\x1b" not in note
    assert "dso_loader.cc" not in note
    told = [one.reason for one in judged(found, outcomes) if one.status == "FAIL" and one.metric == "ran_on_gpu"]
    assert "Could not load dynamic library 'libcudnn.so.9'" in told[0]


GOOD = """
import os, signal
class version: cuda = None
__version__ = "9.9.9"
class _C: pass
class backends: pass
def tensor(value, device=None): return T(value, device)
class T:
    def __init__(self, value, device): self.value, self.device = value, device
    def __matmul__(self, other): return T([[22.0, 28.0], [49.0, 64.0]], self.device)
    def tolist(self): return self.value
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("import os\nos.write(2, b'Unable to load cuDNN. Is it installed?\\n'); os._exit(3)", "Is it installed?"),
        ("import os\nos._exit(3)", "exited with status 3"),
    ],
)
def test_a_framework_whose_import_crashes_is_its_own_error_and_the_others_stand(
    tmp_path: Path, body: str, words: str
) -> None:
    found, outcomes = run(
        {"torch": fake_python(tmp_path / "good", torch=GOOD), "jax": fake_python(tmp_path / "bad", jax=body)}
    )

    assert found.value("known_answer", framework="torch") is True
    assert outcomes[HOST].status == ERROR
    assert "jax under" in outcomes[HOST].detail
    assert words in outcomes[HOST].detail
    assert "torch under" not in outcomes[HOST].detail


def test_an_exit_in_an_import_and_a_missing_library_are_measured(tmp_path: Path) -> None:
    missing = "raise ImportError('libcudnn.so.9: cannot open shared object file: No such file or directory')"

    found, outcomes = run(
        {
            "torch": fake_python(tmp_path / "a", torch=missing),
            "tensorflow": fake_python(tmp_path / "b", tensorflow="raise SystemExit('numpy 2 is not for us')"),
        }
    )

    assert outcomes[HOST].status == RAN
    assert "libcudnn.so.9" in found.one("imports", framework="torch").note
    assert found.value("imports", framework="tensorflow") is False
    assert "numpy 2 is not for us" in found.one("imports", framework="tensorflow").note


def test_an_import_that_hangs_ends_at_its_deadline_and_the_others_stand(tmp_path: Path) -> None:
    began = time.monotonic()
    hangs = fake_python(
        tmp_path / "bad", jax="import os, time\nos.write(2, b'CUDA_ERROR_SYSTEM_NOT_READY\\n')\ntime.sleep(600)"
    )

    found, outcomes = run({"torch": fake_python(tmp_path / "good", torch=GOOD), "jax": hangs}, framework_timeout_s=2)

    assert time.monotonic() - began < 20
    assert found.value("known_answer", framework="torch") is True
    assert "timed out after 2 s" in outcomes[HOST].detail
    assert "CUDA_ERROR_SYSTEM_NOT_READY" in outcomes[HOST].detail  # what it said before


def test_frameworks_come_up_at_the_same_time(tmp_path: Path) -> None:
    (tmp_path / "met").mkdir()
    meets = f"""
import os, time
open({str(tmp_path / "met")!r} + "/" + str(os.getpid()), "w").close()
end = time.monotonic() + 20
while len(os.listdir({str(tmp_path / "met")!r})) < 3:
    if time.monotonic() > end:
        raise ImportError("alone")
    time.sleep(0.02)
"""
    pythons = {
        "torch": fake_python(tmp_path / "a", torch=meets + GOOD),
        "jax": fake_python(tmp_path / "b", jax=meets + "raise ImportError('met')"),
        "tensorflow": fake_python(tmp_path / "c", tensorflow=meets + "raise ImportError('met')"),
    }
    need(gpu_contexts.side_by_side(3, {}, Files()) == 3, "6 GB of free memory", installable=False)

    found, _ = run(pythons)

    assert found.value("known_answer", framework="torch") is True
    for framework in ("jax", "tensorflow"):
        assert "met" in found.one("imports", framework=framework).note


def grown(root: Path, available_kib: int) -> Files:
    (root / "proc").mkdir()
    (root / "proc" / "meminfo").write_text(f"MemTotal: 9999999 kB\nMemAvailable:   {available_kib} kB\n")
    return Files(str(root))


@pytest.mark.parametrize(
    ("available_gib", "cards", "at_once"),
    [
        (64, [Card("a", free_mib=140_000)], 3),
        (5, [Card("a", free_mib=140_000)], 2),
        (1, [], 1),
        (64, [Card("a", free_mib=3_900)], 3),
        (64, [Card("a", free_mib=140_000), Card("b", free_mib=1_500)], 1),
        (64, [Card("a", mode="exclusive process", free_mib=140_000)], 1),
    ],
)
def test_as_many_at_once_as_the_memory_and_the_compute_mode_allow(
    tmp_path: Path, available_gib: int, cards: list[Card], at_once: int
) -> None:
    files = grown(tmp_path, available_gib << 20)

    assert gpu_contexts.side_by_side(3, {card.uuid: card for card in cards}, files) == at_once


BUSY = (
    GOOD.replace("cuda = None", "cuda = '13.0'")
    + """
class _C: _cuda_getArchFlags = staticmethod(lambda: "sm_90")
class _P: uuid = "UUID"
class cuda:
    init = staticmethod(lambda: None)
    device_count = staticmethod(lambda: 1)
    get_device_properties = staticmethod(lambda index: _P)
    get_device_capability = staticmethod(lambda index: (9, 0))
class backends:
    class cudnn: version = staticmethod(lambda: 91002)
def zeros(*size, device): raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")
"""
)


def first_uuid() -> str:
    with nvml.session() as session:
        return session.gpus()[0][0].uuid


def test_exclusive_mode_is_the_reason_and_its_holder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    holder = {"result": [{"struct": {"pid": 4711, "usedGpuMemory": 1 << 30}}]}
    faults = {
        "nvmlDeviceGetComputeMode(*)": {"result": 3},
        "nvmlDeviceGetComputeRunningProcesses(*)": holder,
        "nvmlSystemGetProcessName(*)": {"result": "/usr/bin/train"},
    }
    monkeypatch.setitem(sys.modules, "pynvml", h200(1, faults))
    monkeypatch.setattr(pci, "nvidia_devices", lambda _files: None)
    uuid = first_uuid()

    found, outcomes = run({"torch": fake_python(tmp_path, torch=BUSY.replace("UUID", uuid[4:]))}, "gpu")

    note = found.one("context").note
    assert found.value("context") is False
    assert "busy or unavailable" in note
    assert "exclusive process" in note
    assert "process 4711 (/usr/bin/train) holds it" in note
    assert found.value("cudnn_version") == "9.10.2"
    assert outcomes[uuid].status == RAN


def test_a_card_in_use_is_measured_and_its_user_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    faults = {
        "nvmlDeviceGetComputeRunningProcesses(*)": {"result": [{"struct": {"pid": 4711, "usedGpuMemory": 1 << 30}}]},
        "nvmlSystemGetProcessName(*)": {"result": "train"},
    }
    monkeypatch.setitem(sys.modules, "pynvml", h200(1, faults))
    monkeypatch.setattr(pci, "nvidia_devices", lambda _files: None)
    works = BUSY.replace("UUID", first_uuid()[4:]).rpartition("def zeros")[0] + (
        "class Z:\n    def add_(self, one): pass\ndef zeros(*size, device): return Z()\n"
        "cuda.synchronize = staticmethod(lambda index: None)\n"
    )

    found, _ = run({"torch": fake_python(tmp_path, torch=works)}, "gpu")

    assert (found.value("context"), found.value("known_answer")) == (True, True)
    assert found.value("devices_missing") == 0
    assert "in use by process 4711 (train)" in found.one("context").note


def test_mig_devices_are_read_with_their_card(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = {
        "nvmlDeviceGetMigMode(gpu0)": {"result": [1, 1]},
        "nvmlDeviceGetMaxMigDeviceCount(gpu0)": {"result": 2},
        "nvmlDeviceGetMigDeviceHandleByIndex(gpu0,0)": {"handle": "gpu9"},
        "nvmlDeviceGetMigDeviceHandleByIndex(gpu0,1)": {"error": nvml.NOT_SUPPORTED + 3},
        "nvmlDeviceGetUUID(gpu9)": {"result": "MIG-11111111-2222-3333-4444-555555555555"},
    }
    monkeypatch.setitem(sys.modules, "pynvml", h200(4, faults))

    first, second, *_ = gpu_contexts.cards().values()
    assert (first.mig, first.instances) == (True, ("MIG-11111111-2222-3333-4444-555555555555",))
    assert (second.mig, second.hindrance()) == (False, "")


@pytest.mark.parametrize(
    ("read", "number", "version"),
    [(cuda.cudnn_version, *one) for one in ((91002, "9.10.2"), (90300, "9.3.0"), (8907, "8.9.7"), (7605, "7.6.5"))]
    + [(cuda.nccl_version, *one) for one in ((22705, "2.27.5"), (21805, "2.18.5"), (2804, "2.8.4"))],
)
def test_a_library_s_number_is_read_as_people_write_it(read: Callable[[int], str], number: int, version: str) -> None:
    assert read(number) == version
