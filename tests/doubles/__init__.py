"""The replaying pynvml: recordings of real H200 hosts (one GPU, four GPUs) with faults laid over them.

h200(1, faults)     a module to put in pynvml's place within this process
overlay(4, faults)  the same as files for provision.bundle.build_bundle(overlay=...), to run on a test host

replay_pynvml.py says how a fault is written; `error(code)` and `value(...)` write the common ones.
"""

from __future__ import annotations

import importlib
import json
import pprint
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.doubles.replay_pynvml import Answer, Replay

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "nvml"

NOT_SUPPORTED, FUNCTION_NOT_FOUND, GPU_IS_LOST = 3, 13, 15


def recording(n_gpus: int) -> dict[str, Any]:
    """The recording of the H200 host with one or with four GPUs."""
    found: dict[str, Any] = json.loads((FIXTURES / f"h200-x{n_gpus}-580.159.04.json").read_text())
    return found


def h200(n_gpus: int = 1, faults: Mapping[str, Answer] | None = None) -> Replay:
    """A pynvml that answers as the recorded host did, but for the faults."""
    return Replay(importlib.import_module("pynvml"), recording(n_gpus), faults)


def overlay(n_gpus: int = 1, faults: Mapping[str, Answer] | None = None) -> dict[str, bytes]:
    """Files that make a bundle answer as the recorded host did: pynvml.py is the double, _real_pynvml.py the real."""
    double = (Path(__file__).parent / "replay_pynvml.py").read_text()
    genuine = Path(str(importlib.import_module("pynvml").__file__)).read_bytes()
    tail = (
        "\n\nimport json as _json\n\nimport _real_pynvml\n\n"
        f"_RECORDING = _json.loads({json.dumps(recording(n_gpus))!r})\n"
        f"_FAULTS = {pprint.pformat(dict(faults or {}))}\n"
        "_REPLAY = Replay(_real_pynvml, _RECORDING, _FAULTS)\n\n\n"
        "def __getattr__(name: str) -> Any:\n    return getattr(_REPLAY, name)\n"
    )
    return {"pynvml.py": (double + tail).encode(), "_real_pynvml.py": genuine}


def error(code: int) -> Answer:
    """The call fails with this NVML error."""
    return {"error": code}


def result(value: Any) -> Answer:
    """The call answers this; a struct is {"struct": {member: value}}."""
    return {"result": value}


def filled(**members: Any) -> Answer:
    """The call fills in these members of its struct, and the others as recorded."""
    return {"filled": members}


def entry(value: int) -> Answer:
    """The field has this value (an unsigned number)."""
    return {"return": 0, "type": 3, "value": value}
