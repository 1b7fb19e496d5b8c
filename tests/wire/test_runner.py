"""The runner: whatever a check does, it ends as that check's outcome and nobody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.bundle import build_bundle
from tests.wire.planting import GOOD, HANG, SEGV, bundle_of, outcomes, plan_of, planted, records_of, run, wire
from validators import lease
from validators.runner import Runner
from validators.schema import Bye, Hello, Measurement, Outcome, Progress, Record


def test_a_good_check_is_hello_measurement_outcome_bye(tmp_path: Path) -> None:
    records = run(tmp_path, {"x_good": GOOD})
    assert [type(one) for one in records if not isinstance(one, Progress)] == [Hello, Measurement, Outcome, Bye]
    assert records[-1] == Bye(len(records) - 1)
    assert outcomes(records)["x_good"].status == "ran"


FAULTS = {
    "a segmentation fault names the signal and the place": (SEGV, "crashed: SIGSEGV in x_bad (x_bad.py, line 8)"),
    "an abort names its signal": ("import os\nos.abort()", "crashed: SIGABRT"),
    "an exception is quoted": ("raise RuntimeError('card on fire')", "RuntimeError: card on fire (in x_bad, line 6)"),
    "sys.exit(0) is no outcome": ("import sys\nsys.exit(0)", "ended without an outcome"),
    "os._exit(0) is no outcome": ("import os\nos._exit(0)", "ended without an outcome"),
    "an exit status is named with the last words": (
        "import os, sys\nsys.stderr.write('no such GPU\\n')\nsys.stderr.flush()\nos._exit(3)",
        "exited with status 3; its last words: no such GPU",
    ),
    "garbage on the records' descriptor": (
        "import os\nfrom validators.child import _RECORDS\nos.write(_RECORDS[0], b'garbage\\n')\nos._exit(0)",
        "sent what cannot be used: not JSON",
    ),
    "half a record": (
        "import os\nfrom validators.child import _RECORDS\nos.write(_RECORDS[0], b'{\"type\":')\nos._exit(0)",
        "ended in the middle of a record",
    ),
    "an endless line": (
        "import os\nfrom validators.child import _RECORDS\nwhile True: os.write(_RECORDS[0], b'x' * 65536)",
        "sent what cannot be used: a line of more than",
    ),
    "NaN is refused where it is measured": ("ctx.measure('speed', float('nan'))", "SchemaError: measurement.value"),
    "a metric that is not declared": ("ctx.measure('m', 1)", "KeyError: 'm' (in measure"),
    "a unit that is not the catalogue's": (
        "from validators.schema import Measurement\n"
        "ctx.forward(Measurement('x_bad', 'host', 'speed', 4.8, 'Mbit/s'))\nimport time\ntime.sleep(600)",
        "sent what cannot be used: 'speed' in Mbit/s; the catalogue says: GB/s",
    ),
    "another check's name": (
        "from validators.schema import Measurement\n"
        "ctx.forward(Measurement('x_good', 'host', 'n', 4, 'count'))\nimport time\ntime.sleep(600)",
        "sent what cannot be used: a record of another check, 'x_good'",
    ),
    "a bye of its own": (
        "from validators.schema import Bye\nctx.forward(Bye(2))\nimport time\ntime.sleep(600)",
        "sent what cannot be used: a record that only the runner may send",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_that_checks_error_and_nobody_elses(tmp_path: Path, fault: str) -> None:
    body, detail = FAULTS[fault]
    records = run(tmp_path, {"x_bad": body, "x_good": GOOD})
    ended = outcomes(records)
    assert ended["x_bad"].status == "error"
    assert detail in ended["x_bad"].detail
    assert ended["x_good"].status == "ran"
    assert isinstance(records[-1], Bye)


def test_a_hang_is_ended_at_its_deadline_and_says_where_it_hung(tmp_path: Path) -> None:
    records = run(tmp_path, {"x_hang": HANG, "x_good": GOOD}, timeout_s=3.0)
    assert outcomes(records)["x_hang"].detail == "timed out after 3 s in x_hang (x_hang.py, line 8)"
    assert outcomes(records)["x_hang"].status == "error"
    assert outcomes(records)["x_good"].status == "ran"
    assert any(isinstance(one, Measurement) and one.check == "x_hang" for one in records), "what it measured stays"


def test_a_check_that_cannot_be_imported_is_its_own_error(tmp_path: Path) -> None:
    overlay = {**planted({"x_good": GOOD}), "validators/checks/x_typo.py": b"def x_typo(:\n"}
    with wire(tmp_path, build_bundle(overlay), plan_of(["x_typo", "x_good"])) as process:
        ended = outcomes(records_of(process))
    assert "SyntaxError" in ended["x_typo"].detail
    assert ended["x_good"].status == "ran"


def test_a_check_that_the_bundle_does_not_have_is_an_error(tmp_path: Path) -> None:
    with wire(tmp_path, bundle_of({"x_good": GOOD}), plan_of(["x_nope", "x_good"])) as process:
        ended = outcomes(records_of(process))
    assert "this bundle has no check 'x_nope'" in ended["x_nope"].detail
    assert ended["x_good"].status == "ran"


def test_a_crash_after_the_check_was_done_does_not_undo_it(tmp_path: Path) -> None:
    body = "import atexit, os\natexit.register(os.abort)\n" + GOOD
    assert outcomes(run(tmp_path, {"x_late": body}))["x_late"].status == "ran"


def test_a_crash_between_two_gpus_keeps_the_first_ones_outcome(tmp_path: Path) -> None:
    body = "with ctx.subject('GPU-1'):\n    ctx.measure('n', 1, 'GPU-1')\nimport os\nos.abort()"
    records = run(tmp_path, {"x_gpus": body})
    ended = {(one.subject, one.status) for one in records if isinstance(one, Outcome)}
    assert ended == {("GPU-1", "ran"), ("host", "error")}


def test_a_flood_of_records_is_cut_off(tmp_path: Path) -> None:
    records = run(tmp_path, {"x_flood": "while True: ctx.measure('n', 1)", "x_good": GOOD})
    ended = outcomes(records)
    assert "more than 50000 records or 16 MiB" in ended["x_flood"].detail
    assert ended["x_good"].status == "ran"
    assert sum(isinstance(one, Measurement) for one in records) <= 50_001


def test_a_flood_of_words_is_cut_off_and_the_check_still_counts(tmp_path: Path) -> None:
    body = "import os\nfor _ in range(200): os.write(1, b'noise' * 20000)\n" + GOOD
    with wire(tmp_path, bundle_of({"x_loud": body}), plan_of(["x_loud"])) as process:
        assert outcomes(records_of(process))["x_loud"].status == "ran"
        assert process.stderr
        assert len(process.stderr.read()) == 64 * 1024


def test_what_a_check_prints_is_not_a_record(tmp_path: Path) -> None:
    body = 'import os\nprint(\'{"type":"bye","count":1}\', flush=True)\nos.system("echo hello")\n' + GOOD
    assert outcomes(run(tmp_path, {"x_prints": body}))["x_prints"].status == "ran"


def test_load_checks_run_one_at_a_time_after_the_others(tmp_path: Path) -> None:
    note = f"import time\nopen({str(tmp_path / 'order')!r}, 'a').write({{0!r}} + '\\n')\ntime.sleep(0.3)\n"
    note += f"open({str(tmp_path / 'order')!r}, 'a').write('end ' + {{0!r}} + '\\n')\n"
    loads = planted({name: note.format(name) for name in ("x_load1", "x_load2")}, level=2)
    light = planted({"x_light": note.format("x_light")}, level=1)
    with wire(tmp_path, build_bundle({**loads, **light}), plan_of(["x_load1", "x_load2", "x_light"])) as process:
        records_of(process)
    said = (tmp_path / "order").read_text().split("\n")
    assert said[:6] == ["x_light", "end x_light", "x_load1", "end x_load1", "x_load2", "end x_load2"]


def test_light_checks_run_side_by_side(tmp_path: Path) -> None:
    meet = (
        "import os, time\nopen({here!r} + '/' + ctx.info.name, 'w').close()\nend = time.monotonic() + 15\n"
        "while not os.path.exists({here!r} + '/{other}'):\n    assert time.monotonic() < end\n    time.sleep(0.01)"
    )
    here = str(tmp_path)
    bodies = {
        "x_one": meet.format(here=here, other="x_two"),
        "x_two": meet.format(here=here, other="x_one"),
    }
    assert {one.status for one in outcomes(run(tmp_path, bodies)).values()} == {"ran"}


def test_the_plans_deadline_ends_what_runs_and_what_waits(tmp_path: Path) -> None:
    overlay = planted({"x_long": HANG, "x_later": GOOD}, level=2)
    with wire(tmp_path, build_bundle(overlay), plan_of(["x_long", "x_later"], deadline_s=2.0)) as process:
        records = records_of(process)
    ended = outcomes(records)
    assert ended["x_long"].detail.startswith("the plan's deadline of 2 s passed")
    assert ended["x_later"].status == "error"
    assert isinstance(records[-1], Bye)


def test_a_long_check_is_heard_of_every_few_seconds(tmp_path: Path) -> None:
    records = run(tmp_path, {"x_long": "import time\ntime.sleep(7)"})
    assert any(isinstance(one, Progress) and one.message.startswith("running for") for one in records)


class _Deathless(lease.Family):
    """Signals do nothing, as to a process that is stuck inside the driver."""

    def end(self, pid: int) -> None: ...

    def end_all(self) -> None:
        """Only what it started: below this process are the tests' own servers too."""
        for pid in tuple(self._pids):
            super().end(pid)


def test_a_process_that_cannot_be_killed_does_not_hold_up_the_others(tmp_path: Path) -> None:
    overlay = planted({"x_stuck": "import signal, time\nsignal.signal(signal.SIGUSR1, signal.SIG_IGN)\n" + HANG})
    root = str(tmp_path / "bundle.pyz")
    Path(root).write_bytes(build_bundle({**overlay, **planted({"x_good": GOOD})}).data)
    records: list[Record] = []
    family = _Deathless()
    try:
        Runner(plan_of(["x_stuck", "x_good"], timeout_s=2.0), records.append, family, root).run()
    finally:
        family.end_all()
    assert "cannot be killed, it is stuck in the kernel" in outcomes(records)["x_stuck"].detail
    assert outcomes(records)["x_good"].status == "ran"
