"""What each phase does to the hosts of a wave. Every one may be done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from provision.errors import BringupError
from provision.hosts import Host
from provision.report.model import HostReport
from provision.report.text import plain
from provision.transport import connect
from provision.upgrade.compare import RATES, compare, driver_of, is_version, not_fit
from provision.upgrade.drain import command_of, run_hooks
from provision.upgrade.journal import HostState
from provision.upgrade.measure import Measuring, When
from provision.upgrade.model import CONSOLE_VARIABLE, DRAIN_VARIABLE, UNDRAIN_VARIABLE, Options, Result
from provision.upgrade.phases import ALREADY, UNREACHABLE, Phase
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
    settle_s: float = 30.0

    def run(self, phase: Phase, states: Mapping[str, HostState], name: str, done: Done) -> dict[str, Result]:
        """Do a phase on the hosts of `states`. `name`: what its play's events are called. `done`: told as hosts end."""
        names = list(states)
        ways: Mapping[Phase, Callable[[], dict[str, Result]]] = {
            "before": lambda: self._before(names),
            "snapshot": lambda: self._snapshot(names, name, done),
            "drain": lambda: self._drain(names, name),
            "install": lambda: self._install(states, name, done),
            "reboot": lambda: self._reboot(names, name),
            "validate": lambda: self._validate("after", names),
            "hold": lambda: self._play(names, name, ("hold",), 300, done),
            "restore": lambda: self._restore(names, name, done),
            "reboot_back": lambda: self._reboot(names, name),
            "validate_back": lambda: self._validate("back", names),
            "undrain": lambda: self._hooks(names, UNDRAIN_VARIABLE, self.options.undrain),
        }
        return ways[phase]()

    def wanted(self, host: str) -> str:
        """The version that the host shall have, or the branch where any of it will do."""
        own = self.variables.get(host, {})
        return str(own.get("nvidia_driver_version") or own.get("nvidia_driver_branch") or self.options.to)

    def _before(self, names: Sequence[str]) -> dict[str, Result]:
        return {name: self._fit(name, report) for name, report in self.measuring.run("before", names).items()}

    def _fit(self, name: str, report: HostReport) -> Result:
        why = not_fit(report)
        if why and not (self.options.even_if_failing and driver_of(report)):
            return Result(False, why, {**_summary(report), **_lost(report)})
        data = _summary(report)
        wanted = self.wanted(name)
        if not why and wanted.count(".") and is_version(driver_of(report), wanted):
            return Result(True, f"it has {wanted} already", {**data, ALREADY: True})
        return Result(True, why, data)

    def _snapshot(self, names: Sequence[str], name: str, done: Done) -> dict[str, Result]:
        return self._play(
            names,
            name,
            ("snapshot",),
            1800,
            done,
            snapshot_name=self.snapshot,
            snapshot_without_way_back=self.options.without_way_back,
            bringup_upgrade_folder=str(self.plays.folder / "snapshots"),
        )

    def _drain(self, names: Sequence[str], name: str) -> dict[str, Result]:
        """The site's command where there is one; and in any case a look at the GPUs."""
        results = self._hooks(names, DRAIN_VARIABLE, self.options.drain)
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
        again = any(step.phase == "install" for state in states.values() for step in state.steps[:-1])
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
        folder = str(self.plays.folder / "snapshots")
        return self.plays.run(
            "rollback.yml",
            name,
            names,
            deadline_s=4800,
            done=done,
            restore_snapshot=self.snapshot,
            bringup_upgrade_folder=folder,
        )

    def _reboot(self, names: Sequence[str], name: str) -> dict[str, Result]:
        seconds = self.options.reboot_timeout_s
        results = self._play(names, name, ("reboot",), 2.0 * seconds + 300, _ignore, bringup_reboot_timeout_s=seconds)
        return {host: result if result.ok else self._after_bad_reboot(host, result) for host, result in results.items()}

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
        before = self.measuring.read("before", names)
        results = self._compared(when, names, before)
        again = [name for name, result in results.items() if not result.ok and not result.data.get(UNREACHABLE)]
        if again and self.settle_s:  # a fabric that is still being set up, a service that starts late
            time.sleep(self.settle_s)
            results |= self._compared(when, again, before)
        return results

    def _compared(self, when: When, names: Sequence[str], before: Mapping[str, HostReport]) -> dict[str, Result]:
        results = {}
        for name, report in self.measuring.run(when, names).items():
            wanted = self.wanted(name) if when == "after" else driver_of(before[name])
            worse = compare(before[name], report, driver=wanted, tolerance=self.options.tolerance)
            data = {**_summary(report), "worse": [one.sentence for one in worse[:50]], **_lost(report)}
            shown = _SENTENCES if driver_of(report) else 1  # no driver: all else follows from that
            more = f" ({len(worse) - shown} more that follow)" if len(worse) > shown else ""
            results[name] = Result(not worse, "; ".join(one.sentence for one in worse[:shown]) + more, data)
        return results

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
