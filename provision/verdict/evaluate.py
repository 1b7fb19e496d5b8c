"""One measurement held against one criterion: the only place where a PASS is made."""

from __future__ import annotations

from fnmatch import fnmatchcase

from provision.criteria.model import Criterion, Fraction
from provision.criteria.physics import GpuFacts, figure
from provision.criteria.rules import Required, has_unit, holds, in_words
from provision.criteria.xid import meaning_of
from provision.report.model import Status, Verdict
from validators.schema import HOST, NOT_APPLICABLE, Measurement, Scalar

NOT_JUDGED = "measured, not judged"
SEE_RECORDS = "the host's records.jsonl in the run directory has what it sent"


def labels_match(criterion: Criterion, measurement: Measurement) -> bool:
    """Whether the criterion is about a measurement with these labels."""
    return all(
        name in measurement.labels and fnmatchcase(measurement.labels[name], pattern)
        for name, pattern in criterion.labels.items()
    )


def evaluate(criterion: Criterion, measurement: Measurement, gpu: GpuFacts | None, device: str) -> Verdict:
    """The verdict on one measurement. `gpu`: the card that it is about, None for the host's own.

    PASS only where a value of the right unit and type satisfies the requirement; what cannot be compared is ERROR.
    """
    if measurement.value is None:
        return _absent(criterion, measurement)
    if measurement.unit != criterion.unit:
        reason = f"{NOT_JUDGED}: the value is in {measurement.unit!r:.40}, the criterion in {criterion.unit}"
        return _verdict("ERROR", criterion, measurement, reason, step=SEE_RECORDS)
    if not has_unit(measurement.value, measurement.unit):
        return _verdict(
            "ERROR", criterion, measurement, f"{NOT_JUDGED}: no value in {criterion.unit}", step=SEE_RECORDS
        )
    if measurement.unit in ("count", "bits") and isinstance(measurement.value, int) and measurement.value < 0:
        reason = f"{NOT_JUDGED}: {measurement.value} is less than none"
        return _verdict("ERROR", criterion, measurement, reason, step=SEE_RECORDS)
    required, of = _required(criterion, gpu)
    if required is None:
        return _without_peak(criterion, measurement, gpu, device)
    return _compare(criterion, measurement, measurement.value, required, of)


def _compare(criterion: Criterion, measurement: Measurement, value: Scalar, required: Required, of: str) -> Verdict:
    words = in_words(criterion.rule, required, criterion.unit) + of
    asked = required if not isinstance(required, tuple) else None
    answer = holds(criterion.rule, required, value, criterion.unit)
    shown = in_words("equals", value, criterion.unit).removeprefix("equals ")
    shown = shown if len(shown) <= 200 else shown[:200] + " ..."
    status: Status = "PASS"
    reason, step = f"{shown}; required: {words}", ""
    if answer is None:
        status, step = "ERROR", SEE_RECORDS
        reason = f"{NOT_JUDGED}: {shown} cannot be compared with {words}"
    elif not answer:
        status, step = criterion.severity, criterion.advice
        note = f" ({measurement.note[:300]})" if measurement.note else ""
        reason = f"{shown}{note}; required: {words}, because {criterion.because}"
        told = meaning_of(measurement)
        if told is not None:  # an XID: its table says how bad it is, and what to do
            status = told.severity if criterion.severity == "FAIL" else criterion.severity
            reason, step = f"{shown}: {told.text}{note}; required: {words}", told.advice
    return _verdict(status, criterion, measurement, reason, required=words, value=asked, step=step)


def requirement(criterion: Criterion) -> str:
    """What is required, in words, before a card is known."""
    if isinstance(criterion.value, Fraction):
        return f"{criterion.rule.replace('_', ' ')} {criterion.value.fraction:.0%} of {criterion.value.of}"
    return in_words(criterion.rule, criterion.value, criterion.unit)


def _absent(criterion: Criterion, measurement: Measurement) -> Verdict:
    note = measurement.note[:300] or "no reason was given"
    words = requirement(criterion)
    if measurement.absence == NOT_APPLICABLE:
        status: Status = criterion.not_applicable
        if status == "FAIL":
            reason = f"there is none ({note}); required: {words}, because {criterion.because}"
            return _verdict(status, criterion, measurement, reason, required=words, step=criterion.advice)
        return _verdict(status, criterion, measurement, f"not applicable: {note}", required=words)
    reason = f"could not be read: {note}"
    return _verdict(
        criterion.unknown, criterion, measurement, reason, required=words, step=criterion.advice or SEE_RECORDS
    )


def _required(criterion: Criterion, gpu: GpuFacts | None) -> tuple[Required | None, str]:
    """The criterion's value resolved for this card, and how it was derived."""
    if not isinstance(criterion.value, Fraction):
        return criterion.value, ""
    known = figure(criterion.value.of, gpu) if gpu is not None else None
    if known is None:
        return None, ""
    share = f" ({criterion.value.fraction:.0%} of {known[0]:.4g}, {criterion.value.of})"
    return known[0] * criterion.value.fraction, share


def _without_peak(criterion: Criterion, measurement: Measurement, gpu: GpuFacts | None, device: str) -> Verdict:
    of = criterion.value.of if isinstance(criterion.value, Fraction) else ""
    if gpu is None and device == "cpu" and measurement.subject == HOST:
        reason = f"a run on the CPU, for reference: {of} is a figure of GPUs"
        return _verdict("SKIP", criterion, measurement, reason, required=requirement(criterion))
    card = f"this card ({gpu.name[:100]})" if gpu is not None and gpu.name else "this card"
    reason = f"{NOT_JUDGED}: no {of} is known for {card}"
    step = f"state a threshold for it in a file for --criteria: id {criterion.check}.{criterion.id}"
    return _verdict("ERROR", criterion, measurement, reason, required=requirement(criterion), step=step)


def _verdict(
    status: Status,
    criterion: Criterion,
    measurement: Measurement,
    reason: str,
    *,
    required: str = "",
    value: Scalar | None = None,
    step: str = "",
) -> Verdict:
    return Verdict(
        status=status,
        check=measurement.check,
        subject=measurement.subject,
        metric=measurement.metric,
        reason=reason,
        measurement=measurement,
        criterion=criterion,
        required=required,
        required_value=value,
        next_step=_step(status, criterion, step),
    )


def _step(status: Status, criterion: Criterion, step: str) -> str:
    """The next step. Where a criterion names none, who asked for it is the one to talk to."""
    if status in ("PASS", "SKIP"):
        return ""
    return step or f"{criterion.source} asks for this; `bringup checks {criterion.check}` says how it is measured"
