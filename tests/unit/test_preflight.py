"""The workload with a GPU that fails in each way, through an adapter that plays it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pytest

from provision.doctor import walk
from tests.unit import test_doctor
from tests.unit.host_tree import Measured
from validators.frameworks.base import LEFT, PRODUCT, RIGHT, Device, Missing, Product, serves
from validators.frameworks.horovod import Summed
from validators.frameworks.mxnet import ARCHITECTURES
from validators.schema import HOST, NOT_APPLICABLE, UNKNOWN, Measurement, Record, encode
from validators.workloads import preflight as workload
from validators.workloads.preflight_terms import placed

UUID = "GPU-bc0980de-e367-052e-70cb-c28b0154c9a8"


def test_the_known_product_is_one():
    rows = [
        [sum(a * b for a, b in zip(row, column, strict=True)) for column in zip(*RIGHT, strict=True)] for row in LEFT
    ]

    assert rows == PRODUCT


class Played:
    """A framework on a host with one GPU; what a test gives is what its method does."""

    def __init__(self, **plays: Any) -> None:
        self.plays = plays

    def _play(self, name: str, otherwise: Any) -> Any:
        play = self.plays.get(name, otherwise)
        if isinstance(play, BaseException):
            raise play
        return play

    def version(self) -> str:
        return "2.11.0+cu130"

    def cuda_build(self) -> str:
        return str(self._play("cuda_build", "13.0"))

    def architectures(self) -> list[str]:
        return list(self._play("architectures", ["sm_80", "sm_90"]))

    def devices(self) -> list[Device]:
        return list(self._play("devices", [Device(0, UUID, (9, 0))]))

    def create_context(self, device: Device) -> None:
        self._play("create_context", None)

    def multiply(self, device: Device | None) -> Product:
        found = self._play("multiply", Product(PRODUCT, "cuda:0"))
        assert isinstance(found, Product)
        return found

    def train(self, device: Device | None) -> list[float]:
        return list(self._play("train", [0.5, 0.3, 0.1]))

    def cudnn(self) -> str:
        return str(self._play("cudnn", "9.10.2"))

    def nccl(self) -> str:
        return str(self._play("nccl", "2.27.5"))


def play(
    monkeypatch: pytest.MonkeyPatch, gpus: str = f"{UUID}=9.0", *, framework: str = "torch", mig: str = "",
    by_chance: bool = False, **plays: Any,
) -> Measured:  # fmt: skip
    monkeypatch.setitem(workload.ADAPTERS, framework, (__name__, "made"))  # type: ignore[arg-type]  # a plain dict
    monkeypatch.setattr(sys.modules[__name__], "made", lambda: Played(**plays), raising=False)
    records: list[Record] = []
    params = {"framework": framework, "device": "gpu", "gpus": gpus, "instances": mig, "mig": bool(mig)}
    params["by_chance"] = by_chance
    workload.main(params, records.append)
    for record in records:
        encode(record)
    return Measured(records)


def test_a_good_gpu_passes_every_step(monkeypatch: pytest.MonkeyPatch):
    found = play(monkeypatch)

    assert found.value("devices_seen") == 1
    for metric in ("arch_supported", "context", "known_answer"):
        assert (found.value(metric), found.one(metric).subject) == (True, UUID)
    assert found.value("arch_list") == "sm_80,sm_90"


def test_a_driver_too_old_keeps_its_words_and_the_wheel_is_still_judged(monkeypatch: pytest.MonkeyPatch):
    words = "The NVIDIA driver on your system is too old (found version 12020)"

    found = play(monkeypatch, f"{UUID}=7.0", devices=RuntimeError(words))

    assert found.value("devices_seen") == 0
    assert words in found.one("devices_seen").note
    assert found.value("arch_supported") is False
    assert found.one("arch_supported").labels["capability"] == "7.0"
    assert found.all("known_answer") == []


def test_an_unsupported_card_keeps_cuda_s_words(monkeypatch: pytest.MonkeyPatch):
    words = "CUDA error: no kernel image is available for execution on the device\nCompile with `TORCH_USE_CUDA_DSA`"

    found = play(monkeypatch, devices=[Device(0, UUID, (7, 0))], create_context=RuntimeError(words))

    assert found.value("arch_supported") is False
    assert found.value("context") is False
    assert "no kernel image is available" in found.one("context").note
    assert "TORCH_USE_CUDA_DSA" not in found.one("context").note
    assert found.all("known_answer") == []


def test_a_gpu_that_the_framework_does_not_see_is_unknown_whatever_another_framework_says_of_it(
    monkeypatch: pytest.MonkeyPatch,
):
    found = play(monkeypatch, f"{UUID}=9.0 GPU-hidden=9.0")

    (hidden,) = [one for one in found.all("context") if one.subject == "GPU-hidden"]
    assert (hidden.absence, hidden.labels["framework"]) == (UNKNOWN, "torch")
    assert "does not see this GPU" in hidden.note


def test_a_wrong_product_is_false_and_shown(monkeypatch: pytest.MonkeyPatch):
    found = play(monkeypatch, multiply=Product([[22.0, 28.0], [49.0, 65.0]], "cuda:0"))

    assert found.value("known_answer") is False
    assert "65.0" in found.one("known_answer").note


def test_a_product_from_the_cpu_is_no_answer_of_the_gpu(monkeypatch: pytest.MonkeyPatch):
    found = play(monkeypatch, multiply=Product(PRODUCT, "cpu"))

    assert found.one("known_answer").absence == UNKNOWN
    assert "ran on cpu" in found.one("known_answer").note


def test_a_multiplication_that_fails_is_unknown(monkeypatch: pytest.MonkeyPatch):
    found = play(monkeypatch, multiply=RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED"))

    assert found.one("known_answer").absence == UNKNOWN
    assert "CUBLAS" in found.one("known_answer").note


EIGHT = " ".join(f"GPU-{n}{UUID[5:]}=9.0" for n in range(8))


def test_a_gpu_that_the_framework_lacks_is_named_by_its_uuid(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,6,7")
    seven = [Device(n, f"GPU-{n if n < 5 else n + 1}{UUID[5:]}", (9, 0)) for n in range(7)]

    found = play(monkeypatch, EIGHT, devices=seven)

    assert (found.value("devices_seen"), found.value("devices_missing")) == (7, 1)
    assert found.one("devices_missing").note.startswith(f"GPU-5{UUID[5:]}; CUDA_VISIBLE_DEVICES is set to")


def test_devices_without_uuids_are_not_called_missing(monkeypatch: pytest.MonkeyPatch):
    assert play(monkeypatch, devices=[Device(0, "", (9, 0))]).one("devices_missing").absence == UNKNOWN


def test_without_nvml_nothing_is_said_to_be_missing_or_complete(monkeypatch: pytest.MonkeyPatch):
    assert play(monkeypatch, "").one("devices_missing").absence == UNKNOWN


MIG = "MIG-11111111-2222-3333-4444-555555555555"


@pytest.mark.parametrize("told", [MIG, MIG.replace("MIG-", "GPU-")])  # torch writes every UUID behind GPU-
def test_a_mig_device_is_measured_as_its_card_s_and_what_is_seen_is_said(monkeypatch: pytest.MonkeyPatch, told: str):
    both = f"{UUID}=9.0 GPU-whole=9.0"

    found = play(monkeypatch, both, mig=f"{MIG}={UUID}", devices=[Device(0, told, (9, 0))])

    answer = found.one("known_answer")
    assert (answer.value, answer.subject, answer.labels["instance"]) == (True, UUID, MIG)
    assert found.one("devices_missing").absence == NOT_APPLICABLE
    assert f"NVML has {MIG}; seen: {MIG}" in found.one("devices_missing").note
    (other,) = [one for one in found.all("context") if one.subject == "GPU-whole"]
    assert other.absence == NOT_APPLICABLE


def test_nothing_is_tried_on_a_card_that_is_newer_than_mxnet(monkeypatch: pytest.MonkeyPatch):
    found = play(
        monkeypatch,
        framework="mxnet",
        architectures=ARCHITECTURES,
        create_context=AssertionError("must not be called"),
        multiply=AssertionError("must not be called"),
    )

    assert found.value("arch_supported") is False
    assert "none of sm_50, sm_60, sm_70, sm_80, sm_86 serves it" in found.one("arch_supported").note
    assert "MXNet 1.9.1 of 2022 is its last release" in found.one("arch_supported").note
    for metric in ("context", "known_answer", "ran_on_gpu", "loss_falls"):
        assert found.one(metric).absence == NOT_APPLICABLE
        assert "not tried" in found.one(metric).note


def test_mxnet_is_tried_on_a_card_of_its_time(monkeypatch: pytest.MonkeyPatch):
    found = play(
        monkeypatch,
        f"{UUID}=8.6",
        framework="mxnet",
        architectures=ARCHITECTURES,
        devices=[Device(0, UUID, (8, 6))],
        multiply=Product(PRODUCT, "gpu(0)"),
    )

    assert [found.value(one) for one in ("arch_supported", "known_answer", "ran_on_gpu")] == [True, True, True]


@pytest.mark.parametrize(
    ("ran_on", "index", "there"),
    [
        ("cuda:1", 1, True),
        ("cuda:0", 1, False),
        ("/job:localhost/replica:0/task:0/device:GPU:1", 1, True),
        ("/job:localhost/replica:0/task:0/device:CPU:0", 0, False),
        ("gpu(1)", 1, True),
        ("CudaDevice(id=1)", 1, True),
        ("cpu(0)", 0, False),
    ],
)
def test_a_framework_s_word_for_a_device_is_held_against_the_one_that_was_asked(ran_on: str, index: int, there: bool):
    assert placed(ran_on, Device(index, UUID, None)) is there


@pytest.mark.parametrize(
    ("train", "value", "absence"),
    [
        ([0.5, 0.4], True, ""),
        ([0.5, 0.5], False, ""),
        ([0.5, float("nan")], False, ""),
        ([0.5, float("inf"), 0.4], False, ""),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), False, ""),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 MiB"), None, UNKNOWN),
    ],
)
def test_training_is_judged_by_its_loss(monkeypatch: pytest.MonkeyPatch, train: Any, value: object, absence: str):
    found = play(monkeypatch, train=train).one("loss_falls")

    assert (found.value, found.absence) == (value, absence)
    if isinstance(train, RuntimeError):
        assert str(train) in found.note


def test_libraries_are_told_or_their_absence(monkeypatch: pytest.MonkeyPatch):
    found = play(monkeypatch, nccl=LookupError("libnccl.so is not found"))

    assert found.value("cudnn_version") == "9.10.2"
    assert (found.one("nccl_version").absence, found.one("nccl_version").note) == (UNKNOWN, "libnccl.so is not found")


class Summing:
    """A Horovod that has summed."""

    binding = "mxnet"

    def version(self) -> str:
        return "0.28.1"

    def cuda_build(self) -> str:
        raise Missing("built without CUDA")

    nccl = cuda_build

    def allreduce(self, gpus: int, timeout_s: float) -> Summed:
        return Summed(2, [[3.0], [4.0]], [3.0], "gloo, mxnet")


def test_a_wrong_sum_over_processes_is_false(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(workload.ADAPTERS, "horovod", (__name__, "Summing"))  # type: ignore[arg-type]  # a plain dict
    records: list[Record] = []

    workload.main({"framework": "horovod", "device": "cpu"}, records.append)

    answer = Measured(records).one("known_answer")
    assert (answer.value, answer.labels["processes"]) == (False, "2")
    assert "[[3.0], [4.0]] instead of [3.0]" in answer.note


def test_a_build_that_says_nothing_is_absent_and_not_supported(monkeypatch: pytest.MonkeyPatch):
    found = play(monkeypatch, cuda_build=Missing("CPU-only"), architectures=Missing("no list"))

    assert found.one("cuda_build").value is None
    assert found.one("arch_supported").absence == NOT_APPLICABLE


def test_a_build_without_cuda_that_nobody_named_is_left_alone_and_one_for_cuda_is_not(
    monkeypatch: pytest.MonkeyPatch,
):
    found = play(monkeypatch, by_chance=True, cuda_build=Missing("CPU-only"), devices=[])
    assert found.one("devices_seen").absence == NOT_APPLICABLE
    assert not found.all("ran_on_gpu")
    named = play(monkeypatch, cuda_build=Missing("CPU-only"), devices=[])
    built_for_cuda = play(monkeypatch, by_chance=True, devices=[])
    assert (named.value("devices_seen"), built_for_cuda.value("devices_seen")) == (0, 0)


def test_a_card_of_unknown_capability_is_not_called_supported(monkeypatch: pytest.MonkeyPatch):
    assert play(monkeypatch, "", devices=[Device(0, UUID, None)]).one("arch_supported").absence == UNKNOWN


@pytest.mark.parametrize(
    ("capability", "architectures", "by"),
    [
        ((9, 0), ["sm_75", "sm_80", "sm_90"], "sm_90"),
        ((8, 9), ["sm_80", "sm_86", "sm_90"], "sm_80"),
        ((12, 1), ["sm_90", "sm_120"], "sm_120"),
        ((7, 0), ["sm_75", "sm_80"], ""),
        ((8, 0), ["sm_86"], ""),
        ((10, 3), ["sm_100"], "sm_100"),
        ((10, 3), ["sm_100f"], "sm_100f"),
        ((10, 3), ["sm_100a"], ""),
        ((10, 0), ["sm_100a"], "sm_100a"),
        ((12, 0), ["sm_90", "compute_90"], "compute_90"),
        ((8, 6), ["sm_90", "compute_90"], ""),
        ((9, 0), ["garbage", "sm_", "sm_9"], ""),
    ],
)
def test_machine_code_serves_its_major_and_ptx_whatever_is_newer(
    capability: tuple[int, int], architectures: Sequence[str], by: str
):
    supported, named = serves(capability, architectures)

    assert supported is bool(by)
    assert named.startswith(by)


def test_the_doctor_names_the_gpu_that_the_framework_lacks():
    seen = [("system.gpu_count", 2), ("software.device_nodes", 2), ("compute_capability.gpu_count_nvml", 2)]
    lacks = Measurement("preflight", HOST, "devices_missing", 1, "count", {"framework": "torch"}, "", "GPU-second")

    chain = walk([*test_doctor.host(*seen), lacks], test_doctor.OUTCOMES)

    assert test_doctor.is_first_broken(chain, "CUDA context")
    assert "torch sees 1 of 2 GPUs (GPU-second)" in chain.sentence
