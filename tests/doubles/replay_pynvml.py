"""A DOUBLE of pynvml: it replays NVML's answers from a recording of a real host, with faults laid over them.

Constants, structs and exceptions are the real binding's. A call that the recording has no answer to is a
KeyError, so that a probe cannot change its calls without a new recording (tests/fixtures/nvml/record.py).

A fault is {call: answer}; the call is a key of the recording or a shell pattern of such keys, and the first
that matches wins. Answers: {"result": value}, {"error": NVML code}, {"filled": {member: value}} (laid over the
recorded struct), {"return": .., "type": .., "value": ..} for field(gpu,id,scope), {"recorded": true} (as recorded),
{"missing": true} (this binding has no such function), {"hang": seconds}, {"crash": true} (SIGSEGV).

Python 3.9 and newer, standard library only: it also travels inside a bundle, in pynvml's place.
"""

from __future__ import annotations

import ctypes
import fnmatch
import os
import signal
import time
import types
from collections.abc import Mapping
from typing import Any

Answer = Mapping[str, Any]

_MEMBERS = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}


class Replay(types.ModuleType):
    """The double as a module. `real` is the genuine pynvml."""

    def __init__(self, real: Any, recording: Mapping[str, Any], faults: Mapping[str, Answer] | None = None) -> None:
        super().__init__("pynvml", __doc__)
        self.real = real
        self.about: Mapping[str, str] = recording["about"]
        self.calls: Mapping[str, Answer] = recording["calls"]
        self.faults: Mapping[str, Answer] = faults or {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.real, name)
        if not name.startswith("nvml") or isinstance(found, (type, int)):
            return found
        if self._fault(f"{name}()", f"{name}(*").get("missing"):
            raise AttributeError(name)
        return lambda *args: self._call(name, args)

    def _fault(self, *keys: str) -> Answer:
        for pattern, answer in self.faults.items():
            if any(fnmatch.fnmatchcase(key, pattern) for key in keys):
                return answer
        return {}

    def _answer(self, key: str) -> Answer:
        fault = self._fault(key)
        if "hang" in fault:
            time.sleep(fault["hang"])
        if "crash" in fault:
            os.kill(os.getpid(), signal.SIGSEGV)
        if set(fault) & {"result", "error", "return", "handle"} or ("filled" in fault and key not in self.calls):
            return fault
        if key not in self.calls:
            raise KeyError(f"the recording has no answer to {key}: record again (tests/fixtures/nvml/record.py)")
        recorded = self.calls[key]
        if "filled" in fault and "filled" in recorded:
            return {"filled": {**recorded["filled"], **fault["filled"]}}
        return fault if "filled" in fault else recorded

    def _call(self, name: str, args: tuple[Any, ...]) -> Any:
        if name == "nvmlDeviceGetFieldValues":
            return self._fields(args[0], args[1])
        if name in ("nvmlDeviceGetHandleByUUID", "nvmlDeviceGetHandleByPciBusId"):
            return self._find(name, args[0])
        answer = self._answer(f"{name}({','.join(_argument(one) for one in args)})")
        if "error" in answer:
            raise self.real.NVMLError(answer["error"])
        if "handle" in answer:
            return self._handle(answer["handle"])
        if "filled" in answer:
            _fill(args[-1]._obj, answer["filled"])
            return 0
        return _revive(answer["result"])

    def _handle(self, name: str) -> Any:
        """A device handle of the real type, which points nowhere: gpu0 is the address 1."""
        return ctypes.cast(ctypes.c_void_p(int(name[3:]) + 1), self.real.c_nvmlDevice_t)

    def _fields(self, handle: Any, ids: Any) -> Any:
        entries = (self.real.c_nvmlFieldValue_t * len(ids))()
        whole = self._fault(f"nvmlDeviceGetFieldValues({_argument(handle)},)")
        if "error" in whole:
            raise self.real.NVMLError(whole["error"])
        for position, one in enumerate(ids):
            entry = entries[position]
            entry.fieldId, entry.scopeId = one if isinstance(one, tuple) else (one, 0)
            answer = self._answer(f"field({_argument(handle)},{entry.fieldId},{entry.scopeId})")
            if "error" in answer:
                entry.nvmlReturn = answer["error"]
                continue
            entry.nvmlReturn, entry.valueType = answer["return"], answer["type"]
            setattr(entry.value, _MEMBERS[entry.valueType], answer["value"])
        return entries

    def _find(self, name: str, wanted: Any) -> Any:
        text = wanted.decode() if isinstance(wanted, bytes) else str(wanted)
        for index in range(self._call("nvmlDeviceGetCount", ())):
            handle = self._handle(f"gpu{index}")
            if name.endswith("UUID"):
                here = self._call("nvmlDeviceGetUUID", (handle,))
            else:
                here = self._call("nvmlDeviceGetPciInfo_v3", (handle,)).busId
            if here.lower().endswith(text.lower()):
                return handle
        raise self.real.NVMLError(6)  # NVML_ERROR_NOT_FOUND


def _argument(value: Any) -> str:
    if isinstance(value, ctypes._Pointer):
        return f"gpu{(ctypes.cast(value, ctypes.c_void_p).value or 0) - 1}"
    if type(value).__name__ == "CArgObject":
        return type(value._obj).__name__
    return repr(value)


def _revive(value: Any) -> Any:
    if isinstance(value, list):
        return [_revive(one) for one in value]
    if isinstance(value, dict):
        members: dict[str, Any] = {key: _revive(one) for key, one in value["struct"].items()}
        return types.SimpleNamespace(**members)
    return value


def _fill(struct: Any, members: Mapping[str, Any]) -> None:
    for name, value in members.items():
        if isinstance(value, list):
            array = getattr(struct, name)
            for position, one in enumerate(value):
                array[position] = one
        else:
            setattr(struct, name, value)
