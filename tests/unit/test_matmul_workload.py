"""What the matmul workload sends: for each format, over all of them, and where something cannot be measured."""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.doubles.faulty_products import Faulty, spoil
from validators.schema import NOT_APPLICABLE, UNKNOWN, Measurement, Record
from validators.workloads import exact, matmul
from validators.workloads.kinds import Kind, kinds

CPU = torch.device("cpu")


N = 128


def test_a_wrong_known_answer_is_told() -> None:
    assert exact.known_answer(list(kinds().values()), CPU) == []


def test_formats_that_take_no_small_matrix_have_no_known_answer_rather_than_a_right_one() -> None:
    records: list[Record] = []
    matmul.main({"subject": "host", "dtypes": "int8", "seconds": 0.01, "size": 256}, records.append)
    found = {one.metric: one for one in records if isinstance(one, Measurement)}
    assert (found["known_answer"].value, found["known_answer"].absence) == (None, NOT_APPLICABLE)
    assert found["exact_integer"].value is True


def test_where_no_format_applies_nothing_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "applicable", lambda device, names: ([], [(kinds()["fp8"], "this card has none")]))
    records: list[Record] = []
    matmul.main({"subject": "host", "dtypes": "fp8"}, records.append)
    assert not [one for one in records if isinstance(one, Measurement) and one.value is not None]


def emitted(monkeypatch: pytest.MonkeyPatch, **formats: Kind) -> dict[str, Measurement]:
    """What the workload sends for these formats on the CPU."""
    monkeypatch.setattr(matmul, "kinds", lambda: formats)
    records: list[Record] = []
    matmul.main({"dtypes": ",".join(formats), "size": N, "seconds": 0.02}, records.append)
    return {one.metric: one for one in records if isinstance(one, Measurement)}


class Unsupported(Faulty):
    def multiply(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        raise RuntimeError("torch._scaled_mm is only supported on CUDA devices with compute capability >= 9.0")


def unsupported(name: str) -> Kind:
    values = {field.name: getattr(kinds()[name], field.name) for field in dataclasses.fields(Kind)}
    return Unsupported(**values)


def test_a_format_that_torch_cannot_do_is_unknown_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found = emitted(monkeypatch, fp32=kinds()["fp32"], fp8=unsupported("fp8"))
    assert found["throughput_fp8"].absence == UNKNOWN
    assert "compute capability >= 9.0" in found["throughput_fp8"].note
    assert float(str(found["throughput_cpu_fp32"].value)) > 0
    assert found["exact_integer"].absence == UNKNOWN
    assert found["products_wrong"].value == 0


def test_a_device_on_which_nothing_runs_is_an_error_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"compute capability >= 9\.0"):
        emitted(monkeypatch, fp8=unsupported("fp8"))


def test_wrong_products_are_counted_over_all_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    def negate(_number: int, out: Tensor) -> None:
        out[0, 0] = -out[0, 0]

    found = emitted(monkeypatch, fp32=kinds()["fp32"], bf16=spoil(kinds()["bf16"], negate))
    assert found["exact_integer"].value is False
    assert "bf16: 1 of" in found["exact_integer"].note
    assert int(str(found["products_wrong"].value)) > 0
    assert found["products_wrong"].note.startswith("bf16: product 1,")


def test_an_unknown_dtype_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="no such dtype: bf61; there are fp64"):
        matmul.main({"dtypes": "bf61"}, lambda _record: None)


def test_formats_newer_than_the_card_are_not_applicable_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    chosen, absent = matmul.applicable(torch.device("cuda"), [])
    assert [kind.name for kind in chosen] == ["fp64", "fp32", "fp16", "int8"]
    assert {kind.name: why for kind, why in absent}["fp8"] == (
        "fp8 tensor cores came with compute capability 8.9; this card has 7.5"
    )


def test_the_cublas_of_a_process_is_told_by_itself_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exact.cublas() == "", "this torch has none"
    library = tmp_path / "libcublasLt.so.13"
    library.write_text("no library")
    maps = tmp_path / "maps"
    maps.write_text(f"7f00-7f01 r-xp 00000000 fe:01 42                         {library}\n")
    assert exact.cublas(str(maps)) == ""
    stand_in = SimpleNamespace(cublasLtGetVersion=lambda: 130002)  # no cuBLAS is on this machine
    monkeypatch.setattr(ctypes, "CDLL", {str(library): stand_in}.__getitem__)
    assert exact.cublas(str(maps)) == "130002"
