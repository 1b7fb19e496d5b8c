"""Do like GPUs of several hosts give the same bits? No host can tell that of itself: the judge compares their digests.

What a host says of this metric itself is dropped. A digest is compared, and never shown.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property

from provision.verdict.evidence import Evidence
from validators.schema import HOST, NOT_APPLICABLE, RAN, SKIPPED, UNKNOWN, Measurement

CHECK, DIGEST, METRIC = "matmul", "digest", "digests_agree_in_fleet"
SHOWN = 4
"""Names in a note; the rest are counted."""

_Card = tuple[str, float | None]
_Like = tuple[_Card, tuple[tuple[str, str], ...]]
"""Card and multiprocessors, and all labels of the digest: the workload puts there whatever its bits depend on."""


def with_fleet(hosts: Mapping[str, Evidence], asked: Collection[str]) -> dict[str, Evidence]:
    """Each host's evidence, and what comparing it with the others says. `asked`: hosts with matmul in their plan."""
    groups: defaultdict[_Like, _Group] = defaultdict(_Group)
    for name in asked:
        for like, uuid, bits in _digests(hosts[name]):
            groups[like].add(name, uuid, bits)
    found: defaultdict[str, list[Measurement]] = defaultdict(list)
    for (card, labels), group in groups.items() if len(asked) > 1 else ():
        for name in group.gave:
            found[name].append(group.compared(name, dict(labels), _silent(hosts[name], card, group.gave[name])))
    for name in asked:
        found[name] = found[name] or list(_nothing(hosts[name], alone=len(asked) == 1))
    return {name: _replaced(evidence, found.get(name, [])) for name, evidence in hosts.items()}


class _Group:
    """What like GPUs gave for one product. A GPU that two hosts name (a host and its container) is one GPU."""

    def __init__(self) -> None:
        self.gave: dict[str, dict[str, set[str]]] = {}  # host -> GPU -> its digests, none where it failed

    def add(self, host: str, uuid: str, bits: str) -> None:
        self.gave.setdefault(host, {}).setdefault(uuid, set()).update([bits] if bits else [])

    @cached_property
    def _votes(self) -> dict[str, set[str]]:
        """GPU -> its digests, over all hosts."""
        votes: dict[str, set[str]] = {}
        for gpus in self.gave.values():
            for uuid, bits in gpus.items():
                if bits:
                    votes.setdefault(uuid, set()).update(bits)
        return votes

    @cached_property
    def _usual(self) -> tuple[str, int]:
        """The digest of more than half of the GPUs and how many gave it; empty where no digest is that of most."""
        (bits, times), *_ = Counter(one for found in self._votes.values() for one in found).most_common(1)
        return (bits, times) if 2 * times > len(self._votes) else ("", times)

    @cached_property
    def _sides(self) -> tuple[str, str]:
        """The hosts with a GPU that gave the usual digest, and those with one that did not."""
        usual = {self._usual[0]}
        good = [name for name, gpus in self.gave.items() if any(bits == usual for bits in gpus.values())]
        odd = [name for name, gpus in self.gave.items() if any(bits and bits != usual for bits in gpus.values())]
        return _some(good), _some(odd)

    def compared(self, host: str, labels: dict[str, str], silent: Collection[str]) -> Measurement:
        """What this host is told. `silent`: its GPUs of this kind that gave nothing to compare."""
        own = {uuid: bits for uuid, bits in self.gave[host].items() if bits}
        if len(self._votes) <= len(own):
            why = "no other host gave a digest of a like GPU: card, multiprocessors and labels are equal"
            return _absent(NOT_APPLICABLE, why, labels)
        (usual, times), (good, bad) = self._usual, self._sides
        what = labels.get("dtype", "")[:20]
        odd = [uuid for uuid, bits in own.items() if bits != {usual}]
        if odd and not usual:
            note = f"{what}: {len(self._votes)} GPUs of {bad} differ, and it cannot be told which is wrong"
        elif odd:
            note = f"{what}: {_some(odd)} differs from the {times} GPUs that agree, of {good}"
        elif silent:
            return _absent(UNKNOWN, f"{what}: no digest of {_some(silent)}", labels)
        else:
            note = f"{what}: {times} GPUs agree, of {good}" + (f"; others differ, of {bad}" if bad else "")
        return Measurement(CHECK, HOST, METRIC, not odd, "bool", labels, note=note)


def _digests(evidence: Evidence) -> Iterator[tuple[_Like, str, str]]:
    """What a host's GPUs gave: of what kind, which GPU, and its digest, or nothing where it could not be had."""
    for uuid, found in evidence.of(CHECK, DIGEST).items():
        for one in found if uuid in evidence.facts else ():
            if one.absence != NOT_APPLICABLE:
                like = _card(evidence, uuid), tuple(sorted(one.labels.items()))
                yield like, uuid, one.value if isinstance(one.value, str) else ""


def _card(evidence: Evidence, uuid: str) -> _Card:
    return evidence.facts[uuid].name, evidence.facts[uuid].sm_count


def _silent(evidence: Evidence, card: _Card, gave: Mapping[str, Collection[str]]) -> list[str]:
    """GPUs of this kind without a digest, but for those that were skipped, with a reason."""
    skipped = {uuid for (check, uuid), end in evidence.outcomes.items() if check == CHECK and end.status == SKIPPED}
    return [uuid for uuid in evidence.facts if _card(evidence, uuid) == card and not gave.get(uuid, uuid in skipped)]


def _nothing(evidence: Evidence, *, alone: bool) -> Iterator[Measurement]:
    """What is said where nothing was compared. A host that ran and is silent here is left to the judge: an ERROR."""
    ran = any(check == CHECK and end.status == RAN for (check, _), end in evidence.outcomes.items())
    said = [one for found in evidence.of(CHECK, DIGEST).values() for one in found]
    if alone and (ran or said):
        yield _absent(NOT_APPLICABLE, "one host alone has none to agree with", {})
    elif said and all(one.absence == NOT_APPLICABLE for one in said):
        yield _absent(NOT_APPLICABLE, "no GPU here gives a digest", {})


def _absent(absence: str, note: str, labels: dict[str, str]) -> Measurement:
    return Measurement(CHECK, HOST, METRIC, None, "bool", labels, absence, note)


def _replaced(evidence: Evidence, found: list[Measurement]) -> Evidence:
    kept = (one for one in evidence.measurements if (one.check, one.metric) != (CHECK, METRIC))
    values = {**evidence.values, (CHECK, METRIC): {HOST: found} if found else {}}
    return replace(evidence, measurements=(*kept, *found), values=values)


def _some(names: Iterable[str]) -> str:
    every = sorted(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(name[:60] for name in every[:SHOWN]) + more
