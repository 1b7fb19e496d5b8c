"""One set of container hosts for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hosts.containers import ContainerHost, available
from tests.hosts.containers import container_hosts as start
from tests.need import need


@pytest.fixture(scope="session")
def container_hosts() -> Iterator[tuple[ContainerHost, ...]]:
    """Three bare hosts: the first two are provisioned by test_site, the third has the faults."""
    need(available(), "no Docker engine runs, and root with docker.io, debootstrap and iptables could start one")
    with start(3) as hosts:
        yield hosts
