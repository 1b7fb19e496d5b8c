"""The stub of NVIDIA's repository is one that apt takes, and its faults are those that apt names."""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.hosts import nvidia_repository
from tests.hosts.nvidia_repository import Repository, serve
from tests.hosts.nvidia_repository.deb import dearmour
from tests.need import need

ROLE = Path(__file__).resolve().parents[2] / "playbooks/roles/nvidia_repository"
SENTENCES = yaml.safe_load((ROLE / "vars/main.yml").read_text())["_nvidia_repository_sentences"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    missing = [name for name in ("dpkg-deb", "gpg", "apt-get") if shutil.which(name) is None]
    need(not missing, f"needs {', '.join(missing)}: a Debian or Ubuntu with gnupg", installable=False)
    yield nvidia_repository.build(
        tmp_path_factory.mktemp("stub") / "repository",
        family="ubuntu",
        kernels=["6.8.0-31-generic"],
        broken={"580.178.04": "missing-dependency", "nvidia-container-toolkit=1.19.1-1": "truncated"},
    )


def apt(repository: Repository, root: Path, *words: str, url: str = "") -> subprocess.CompletedProcess[str]:
    """Run apt-get with this repository alone, on folders of its own."""
    for name in ("lists/partial", "archives/partial", "none"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "status").write_text("".join(INSTALLED.format(name) for name in ("kmod", "python3")))
    line = f"deb [signed-by={repository.path}/key.asc] {url or repository.url} /\n"
    (root / "sources.list").write_text(line)
    options = {
        "Dir::Etc::SourceList": root / "sources.list",
        "Dir::Etc::SourceParts": root / "none",
        "Dir::Etc::PreferencesParts": root / "none",
        "Dir::State::Lists": root / "lists",
        "Dir::State::status": root / "status",
        "Dir::Cache": root,
        "Dir::Cache::Archives": root / "archives",
        "APT::Sandbox::User": "root",
        "APT::Architecture": "amd64",
        "APT::Update::Error-Mode": "any",
        "Debug::NoLocking": "1",
        # A machine with an old mirror may have these off.
        "Acquire::Check-Valid-Until": "true",
        "Acquire::Check-Date": "true",
        "Dir::Etc::trusted": root / "none.gpg",
        "Dir::Etc::trustedparts": root / "none",
    }
    flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return subprocess.run(
        ["apt-get", "-q", *flags, *words],
        capture_output=True,
        text=True,
        check=False,
        env={"LC_ALL": "C", "PATH": PATH},
    )


PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

INSTALLED = "Package: {}\nStatus: install ok installed\nVersion: 1\nArchitecture: amd64\n\n"


def sentence(said: str) -> str:
    """What the role nvidia_repository makes of apt's words."""
    return next((one["says"] for one in SENTENCES if re.search(one["pattern"], said)), "")


def simulated(repository: Repository, root: Path, *packages: str) -> dict[str, str]:
    """Package -> version of what apt would install."""
    assert apt(repository, root, "update").returncode == 0
    done = apt(repository, root, "-s", "install", *packages)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(re.findall(r"^Inst (\S+) \((\S+)", done.stdout, re.MULTILINE))


def test_the_index_speaks_of_the_files_that_are_there(repository: Repository) -> None:
    blocks = (repository.path / "Packages").read_text().split("\n\n")
    damaged = []
    for block in blocks:
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        data = (repository.path / fields["Filename"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != fields["SHA256"]:
            damaged.append(fields["Package"])
    assert len(blocks) > 80
    assert damaged == ["nvidia-container-toolkit"]


def test_apt_takes_it_and_finds_the_compute_packages_of_a_branch(repository: Repository, tmp_path: Path) -> None:
    found = simulated(repository, tmp_path, "nvidia-dkms-580-open", "libnvidia-compute-580")
    assert found["nvidia-dkms-580-open"] == "580.178.04-1ubuntu1"
    assert "dkms" in found
    assert "cuda-drivers-580" not in found


def test_the_names_of_595_have_no_branch_in_them(repository: Repository, tmp_path: Path) -> None:
    found = simulated(repository, tmp_path, "nvidia-open", "nvidia-fabricmanager")
    assert {found[name] for name in ("nvidia-dkms-open", "libnvidia-compute")} == {"595.91.07-1ubuntu1"}
    assert found["nvidia-fabricmanager"] == "595.91.07-1"


def test_the_metapackage_cuda_drags_a_driver_and_the_toolkit_does_not(repository: Repository, tmp_path: Path) -> None:
    assert "cuda-drivers" in simulated(repository, tmp_path, "cuda")
    alone = simulated(repository, tmp_path, "cuda-toolkit-13-0", "cuda-toolkit-12-9")
    assert {"cuda-nvcc-13-0", "cuda-nvcc-12-9"} <= set(alone)
    assert not [name for name in alone if "nvidia" in name or "drivers" in name]


def test_only_one_pinning_package_can_be_there(repository: Repository, tmp_path: Path) -> None:
    assert apt(repository, tmp_path, "update").returncode == 0
    done = apt(repository, tmp_path, "-s", "install", "nvidia-driver-pinning-580", "nvidia-driver-pinning-595")
    assert done.returncode != 0
    assert "onflicts" in done.stdout


def test_a_missing_dependency_stops_apt_before_it_begins(repository: Repository, tmp_path: Path) -> None:
    assert apt(repository, tmp_path, "update").returncode == 0
    done = apt(repository, tmp_path, "-s", "install", "nvidia-utils-580")
    assert done.returncode != 0
    assert "nvidia-package-that-nobody-has" in done.stdout


def test_a_truncated_package_does_not_pass_apt(repository: Repository, tmp_path: Path) -> None:
    assert apt(repository, tmp_path, "update").returncode == 0
    with serve(repository) as url:
        assert apt(repository, tmp_path, "update", url=url).returncode == 0
        done = apt(repository, tmp_path, "-y", "-d", "install", "nvidia-container-toolkit=1.19.1-1", url=url)
    assert done.returncode != 0
    assert "unexpected size" in done.stderr or "Hash Sum mismatch" in done.stderr


@pytest.mark.parametrize(
    ("state", "told"),
    [("expired", "the index has expired"), ("not-valid-yet", "the clock of this host"), ("unsigned", "not signed")],
)
def test_apt_s_words_for_a_bad_release_become_a_plain_sentence(
    repository: Repository, tmp_path: Path, state: str, told: str
) -> None:
    repository.resign(state)
    try:
        done = apt(repository, tmp_path, "update")
    finally:
        repository.resign()
    assert done.returncode != 0
    assert told in sentence(done.stdout + done.stderr), done.stdout + done.stderr
    assert apt(repository, tmp_path / "again", "update").returncode == 0


def test_a_wrong_key_and_a_missing_repository_become_plain_sentences(repository: Repository, tmp_path: Path) -> None:
    other = nvidia_repository.build(tmp_path / "other", versions=(), toolkits=(), container_toolkits=())
    done = apt(other, tmp_path / "apt", "update", url=repository.url)
    assert "not signed with that key" in sentence(done.stdout + done.stderr)
    with serve(other) as url:
        done = apt(other, tmp_path / "apt2", "update", url=f"{url}nowhere/")
    assert "no repository at that address" in sentence(done.stdout + done.stderr)


def test_a_mirror_can_die_in_the_middle_of_a_download(repository: Repository, tmp_path: Path) -> None:
    name = "libnvidia-compute-580_580.159.04-1ubuntu1_amd64.deb"
    with serve(repository, dies_in="libnvidia-compute-580") as url:
        with (
            pytest.raises(http.client.IncompleteRead),
            urllib.request.urlopen(f"{url}{name}") as answer,  # noqa: S310  our own server on loopback
        ):
            answer.read()
        assert apt(repository, tmp_path, "update", url=url).returncode == 0
        done = apt(repository, tmp_path, "-y", "-d", "install", "libnvidia-compute-580=580.159.04-1ubuntu1", url=url)
        assert done.returncode != 0
        assert "Failed to fetch" in done.stderr


def fingerprints(data: bytes) -> str:
    """What the role's script says of a key file."""
    done = subprocess.run(
        [sys.executable, str(ROLE / "files/fingerprint.py")], input=data, capture_output=True, check=True
    )
    return done.stdout.decode().strip()


def test_a_key_s_fingerprint_is_read_without_gpg(repository: Repository) -> None:
    assert fingerprints(repository.key.encode()) == f"asc {repository.fingerprint}"
    assert fingerprints(dearmour(repository.key)) == f"gpg {repository.fingerprint}"
    assert fingerprints(repository.key.replace("\n", "\r\n").encode()) == f"asc {repository.fingerprint}"


def test_a_second_key_in_the_file_does_not_stay_unseen(repository: Repository, tmp_path: Path) -> None:
    other = nvidia_repository.build(tmp_path / "other", versions=(), toolkits=(), container_toolkits=())
    both = f"{repository.fingerprint},{other.fingerprint}"
    assert fingerprints((repository.key + other.key).encode()) == f"asc {both}"
    assert fingerprints(dearmour(repository.key) + dearmour(other.key)) == f"gpg {both}"


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"\xff\xff\xff\xff\xff\xff\xff", b"\x99\x01"])
def test_what_is_no_key_has_no_fingerprint(data: bytes) -> None:
    form, _, found = fingerprints(data).partition(" ")
    assert form == "unreadable" or not found


def test_an_unknown_breakage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such breakage: explodes"):
        nvidia_repository.build(tmp_path / "repository", broken={"580.159.04": "explodes"})
