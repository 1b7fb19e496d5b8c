"""CUDA toolkits, container toolkit and NVIDIA's registry on a container host, from a signed stub of the repositories.

Stand-ins, since the real ones cannot be had here: NVIDIA's packages (what is faithful: tests/hosts/nvidia_repository)
and nvcr.io (a tiny registry that wants a login). Docker is real, the distribution's; apt, dpkg, update-alternatives and
ldconfig are the host's own. The driver is put there by hand: it is another role's.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from provision.plays import PlayResult, run_play
from tests.hosts import nvidia_repository
from tests.hosts.containers import ContainerHost, available
from tests.hosts.containers import container_hosts as start
from tests.hosts.nvidia_repository import Repository, gateway, serve
from tests.hosts.nvidia_repository.registry import USER, Registry, registry
from tests.need import need

pytestmark = pytest.mark.timeout(900)

ROLES = Path(__file__).resolve().parents[2] / "playbooks" / "roles"
KEY = "nvapi-planted-Zm9yIHRoZSB0ZXN0"
ENCODED = base64.b64encode(f"{USER}:{KEY}".encode()).decode()
PARTS = ("nvidia_repository", "cuda_toolkit", "container_toolkit")
PACKAGES = ("nvidia-container-toolkit", "nvidia-container-toolkit-base", "libnvidia-container-tools")


@dataclass(frozen=True)
class Site:
    """One host, what it installs from, and where plays leave their records."""

    host: ContainerHost
    repository: Repository
    url: str
    registry: Registry
    book: Path
    artifacts: Path

    def play(self, *tags: str, check: bool = False, **variables: Any) -> PlayResult:
        plan = {
            "docker_source": "distro",
            "nvidia_repository_wanted": True,
            "cuda_toolkit_versions": ["13.0", "12.9"],
            "cuda_toolkit_packages": ["cuda-toolkit-13-0", "cuda-toolkit-12-9"],
            "container_toolkit_wanted": True,
        }
        given: dict[str, object] = {
            "bringup_plan": {self.host.name: plan},
            **self.repository.variables(self.url),
            # By http, as a site's mirror would have it; the armoured text is what the other tests use.
            "nvidia_repository_key": f"{self.url}key.asc",
            "ngc_registry": self.registry.address,
        }
        return run_play(
            str(self.book),
            [self.host.host()],
            artifact_dir=self.artifacts,
            extra_vars={**given, **variables},
            tags=tags,
            check=check,
        )

    def done(self, *tags: str, check: bool = False, **variables: Any) -> PlayResult:
        result = self.play(*tags, check=check, **variables)
        assert result.ok, [failure.sentence() for failure in result.failures]
        return result

    def refused(self, *tags: str, **variables: Any) -> str:
        """Run it, and return the one sentence that it fails with."""
        (failure,) = self.play(*tags, **variables).failures
        assert "\n" not in failure.message.strip()
        assert "Traceback" not in failure.message
        return failure.message

    def versions(self, *packages: str) -> set[str]:
        return set(self.host.sh(f"dpkg-query -W -f '${{Version}}\\n' {' '.join(packages)}").split())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    need(available(), "no Docker engine runs, and root with docker.io, debootstrap and iptables could start one")
    base = tmp_path_factory.mktemp("cuda")
    (base / "roles").symlink_to(ROLES)
    repository = nvidia_repository.build(base / "repository")
    roles = ["host_python", "docker", *PARTS, "ngc"]
    play = {
        "hosts": "all",
        "gather_facts": False,
        "become": True,
        "roles": [{"role": role, "tags": [role] + (["always"] if role == "host_python" else [])} for role in roles],
    }
    (base / "book.yml").write_text(json.dumps([play]))
    with start(1) as (host,), contextlib.ExitStack() as stack:
        url = stack.enter_context(serve(repository, gateway(host)))
        images = stack.enter_context(registry(gateway(host), KEY))
        # What a user had set before us. The registry has no certificate, which Docker has to be told.
        options = {"log-driver": "local", "insecure-registries": [images.address]}
        host.sh("mkdir -p /etc/docker; cat >/etc/docker/daemon.json", stdin=json.dumps(options).encode())
        # The test machine's own settings for its mirror may have come along in the image.
        host.sh('echo \'Acquire::Check-Valid-Until "true"; Acquire::Check-Date "true";\' >/etc/apt/apt.conf.d/zz-tests')
        yield Site(host, repository, url, images, base / "book.yml", base / "plays")


@dataclass(frozen=True)
class Story:
    """The plays in their order; `bare`: on a host without what the modules need, `ready`: with it."""

    bare: PlayResult
    ready: PlayResult
    left: str
    first: PlayResult
    second: PlayResult
    after: PlayResult


@pytest.fixture(scope="module")
def story(site: Site) -> Story:
    bare = site.done(*PARTS, check=True)
    site.host.sh("apt-get -q update >/dev/null")
    site.done("host_python")
    ready = site.done(*PARTS, check=True)
    left = site.host.sh("ls /etc/apt/sources.list.d /etc/apt/keyrings /usr/local /etc/cdi 2>&1", check=False)
    return Story(bare, ready, left, site.done(), site.done(), site.done(check=True))


def load_driver(site: Site, version: str) -> None:
    """Install a version of the stub's driver, and have it at work as after a reboot."""
    packages = " ".join(f"{name}={version}-1" for name in ("nvidia-driver-cuda", "nvidia-kernel-open-dkms"))
    site.host.sh(
        "export DEBIAN_FRONTEND=noninteractive\n"
        f"apt-get install -qy --allow-downgrades nvidia-driver-pinning-{version} linux-headers-$(uname -r)\n"
        f"apt-get install -qy --allow-downgrades {packages}\n"
        "modprobe -r nvidia; modprobe nvidia"
    )
    assert version in site.host.sh("nvidia-smi --query-gpu=driver_version --format=csv,noheader")


def test_a_check_foretells_changes_and_makes_none(story: Story) -> None:
    assert story.bare.changed >= 1
    assert story.ready.changed >= 3
    assert "nvidia" not in story.left
    assert "cuda" not in story.left


def test_the_second_run_and_a_check_after_it_change_nothing(story: Story) -> None:
    assert story.first.changed >= 6
    assert story.second.changed == 0
    assert story.after.changed == 0


def test_toolkits_lie_side_by_side_and_the_first_is_chosen(story: Story, site: Site) -> None:
    assert site.host.sh("readlink -f /usr/local/cuda").strip() == "/usr/local/cuda-13.0"
    assert "release 12.9," in site.host.sh("/usr/local/cuda-12.9/bin/nvcc --version")
    assert "release 13.0," in site.host.sh("bash -lc 'nvcc --version'")
    assert "/usr/local/cuda/lib64/libcudart.so" in site.host.sh(
        "ldconfig -v 2>/dev/null | grep -A9 ^/usr/local/cuda/lib64; ls /usr/local/cuda/lib64/*"
    )
    assert site.host.sh("dpkg-query -W 'cuda-drivers*' 'nvidia-driver*'", check=False).count("no packages found") == 2


def test_another_first_toolkit_moves_the_link_and_nothing_else(story: Story, site: Site) -> None:
    turned = site.done("cuda_toolkit", cuda_toolkit_versions=["12.9", "13.0"])
    assert turned.changed == 1
    assert site.host.sh("readlink -f /usr/local/cuda").strip() == "/usr/local/cuda-12.9"
    assert "release 12.9," in site.host.sh("bash -lc 'nvcc --version'")
    site.done("cuda_toolkit")


@pytest.mark.parametrize("package", ["cuda", "cuda-runtime-13-1"])
def test_what_drags_a_driver_is_refused_before_anything_is_installed(story: Story, site: Site, package: str) -> None:
    before = site.host.sh("dpkg -l | sha256sum")
    said = site.refused("cuda_toolkit", cuda_toolkit_versions=["13.1"], cuda_toolkit_packages=[package])
    assert f"{package} would bring in or remove driver packages" in said
    assert "cuda-drivers" in said
    assert "cuda-toolkit-13-1" in said
    assert site.host.sh("dpkg -l | sha256sum") == before


def test_docker_has_the_runtime_and_keeps_its_user_s_options(story: Story, site: Site) -> None:
    options = json.loads(site.host.sh("cat /etc/docker/daemon.json"))
    assert options["log-driver"] == "local"
    assert options["insecure-registries"] == [site.registry.address]
    assert options["runtimes"]["nvidia"]["path"] == "nvidia-container-runtime"
    assert site.host.sh("docker info --format '{{.LoggingDriver}} {{json .Runtimes}}'").startswith("local ")
    assert '"nvidia"' in site.host.sh("docker info --format '{{json .Runtimes}}'")


def test_daemon_json_that_is_no_json_is_said_and_left(story: Story, site: Site) -> None:
    site.host.sh("cp /etc/docker/daemon.json /var/tmp/kept; echo '{\"log-driver\": ' >/etc/docker/daemon.json")
    try:
        said = site.refused("container_toolkit")
        assert "/etc/docker/daemon.json on this host is no JSON object" in said
        assert site.host.sh("cat /etc/docker/daemon.json").strip() == '{"log-driver":'
    finally:
        site.host.sh("mv /var/tmp/kept /etc/docker/daemon.json")


def test_the_toolkit_s_packages_are_all_of_one_version(story: Story, site: Site) -> None:
    assert site.versions(*PACKAGES, "libnvidia-container1") == {"1.19.1-1"}
    assert site.done("container_toolkit", container_toolkit_version="1.18.2").changed == 1
    assert site.versions(*PACKAGES, "libnvidia-container1") == {"1.18.2-1"}
    assert "version 1.18.2" in site.host.sh("nvidia-ctk --version")
    # What is installed stays where no version is asked for.
    assert site.done("container_toolkit").changed == 0
    # A half of it at another version does not.
    site.host.sh("apt-get install -qy --no-install-recommends libnvidia-container1")
    assert site.done("container_toolkit").changed == 1
    assert site.versions(*PACKAGES, "libnvidia-container1") == {"1.19.1-1"}


def test_the_cdi_specification_follows_the_driver(story: Story, site: Site) -> None:
    assert "No such file" in site.host.sh("cat /etc/cdi/nvidia.yaml", check=False)
    load_driver(site, "580.159.04")
    assert site.done("container_toolkit", check=True).changed == 2  # the folder and the file
    assert site.done("container_toolkit").changed == 2
    assert "libcuda.so.580.159.04" in site.host.sh("cat /etc/cdi/nvidia.yaml")
    assert site.done("container_toolkit").changed == 0
    load_driver(site, "580.178.04")
    assert site.done("container_toolkit").changed == 1
    spec = site.host.sh("cat /etc/cdi/nvidia.yaml")
    assert "libcuda.so.580.178.04" in spec
    assert "580.159.04" not in spec
    assert site.done("container_toolkit").changed == 0


def test_a_driver_that_does_not_answer_leaves_the_specification(story: Story, site: Site) -> None:
    site.host.sh(
        "mkdir -p /etc/cdi; [ -e /etc/cdi/nvidia.yaml ] || echo mine >/etc/cdi/nvidia.yaml; modprobe -r nvidia || true"
    )
    before = site.host.sh("cat /etc/cdi/nvidia.yaml")
    assert site.done("container_toolkit").changed == 0
    assert site.host.sh("cat /etc/cdi/nvidia.yaml") == before


def test_a_key_with_another_fingerprint_is_refused_and_nothing_is_left(story: Story, site: Site) -> None:
    before = site.host.sh(
        "cat /etc/apt/sources.list.d/* /etc/apt/keyrings/* /etc/apt/preferences.d/*; ls /tmp /etc/apt/*"
    )
    said = site.refused("nvidia_repository", nvidia_repository_fingerprint="A" * 40)
    assert site.repository.fingerprint in said
    assert "A" * 40 in said
    assert (
        site.host.sh("cat /etc/apt/sources.list.d/* /etc/apt/keyrings/* /etc/apt/preferences.d/*; ls /tmp /etc/apt/*")
        == before
    )


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("expired", "the index has expired"),
        ("not-valid-yet", "the clock of this host is behind"),
        ("unsigned", "not signed with that key"),
    ],
)
def test_a_repository_that_cannot_be_trusted_now_is_said_and_not_taken_in(
    story: Story, site: Site, tmp_path: Path, state: str, told: str
) -> None:
    before = site.host.sh("cat /etc/apt/sources.list.d/*; ls /tmp")
    bad = nvidia_repository.build(
        tmp_path / "bad", versions=(), toolkits=(), container_toolkits=(), broken={"Release": state}
    )
    with serve(bad, gateway(site.host)) as url:
        said = site.refused("nvidia_repository", **bad.variables(url))
    assert told in said
    assert "Nothing was changed" in said
    assert site.host.sh("cat /etc/apt/sources.list.d/*; ls /tmp") == before


def test_an_air_gapped_folder_serves_and_other_entries_for_it_are_switched_off(story: Story, site: Site) -> None:
    folder = site.repository.copy_to(site.host)
    entry = f"deb [trusted=yes] {folder} /"
    site.host.sh(f"echo '{entry}' >/etc/apt/sources.list.d/cuda-debian12-x86_64.list")
    moved: dict[str, Any] = site.repository.variables(folder)
    try:
        assert site.done("nvidia_repository", **moved).changed >= 2
        assert f"URIs: {folder}" in site.host.sh("cat /etc/apt/sources.list.d/nvidia.sources")
        assert site.host.sh("cat /etc/apt/sources.list.d/cuda-debian12-x86_64.list").startswith(f"# {entry}")
        assert site.done("nvidia_repository", **moved).changed == 0
        assert "600" in site.host.sh("apt-cache policy cuda-toolkit-13-1 | grep file:")
        site.host.sh("apt-get -q update")
    finally:
        site.done("nvidia_repository")


TOOLKIT_LIST = "/etc/apt/sources.list.d/nvidia-container-toolkit.list"
ANOTHER_KEY = "signed-by=/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg"


@pytest.fixture
def by_architecture(site: Site) -> Iterator[str]:
    """The repository at an address that ends in the architecture, as the container toolkit's does."""
    site.done("nvidia_repository")
    site.host.sh("mkdir -p /srv/stable/deb")
    yield site.repository.copy_to(site.host, "/srv/stable/deb/amd64")
    site.host.sh(f"rm -f {TOOLKIT_LIST}*; apt-get -q check")
    site.done("nvidia_repository")


@pytest.mark.parametrize("place", ["file:/srv/stable/deb/$(ARCH)", "file:/srv/stable/deb/amd64/"])
def test_an_entry_as_nvidia_s_guide_writes_it_is_switched_off_and_apt_works(
    by_architecture: str, site: Site, place: str
) -> None:
    entry = f"deb [{ANOTHER_KEY}] {place} /"
    site.host.sh(f"cat >{TOOLKIT_LIST}", stdin=f"# deb {place} /\n{entry}\n".encode())
    moved = site.repository.variables(by_architecture)
    assert site.done("nvidia_repository", check=True, **moved).changed >= 2
    site.done("nvidia_repository", **moved)
    site.host.sh("apt-get -q check; apt-get -q update")
    assert site.host.sh(f"cat {TOOLKIT_LIST}").splitlines()[1].startswith(f"# {entry}")
    assert site.done("nvidia_repository", **moved).changed == 0


def test_an_entry_that_apt_alone_recognises_is_said_and_the_host_left_as_it_was(
    by_architecture: str, site: Site
) -> None:
    site.host.sh(f"cat >{TOOLKIT_LIST}", stdin=f'deb [{ANOTHER_KEY}] "{by_architecture}" /\n'.encode())
    before = site.host.sh("find /etc/apt -type f -exec sha256sum {} + | sort -k2; ls /tmp")
    said = site.refused("nvidia_repository", **site.repository.variables(by_architecture))
    assert "would refuse every use with NVIDIA's package repository beside the sources that it has" in said
    assert "Conflicting values set for option Signed-By" in said
    assert site.host.sh("find /etc/apt -type f -exec sha256sum {} + | sort -k2; ls /tmp") == before
    site.host.sh("apt-get -q check")


def test_a_tag_is_refused_where_a_digest_belongs(story: Story, site: Site) -> None:
    said = site.refused("ngc", ngc_images=["nvcr.io/nvidia/pytorch:25.08-py3"])
    assert "nvcr.io/nvidia/pytorch:25.08-py3 is not named by a digest" in said


def test_without_images_a_key_stays_with_the_operator(
    story: Story, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NGC_API_KEY", KEY)
    assert site.done("ngc").changed == 0
    assert KEY not in site.host.sh("cat /root/.docker/config.json", check=False)


def test_a_key_that_the_registry_refuses_is_said_without_it(story: Story, site: Site) -> None:
    said = site.refused("ngc", ngc_images=[site.registry.image], ngc_api_key="nvapi-wrong-one-entirely")
    assert f"{site.registry.address} did not take the key" in said
    assert "nvapi-wrong" not in said


SPY = """#!/bin/sh
{ echo "argv: $0 $*"; tr '\\0' '\\n' </proc/$PPID/cmdline; env; } >>/var/tmp/docker-calls
sleep 0.5  # long enough for the sampler to see it
exec /usr/bin/docker.real "$@"
"""
SAMPLER = """#!/bin/sh
while :; do cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' >>/var/tmp/processes; sleep 0.1; done
"""


def test_an_image_comes_by_digest_and_the_key_is_seen_nowhere(
    story: Story, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NGC_API_KEY", KEY)
    image = site.registry.image
    site.host.sh("rm -rf /root/.docker; mv /usr/bin/docker /usr/bin/docker.real")
    site.host.sh("cat >/usr/bin/docker; chmod 0755 /usr/bin/docker", stdin=SPY.encode())
    site.host.sh("cat >/usr/local/bin/sampler; chmod 0755 /usr/local/bin/sampler", stdin=SAMPLER.encode())
    site.host.sh("systemd-run --quiet --unit=sampler /usr/local/bin/sampler")
    try:
        assert site.done("ngc", check=True, ngc_images=[image]).changed >= 2
        first = site.done("ngc", ngc_images=[image])
        second = site.done("ngc", ngc_images=[image])
    finally:
        site.host.sh("systemctl stop sampler; mv /usr/bin/docker.real /usr/bin/docker")
    assert first.changed >= 2
    assert second.changed == 0
    assert site.registry.logins[-1] == USER
    assert site.host.sh(f"docker image inspect --format '{{{{.RepoDigests}}}}' {image}").strip() == f"[{image}]"
    # Docker keeps the login for root, and nothing else on the host does.
    assert ENCODED in site.host.sh("cat /root/.docker/config.json")
    assert site.host.sh("stat -c '%a %U' /root/.docker/config.json").strip() == "600 root"
    assert "login" in site.host.sh("cat /var/tmp/docker-calls")
    assert "/usr/bin/docker login" in site.host.sh("cat /var/tmp/processes")
    for secret in (KEY, ENCODED):
        places = "/home /tmp /var/tmp /var/log /etc /run"
        assert site.host.sh(f"grep -rlsF {secret} {places} || true") == ""
        assert secret not in site.host.sh("journalctl --no-pager -q || true")
        kept = [path for path in site.artifacts.rglob("*") if path.is_file() and secret in path.read_text()]
        assert kept == []
    assert any("ngc" in path.read_text() for path in site.artifacts.rglob("*.jsonl"))
