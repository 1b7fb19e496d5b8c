"""Two hosts, two SSH sessions, one all-reduce: a real sshd at two addresses, the real bundle, gloo on the CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from provision.between import plan_between
from provision.bundle import build_bundle
from provision.catalogue import load_catalogue
from provision.remote import Job, validate_host
from provision.request import Choice, make_plan
from tests.hosts.sshd import Sshd, sshd
from tests.need import need
from tests.wire.test_cli import bringup
from validators.probes.ranks import free_port
from validators.schema import ERROR, HOST, CheckRequest, Measurement, Outcome, Plan

pytestmark = pytest.mark.timeout(280)
PARAMS = {"smallest": 4096, "largest": 4096, "pair_bytes": 4096, "seconds": 0.02}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    need(importlib.util.find_spec("torch") is not None, "torch", installable=True)
    folder = tmp_path_factory.mktemp("hosts")
    config = (f"SetEnv HOME={folder} XDG_CACHE_HOME=",)
    with sshd(folder / "server", addresses=("127.0.0.2", "127.0.0.3"), config=config) as running:
        yield running


def inventory(server: Sshd, path: Path) -> Path:
    lines = [
        server.inventory_line(name).replace(server.addresses[0], address)
        + f" ansible_python_interpreter={sys.executable} bringup_torch_python={sys.executable} bringup_device=cpu"
        + f" bringup_fabric_port={port}"
        for (name, address), port in zip(
            (("alpha", "127.0.0.2"), ("beta", "127.0.0.3")), [free_port()] * 2, strict=True
        )
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_hosts_of_one_run_reduce_together(server: Sshd, tmp_path: Path) -> None:
    settings = [word for key, value in PARAMS.items() for word in ("-p", f"links.{key}={value}")]
    done = bringup(
        "validate", "-i", str(inventory(server, tmp_path / "inventory.ini")), "--only", "links", "--between-hosts",
        "--workers", "1", "--json", *settings, cwd=tmp_path,
    )  # fmt: skip
    report = json.loads(done.stdout)
    hosts = {one["name"]: one for one in report["hosts"]}
    assert set(hosts) == {"alpha", "beta"}
    for name, host in hosts.items():
        of_links = [one for one in host["verdicts"] if one["check"] == "links"]
        judged = {one["metric"]: one["status"] for one in of_links if one["status"] != "SKIP"}
        assert judged == {"between_wrong": "PASS", "allreduce_wrong": "PASS"}, (name, of_links)
    told = {name: measured(host, "between_bus_bandwidth") for name, host in hosts.items()}
    assert all(one["value"] > 0 and one["labels"]["ranks"] == "2" for one in told["alpha"])
    assert [one["labels"]["size"] for one in told["alpha"]] == ["1 KiB", "64 KiB", "4 MiB"]
    assert [one["note"] for one in told["beta"]] == ["the first host, alpha, reports it"]
    assert measured(hosts["beta"], "between_wrong")[0]["value"] == 0, "both verify what they got"


def measured(host: dict, metric: str) -> list[dict]:  # type: ignore[type-arg]
    return [one for one in host["measurements"] if one["metric"] == metric]


def test_a_host_that_does_not_come_is_named_and_its_own_links_are_measured(server: Sshd, tmp_path: Path) -> None:
    bundle = build_bundle()
    catalogue = load_catalogue(bundle)
    variables = {"bringup_torch_python": sys.executable, "bringup_fabric_port": free_port()}
    hosts = [server.host(name, python=sys.executable, variables=variables) for name in ("alpha", "beta")]
    choice = Choice(only=("links",), device="cpu", params={"links": PARAMS})
    plans = plan_between(hosts, {host.name: make_plan(host, catalogue, choice) for host in hosts}, catalogue)
    run = validate_host(hosts[0], Job(bundle, impatient(plans["alpha"]), known_hosts=server.known_hosts))
    (end,) = [one for one in run.records if isinstance(one, Outcome) and (one.check, one.subject) == ("links", HOST)]
    assert end.status == ERROR
    assert "between hosts: did not come within 2 s: beta" in end.detail
    values = {one.metric: one.value for one in run.records if isinstance(one, Measurement) and one.check == "links"}
    assert values["allreduce_wrong"] == 0
    assert values["between_wrong"] is None


def impatient(plan: Plan) -> Plan:
    def shorter(request: CheckRequest) -> CheckRequest:
        known = "between_wait_s" in request.params
        return replace(request, params={**request.params, "between_wait_s": 2.0}) if known else request

    return replace(plan, checks=tuple(shorter(one) for one in plan.checks))
