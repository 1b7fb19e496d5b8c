"""Executors: the same call mapped over hosts, whatever carries it."""

from __future__ import annotations

import pytest

from provision.errors import UsageError
from provision.executors import make_executor
from provision.remote import HostRun, validate_host
from tests.wire.conftest import Box
from tests.wire.planting import GOOD, bundle_of, plan_of


def test_hosts_are_measured_side_by_side_and_one_that_fails_is_its_own_failure(box: Box) -> None:
    job = box.job(bundle_of({"x_good": GOOD}), plan_of(["x_good"]))
    hosts = [box.host(), box.host(python="/opt/none/python3"), box.host()]
    with make_executor("threads", 3) as executor:
        futures = [executor.submit(validate_host, host, job) for host in hosts]
        runs: list[HostRun] = [future.result(timeout=60) for future in futures]
    assert [run.failure and run.failure.kind for run in runs] == [None, "RemoteCommandError", None]


@pytest.mark.parametrize(("name", "workers"), [("thread", 1), ("threads", 0)])
def test_an_executor_that_cannot_be_meant_is_a_usage_error(name: str, workers: int) -> None:
    with pytest.raises(UsageError) as caught:
        make_executor(name, workers)
    assert caught.value.hint
