"""The measurements of one host, to be asked by check and metric. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from validators.schema import ERROR, HOST, SKIPPED, Measurement, Outcome


class Facts:
    """What one host measured. Absences are kept: `why` has their note."""

    def __init__(self, measurements: Sequence[Measurement], outcomes: Sequence[Outcome]) -> None:
        self.outcomes = tuple(outcomes)
        self._by: dict[tuple[str, str], list[Measurement]] = {}
        for one in measurements:
            self._by.setdefault((one.check, one.metric), []).append(one)
        self.checks = {one.check for one in measurements} | {one.check for one in outcomes}

    def all(self, name: str, **labels: str) -> list[Measurement]:
        """The measurements of "check.metric" that carry these labels, absences among them."""
        check, _, metric = name.partition(".")
        found = self._by.get((check, metric), [])
        return [one for one in found if all(one.labels.get(key) == value for key, value in labels.items())]

    def first(self, name: str, **labels: str) -> Measurement | None:
        """The first of them that has a value."""
        return next((one for one in self.all(name, **labels) if one.value is not None), None)

    def text(self, name: str, **labels: str) -> str:
        """Its value as text; empty where there is none."""
        found = self.first(name, **labels)
        return "" if found is None else str(found.value)

    def flag(self, name: str, **labels: str) -> bool | None:
        """Its value where that is true or false."""
        found = self.first(name, **labels)
        return found.value if found is not None and isinstance(found.value, bool) else None

    def number(self, name: str, **labels: str) -> float | None:
        """Its value where that is a number."""
        found = self.first(name, **labels)
        if found is None or isinstance(found.value, (bool, str)) or found.value is None:
            return None
        return found.value

    def per_gpu(self, name: str, **labels: str) -> Mapping[str, Measurement]:
        """GPU's UUID -> its measurement, absences among them."""
        return {one.subject: one for one in self.all(name, **labels) if one.subject != HOST}

    def is_not_applicable(self, name: str, **labels: str) -> bool:
        """Whether all that was said of it is that it does not apply."""
        found = self.all(name, **labels)
        return bool(found) and all(one.absence == "not_applicable" for one in found)

    def why(self, name: str, **labels: str) -> str:
        """Why there is no value: the absence's note, else how the check ended."""
        noted = next((one.note for one in self.all(name, **labels) if one.absence and one.note), "")
        if noted:
            return noted
        check = name.partition(".")[0]
        ended = next((one for one in self.outcomes if one.check == check and one.status in (ERROR, SKIPPED)), None)
        if ended is not None:
            return f"{check} {'failed' if ended.status == ERROR else 'was skipped'}: {ended.detail}"
        return f"{check} did not measure {name.partition('.')[2]}" if check in self.checks else f"{check} did not run"
