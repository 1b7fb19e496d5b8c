"""The reading layer over NVML: an answer is its value, and whatever is not an answer is absent, with the reason."""

from __future__ import annotations

import pytest

from tests.doubles import FUNCTION_NOT_FOUND, GPU_IS_LOST, NOT_SUPPORTED, entry, error, h200, result
from validators.probes import nvml
from validators.probes.nvml import Absent, NvmlFailure, session, sysfs_address
from validators.schema import NOT_APPLICABLE, UNKNOWN


@pytest.mark.parametrize(
    ("code", "cause", "words"),
    [
        (12, "library_missing", "no NVIDIA driver is installed"),
        (9, "driver_not_loaded", "kernel module is not loaded"),
        (18, "version_mismatch", "Driver/library version mismatch"),
        (4, "no_permission", "may not open"),
        (999, "unknown", "Unknown Error"),
    ],
)
def test_each_way_that_nvml_fails_to_start_has_a_name(code: int, cause: str, words: str) -> None:
    with pytest.raises(NvmlFailure, match=words) as failure, session(h200(1, {"nvmlInit()": error(code)})):
        pass
    assert failure.value.cause == cause


def test_a_host_without_pynvml_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with pytest.raises(NvmlFailure, match="cannot be imported") as failure, session():
        pass
    assert failure.value.cause == "binding_missing"


def test_not_supported_is_not_applicable_and_everything_else_is_unknown() -> None:
    kinds = {}
    for code in (NOT_SUPPORTED, 22, FUNCTION_NOT_FOUND, GPU_IS_LOST, 4, 2, 999):
        with session(h200(1, {"nvmlDeviceGetEccMode(gpu0)": error(code)})) as open_session:
            answer = open_session.gpus()[0][0].get("GetEccMode")
        assert isinstance(answer, Absent)
        assert answer.code == code
        assert "nvmlDeviceGetEccMode" in answer.note
        kinds[code] = answer.kind
    assert kinds.pop(NOT_SUPPORTED) == kinds.pop(22) == NOT_APPLICABLE
    assert set(kinds.values()) == {UNKNOWN}


def test_a_function_that_the_binding_lacks_is_unknown() -> None:
    with session(h200(1, {"nvmlDeviceGetRepairStatus*": {"missing": True}})) as open_session:
        answer = open_session.gpus()[0][0].get("GetRepairStatus")
    assert isinstance(answer, Absent)
    assert (answer.kind, answer.code) == (UNKNOWN, FUNCTION_NOT_FOUND)


def test_a_struct_that_the_binding_lacks_is_unknown() -> None:
    with session(h200(1)) as open_session:
        answer = open_session.gpus()[0][0].fill("GetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v99_t")
    assert isinstance(answer, Absent)
    assert answer.kind == UNKNOWN


def test_a_field_that_the_driver_left_untouched_is_unknown_and_not_zero() -> None:
    untouched = {"return": 0, "type": 0, "value": 0.0}
    with session(h200(1, {"field(gpu0,82,0)": untouched})) as open_session:
        found = open_session.gpus()[0][0].fields([(82, 0), (230, 0)])
    assert isinstance(found[82, 0], Absent)
    assert found[82, 0].kind == UNKNOWN
    assert found[230, 0] == 0


def test_fields_are_asked_a_few_at_a_time_and_come_back_under_their_own_ids() -> None:
    double = h200(4, {f"field(gpu0,161,{link})": entry(100 + link) for link in range(18)})
    ids = [(field, link) for field in (161, 162, 163) for link in range(18)]
    assert len(ids) > nvml.FIELDS_AT_ONCE
    with session(double) as open_session:
        found = open_session.gpus()[0][0].fields(ids)
    assert [found[161, link] for link in range(18)] == [100 + link for link in range(18)]
    assert {found[163, link] for link in range(18)} == {0}


def test_a_signed_field_keeps_its_sign() -> None:
    with session(h200(4)) as open_session:
        assert open_session.gpus()[0][0].fields([(193, 0)]) == {(193, 0): -8}


def test_a_gpu_that_cannot_be_reached_is_counted_as_lost_and_the_others_go_on() -> None:
    with session(h200(4, {"nvmlDeviceGetHandleByIndex(2)": error(GPU_IS_LOST)})) as open_session:
        gpus, lost = open_session.gpus()
    assert [gpu.index for gpu in gpus] == [0, 1, 3]
    assert [(one.code, one.note) for one in lost] == [(15, "GPU 2: nvmlDeviceGetHandleByIndex: GPU is lost")]


def test_a_driver_that_cannot_count_its_gpus_does_not_answer() -> None:
    with session(h200(1, {"nvmlDeviceGetCount()": error(999)})) as open_session, pytest.raises(NvmlFailure):
        open_session.gpus()


@pytest.mark.parametrize(("number", "text"), [(13000, "13.0"), (12040, "12.4"), (11080, "11.8")])
def test_the_cuda_version_is_written_as_nvidia_writes_it(number: int, text: str) -> None:
    with session(h200(1, {"nvmlSystemGetCudaDriverVersion_v2()": result(number)})) as open_session:
        assert open_session.cuda_driver() == text


@pytest.mark.parametrize(
    ("given", "sysfs"),
    [
        ("00000000:00:06.0", "0000:00:06.0"),
        ("0000:9B:00", "0000:9b:00.0"),
        ("00000001:C1:00.0", "0001:c1:00.0"),
        ("9b:00.0", "0000:9b:00.0"),
        ("0018:01:00", "0018:01:00.0"),
        ("garbage", "garbage"),
    ],
)
def test_pci_addresses_are_written_as_sysfs_writes_them(given: str, sysfs: str) -> None:
    assert sysfs_address(given) == sysfs


def test_an_older_binding_that_answers_in_bytes_gives_text() -> None:
    assert nvml.text(b"NVIDIA H200") == "NVIDIA H200"


@pytest.mark.parametrize("mark", [2**32 - 1, 2**64 - 1])
def test_nvmls_mark_for_no_value_is_unknown_and_not_a_huge_number(mark: int) -> None:
    for answer in (nvml.number(mark), nvml.number(mark, 1000)):
        assert isinstance(answer, Absent)
        assert answer.kind == UNKNOWN
    with session(h200(1, {"field(gpu0,179,0)": entry(mark)})) as open_session:
        found = open_session.gpus()[0][0].fields([(179, 0)])[179, 0]
    assert isinstance(found, Absent)
