"""What each phase does to the hosts of a wave. Every one may be done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from provision.errors import BringupError, RunDirectoryError
from provision.hosts import Host
from provision.report.model import HostReport
from provision.report.text import plain
from provision.transport import connect
from provision.upgrade.compare import RATES, compare, driver_of, is_version, not_fit
from provision.upgrade.drain import command_of, run_hooks
from provision.upgrade.journal import HostState, was_cut_off
from provision.upgrade.measure import Measuring, When
from provision.upgrade.model import CONSOLE_VARIABLE, DRAIN_VARIABLE, UNDRAIN_VARIABLE, Hooks, Options, Result
from provision.upgrade.notes import Notes
from provision.upgrade.phases import UNREACHABLE, Phase
from provision.upgrade.plays import Plays

Done = Callable[[str], None]
BOOT_ID = "/proc/sys/kernel/random/boot_id"
_SENTENCES = 4


@dataclass(frozen=True)
class Actions:
    """The phases, ready to run. `variables`: what the roles are given, by host. `roles`: those of the install phase."""

    hosts: Mapping[str, Host]
    options: Options
    plays: Plays
    measuring: Measuring
    variables: Mapping[str, Mapping[str, object]]
    roles: Sequence[str]
    snapshot: str
    notes: Notes
    hooks: Hooks = Hooks()  # noqa: RUF009  frozen
    settle_s: float = 30.0
    rollback: bool = False
    """Whether it is `bringup rollback`: there is nothing that was measured before."""

    def run(self, phase: Phase, states: Mapping[str, HostState], name: str, done: Done) -> dict[str, Result]:
        """Do a phase on the hosts of `states`. `name`: what its play's events are called. `done`: told as hosts end."""
        names = list(states)
        ways: Mapping[Phase, Callable[[], dict[str, Result]]] = {
            "before": lambda: self._before(names),
            "snapshot": lambda: self._snapshot(names, name, done),
            "drain": lambda: self._drain(names, name),
            "install": lambda: self._install(states, name, done),
            "reboot": lambda: self._reboot(states, name),
            "validate": lambda: self._validate("after", names),
            "hold": lambda: self._play(names, name, ("hold",), 300, done),
            "restore": lambda: self._restore(names, name, done),
            "reboot_back": lambda: self._reboot(states, name),
            "validate_back": lambda: self._validate("back", names),
            "undrain": lambda: (
                self._play(names, name, ("release",), 300, _ignore)
                | self._hooks(names, UNDRAIN_VARIABLE, self.hooks.undrain)
            ),
        }
        return ways[phase]()

    def wanted(self, host: str) -> str:
        """The version that the host shall have, or the branch where any of it will do."""
        own = self.variables.get(host, {})
        return str(own.get("nvidia_driver_version") or own.get("nvidia_driver_branch") or self.options.to)

    def _before(self, names: Sequence[str]) -> dict[str, Result]:
        return {name: self._fit(report) for name, report in self.measuring.run("before", names).items()}

    def _fit(self, report: HostReport) -> Result:
        why = not_fit(report)
        if why and not (self.options.even_if_failing and driver_of(report)):
            return Result(False, why, {**_summary(report), **_lost(report)})
        return Result(True, why, _summary(report))

    def _snapshot(self, names: Sequence[str], name: str, done: Done) -> dict[str, Result]:
        return self._play(
            names,
            name,
            ("snapshot",),
            1800,
            done,
            snapshot_name=self.snapshot,
            snapshot_without_way_back=self.options.without_way_back,
            bringup_upgrade_folder=str(self.notes.folder),
        )

    def _drain(self, names: Sequence[str], name: str) -> dict[str, Result]:
        """The site's command where there is one; and in any case a look at the GPUs."""
        results = self._hooks(names, DRAIN_VARIABLE, self.hooks.drain)
        drained = [host for host, result in results.items() if result.ok]
        if drained:
            results |= self._play(drained, name, ("idle",), 300, _ignore)
        return results

    def _hooks(self, names: Sequence[str], variable: str, given: str) -> dict[str, Result]:
        commands = {name: (self.hosts[name], command_of(self.hosts[name], variable, given)) for name in names}
        found = {name: Result(True) for name in names}
        return found | run_hooks({name: one for name, one in commands.items() if one[1]}, self.options.drain_timeout_s)

    def _install(self, states: Mapping[str, HostState], name: str, done: Done) -> dict[str, Result]:
        names = list(states)
        again = any(was_cut_off(state) for state in states.values())
        return self._play(
            names,
            name,
            ("install",),
            2.0 * self.options.install_timeout_s + 600,
            done,
            bringup_plan={host: dict(self.variables.get(host, {})) for host in names},
            bringup_upgrade_id=self.snapshot,
            bringup_upgrade_again=again,
            bringup_install_timeout_s=self.options.install_timeout_s,
            bringup_upgrade_roles=list(self.roles),
        )

    def _restore(self, names: Sequence[str], name: str, done: Done) -> dict[str, Result]:
        return self.plays.run(
            "rollback.yml",
            name,
            names,
            deadline_s=4800,
            done=done,
            restore_snapshot=self.snapshot,
            bringup_upgrade_folder=str(self.notes.folder),
        )

    def _reboot(self, states: Mapping[str, HostState], name: str) -> dict[str, Result]:
        results = self._rebooted_already([state for state in states.values() if was_cut_off(state)])
        names = [host for host in states if host not in results]
        if not names:
            return results
        seconds = self.options.reboot_timeout_s
        played = self._play(names, name, ("reboot",), 2.0 * seconds + 300, _ignore, bringup_reboot_timeout_s=seconds)
        for host, result in played.items():
            results[host] = result if result.ok else self._after_bad_reboot(host, result)
        return results

    def _rebooted_already(self, states: Sequence[HostState]) -> dict[str, Result]:
        """Those whose operator was cut off while they rebooted, and that are in another boot since."""

        def one(state: HostState) -> bool:
            boot = self.notes.boot_before(state)
            return bool(boot) and self._boot_within(state.name, self.options.reboot_timeout_s) not in ("", boot)

        if not states:
            return {}
        with ThreadPoolExecutor(16, thread_name_prefix="boot") as pool:
            answers = zip(states, pool.map(one, states), strict=True)
            return {state.name: Result(True, "it had rebooted already") for state, again in answers if again}

    def _boot_within(self, name: str, seconds: float) -> str:
        """The boot that the host is in, once it answers; empty where it does not in time."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.boot_id(name)
            except BringupError:
                if time.monotonic() > deadline:
                    return ""
                time.sleep(3)

    def _after_bad_reboot(self, name: str, result: Result) -> Result:
        """Is it there all the same? Then it can be brought back; if not, somebody has to look at its console."""
        try:
            self.boot_id(name)
        except BringupError as problem:
            console = self.hosts[name].variables.get(CONSOLE_VARIABLE, "")
            where = (
                f"its console: {plain(str(console), 200)}" if console else "its console (BMC, serial console, cloud)"
            )
            text = f"it did not come back within {self.options.reboot_timeout_s} s: {problem.message}. Look at {where}"
            return Result(False, text, {UNREACHABLE: True})
        return replace(result, data={})

    def boot_id(self, name: str) -> str:
        """The boot that the host is in. Raises BringupError where it does not answer."""
        with connect(self.hosts[name], host_keys=self.options.host_keys) as transport:
            return transport.run(["cat", BOOT_ID]).stdout.decode("ascii", "replace").strip()[:64]

    def answers(self, name: str) -> bool:
        """Whether the host can be reached."""
        try:
            return bool(self.boot_id(name))
        except BringupError:
            return False

    def _validate(self, when: When, names: Sequence[str]) -> dict[str, Result]:
        before = {} if self.rollback else self._baseline(names)
        results = self._compared(when, names, before)
        again = [name for name, result in results.items() if not result.ok and not result.data.get(UNREACHABLE)]
        if again and self.settle_s:  # a fabric that is still being set up, a service that starts late
            time.sleep(self.settle_s)
            results |= self._compared(when, again, before)
        return results

    def _baseline(self, names: Sequence[str]) -> Mapping[str, HostReport]:
        """What the hosts measured before. Raises RunDirectoryError: without it nobody can say what they are now."""
        before = self.measuring.read("before", names)
        gone = [name for name in names if name not in before or not before[name].measurements]
        if gone:
            raise RunDirectoryError(
                f"what {', '.join(gone[:5])} measured before is not in {self.measuring.folder / 'before'} any more",
                "put the files back, or bring the hosts back: bringup rollback HOST -i INVENTORY",
            )
        return before

    def _compared(self, when: When, names: Sequence[str], before: Mapping[str, HostReport]) -> dict[str, Result]:
        results = {}
        for name, report in self.measuring.run(when, names).items():
            found = self._worse(when, name, before.get(name), report)
            data = {**_summary(report), "worse": list(found[:50]), **_lost(report)}
            shown = _SENTENCES if driver_of(report) else 1  # no driver: all else follows from that
            more = f" ({len(found) - shown} more that follow)" if len(found) > shown else ""
            results[name] = Result(not found, "; ".join(found[:shown]) + more, data)
        return results

    def _worse(self, when: When, name: str, before: HostReport | None, report: HostReport) -> tuple[str, ...]:
        if before is not None:
            wanted = self.wanted(name) if when == "after" else driver_of(before)
            return tuple(
                one.sentence for one in compare(before, report, driver=wanted, tolerance=self.options.tolerance)
            )
        # There is nothing to compare with but the snapshot's own word for its driver.
        wanted, found = self.notes.snapshot_driver(name), driver_of(report)
        if not is_version(found, wanted):
            return (f"the driver that runs is {found or 'none'}, and the snapshot had {wanted or 'one unknown'}",)
        why = not_fit(report)
        return (why,) if why else ()

    def _play(
        self, names: Sequence[str], name: str, tags: Sequence[str], deadline_s: float, done: Done, **variables: object
    ) -> dict[str, Result]:
        return self.plays.run("upgrade.yml", name, names, tags=tags, deadline_s=deadline_s, done=done, **variables)


def _ignore(_host: str) -> None:
    return


def _summary(report: HostReport) -> dict[str, object]:
    """What the report shows of a measurement."""
    rates = {
        f"{one.check}.{one.metric} {one.subject}": one.value
        for one in report.measurements
        if one.unit in RATES and one.value is not None
    }
    return {
        "driver": driver_of(report),
        "status": report.status,
        "headline": plain(report.headline, 400),
        "gpus": [f"{plain(gpu.name, 60)} {plain(gpu.uuid, 60)}".strip() for gpu in report.gpus],
        "rates": {plain(name, 120): value for name, value in list(rates.items())[:64]},
    }


def _lost(report: HostReport) -> dict[str, object]:
    silent = not report.measurements and any(one.check == "connection" for one in report.verdicts)
    return {UNREACHABLE: True} if silent else {}
