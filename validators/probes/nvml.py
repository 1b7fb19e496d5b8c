"""NVML, read so that an absent answer can never look like a good one.

Every call gives its value or an `Absent` with the reason. "Not Supported" is `not_applicable`: this card has
no such property. Everything else that is not a value (a function that this driver or binding lacks, a GPU
that is lost) is `unknown`. The binding (pynvml) is carried in the bundle; tests put a recording in its place.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from validators.schema import NOT_APPLICABLE, UNKNOWN, Scalar

INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
DRIVER_NOT_LOADED = 9
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
CORRUPTED_INFOROM = 14
GPU_IS_LOST = 15
RESET_REQUIRED = 16
LIB_RM_VERSION_MISMATCH = 18
VGPU_ECC_NOT_SUPPORTED = 22
ARGUMENT_VERSION_MISMATCH = 25

NOT_AVAILABLE = (2**32 - 1, 2**64 - 1)
"""NVML_VALUE_NOT_AVAILABLE is -1, seen through an unsigned number of 32 or 64 bits."""

FIELDS_AT_ONCE = 32

_CAUSES: Mapping[int, Tuple[str, str]] = {
    LIBRARY_NOT_FOUND: ("library_missing", "libnvidia-ml.so.1 is missing: no NVIDIA driver is installed"),
    DRIVER_NOT_LOADED: ("driver_not_loaded", "the NVIDIA kernel module is not loaded"),
    LIB_RM_VERSION_MISMATCH: (
        "version_mismatch",
        "Driver/library version mismatch: the loaded kernel module is not of libnvidia-ml's version",
    ),
    NO_PERMISSION: ("no_permission", "this user may not open the NVIDIA device nodes"),
}


class NvmlFailure(Exception):
    """NVML does not answer at all. `cause` is one word, the text says what NVML said and what that means."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


@dataclass(frozen=True)
class Absent:
    """No value: `kind` is "not_applicable" or "unknown", `note` why; `code` is NVML's own number (0: none)."""

    kind: str
    note: str
    code: int = 0


Reading = Union[Scalar, Absent]


@dataclass(frozen=True)
class Found:
    """One metric as it was read, in the metric's unit."""

    metric: str
    reading: Reading
    labels: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


class Nvml:
    """An open NVML session. `call` never raises for what NVML answers."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def call(self, name: str, *args: Any) -> Any:
        """The answer of pynvml's function `name`, or Absent."""
        function = getattr(self.module, name, None)
        if function is None:
            return Absent(UNKNOWN, f"{name}: this NVML binding has no such function", FUNCTION_NOT_FOUND)
        try:
            return function(*args)
        except self.module.NVMLError as problem:
            return absent(name, problem)
        except UnicodeDecodeError:
            return Absent(UNKNOWN, f"{name}: the answer is not text")

    def fill(self, name: str, handle: Any, struct: str) -> Any:
        """A call that fills in a struct of the binding (which sets its version): the struct, or Absent."""
        made = getattr(self.module, struct, None)
        if made is None:
            return Absent(UNKNOWN, f"{name}: this NVML binding has no {struct}", FUNCTION_NOT_FOUND)
        filled = made()
        answer = self.call(name, handle, ctypes.byref(filled))
        return answer if isinstance(answer, Absent) else filled

    def fields(self, handle: Any, ids: Sequence[Tuple[int, int]]) -> Dict[Tuple[int, int], Union[int, Absent]]:
        """Whole-number field values by (field id, scope).

        A driver can leave an entry untouched: nvmlReturn 0, type double, value 0.0. Seen on 580.159.04 with fields
        187 to 196 among 140 asked at once; ten at once were answered. Such an entry is unknown, not zero, and
        few are asked at a time.
        """
        found: Dict[Tuple[int, int], Union[int, Absent]] = {}
        for start in range(0, len(ids), FIELDS_AT_ONCE):
            some = list(ids[start : start + FIELDS_AT_ONCE])
            answer = self.call("nvmlDeviceGetFieldValues", handle, some)
            for position, one in enumerate(some):
                found[one] = answer if isinstance(answer, Absent) else self._field(answer[position])
        return found

    def _field(self, entry: Any) -> Union[int, Absent]:
        name = f"NVML field {entry.fieldId}"
        if entry.nvmlReturn:
            return absent(name, self.module.NVMLError(entry.nvmlReturn))
        member = {1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}.get(entry.valueType)
        if member is None or not hasattr(entry.value, member):
            return Absent(UNKNOWN, f"{name}: the driver left the entry empty")
        return _whole(getattr(entry.value, member), name)

    def driver_version(self) -> Union[str, Absent]:
        """Such as "580.159.04"."""
        return text(self.call("nvmlSystemGetDriverVersion"))

    def library_version(self) -> Union[str, Absent]:
        """Version of libnvidia-ml, such as "13.580.159.04"."""
        return text(self.call("nvmlSystemGetNVMLVersion"))

    def cuda_driver(self) -> Union[str, Absent]:
        """Newest CUDA that the driver serves, such as "13.0"."""
        number = self.call("nvmlSystemGetCudaDriverVersion_v2")
        if isinstance(number, Absent):
            number = self.call("nvmlSystemGetCudaDriverVersion")
        return number if isinstance(number, Absent) else f"{number // 1000}.{number % 1000 // 10}"

    def gpus(self) -> Tuple[List[Gpu], List[Absent]]:
        """The GPUs that answer, and for each that NVML counts but cannot reach the reason. Raises NvmlFailure."""
        count = self.call("nvmlDeviceGetCount")
        if isinstance(count, Absent):
            raise NvmlFailure("unknown", f"NVML cannot count the GPUs: {count.note}")
        found: List[Gpu] = []
        lost: List[Absent] = []
        for index in range(count):
            handle = self.call("nvmlDeviceGetHandleByIndex", index)
            uuid = handle if isinstance(handle, Absent) else text(self.call("nvmlDeviceGetUUID", handle))
            if isinstance(uuid, Absent):
                lost.append(Absent(uuid.kind, f"GPU {index}: {uuid.note}", uuid.code))
            else:
                found.append(Gpu(self, handle, index, uuid))
        return found, lost


class Gpu:
    """One GPU that answers; `uuid` is the subject of its measurements."""

    def __init__(self, nvml: Nvml, handle: Any, index: int, uuid: str) -> None:
        self.nvml = nvml
        self.handle = handle
        self.index = index
        self.uuid = uuid

    def get(self, name: str, *args: Any) -> Any:
        """The answer of `nvmlDevice<name>` for this GPU, or Absent."""
        return self.nvml.call(f"nvmlDevice{name}", self.handle, *args)

    def fill(self, name: str, struct: str) -> Any:
        """The struct that `nvmlDevice<name>` fills in for this GPU, or Absent."""
        return self.nvml.fill(f"nvmlDevice{name}", self.handle, struct)

    def fields(self, ids: Iterable[Tuple[int, int]]) -> Dict[Tuple[int, int], Union[int, Absent]]:
        """Field values of this GPU by (field id, scope)."""
        return self.nvml.fields(self.handle, list(ids))

    def pci_address(self) -> Union[str, Absent]:
        """As sysfs writes it: "0000:00:06.0"."""
        for name in ("GetPciInfo_v3", "GetPciInfo"):
            info = self.get(name)
            if not isinstance(info, Absent):
                return sysfs_address(_string(info.busId))
        return info  # type: ignore[no-any-return]  # pynvml has no types; here it is an Absent


@contextmanager
def session(module: Optional[Any] = None) -> Iterator[Nvml]:
    """NVML, initialised and shut down again. Raises NvmlFailure where it does not answer."""
    if module is None:
        try:
            module = importlib.import_module("pynvml")
        except ImportError as problem:
            raise NvmlFailure("binding_missing", f"pynvml cannot be imported: {problem}") from None
    try:
        module.nvmlInit()
    except module.NVMLError as problem:
        cause, meaning = _CAUSES.get(getattr(problem, "value", 0), ("unknown", "nvmlInit failed"))
        raise NvmlFailure(cause, f"{problem} ({meaning})") from None
    try:
        yield Nvml(module)
    finally:
        with suppress(module.NVMLError):  # nothing is read after this
            module.nvmlShutdown()


def absent(name: str, problem: Any) -> Absent:
    """What an NVMLError means for the value that was asked for."""
    code = int(getattr(problem, "value", 0))
    kind = NOT_APPLICABLE if code in (NOT_SUPPORTED, VGPU_ECC_NOT_SUPPORTED) else UNKNOWN
    return Absent(kind, f"{name}: {problem}", code)


def _whole(value: int, name: str) -> Union[int, Absent]:
    return Absent(UNKNOWN, f"{name}: {value} is NVML's mark for no value") if value in NOT_AVAILABLE else int(value)


def text(answer: Any) -> Union[str, Absent]:
    """A string answer; older bindings give bytes."""
    return answer if isinstance(answer, Absent) else _string(answer)


def number(answer: Any, divide: int = 1) -> Union[int, float, Absent]:
    """A number answer in another unit: `divide` is how many of NVML's units make one of ours."""
    if isinstance(answer, Absent):
        return answer
    if answer in NOT_AVAILABLE:
        return Absent(UNKNOWN, f"NVML answers {answer}, its mark for no value")
    return int(answer) if divide == 1 else float(answer) / divide


def flag(answer: Any) -> Union[bool, Absent]:
    """A yes/no answer."""
    return answer if isinstance(answer, Absent) else bool(answer)


def part(answer: Any, which: Union[int, str]) -> Any:
    """An element (by number) or a member (by name) of an answer that has several."""
    if isinstance(answer, Absent):
        return answer
    return answer[which] if isinstance(which, int) else getattr(answer, which)


def sysfs_address(bus_id: str) -> str:
    """NVML's "00000000:00:06.0" or the kernel log's "0000:9B:00" as sysfs writes it: "0000:00:06.0"."""
    match = re.fullmatch(r"(?:([0-9A-Fa-f]{1,8}):)?([0-9A-Fa-f]{1,2}):([0-9A-Fa-f]{1,2})(?:\.([0-7]))?", bus_id.strip())
    if match is None:
        return bus_id.strip().lower()
    domain, bus, device, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{int(bus, 16):02x}:{int(device, 16):02x}.{function or '0'}"


def _string(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
