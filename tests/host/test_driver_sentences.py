"""What the driver's guards and its verification say, for what a host may look like.

The real tasks, run by Ansible on this machine over planted findings. That look.py finds such things on a host is
test_driver_faults's matter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROLES = Path(__file__).resolve().parents[2] / "playbooks" / "roles"
SOUND: dict[str, Any] = {
    "kernel": "6.8.0-45-generic",
    "next_kernel": "6.8.0-45-generic",
    "container": "",
    "wsl": False,
    "secure_boot": False,
    "key": {},
    "gpus": 1,
    "loaded": "580.159.04",
    "nouveau": False,
    "module": {"name": "nvidia", "version": "580.159.04", "filename": "/lib/modules/x/nvidia.ko", "license": "NVIDIA"},
    "next_module": {"name": "nvidia", "version": "580.159.04", "filename": "/lib/modules/x/nvidia.ko"},
    "libraries": {"libcuda": "580.159.04", "libnvidia-ml": "580.159.04"},
    "smi": {"status": 0, "said": "580.159.04", "version": "580.159.04"},
    "drivers": {},
    "versions": ["580.159.04"],
    "number": "580.159.04",
    "reasons": [],
    "half": [],
    "unmet": [],
    "run_file": "",
    "missing": [],
    "known": {},
    "headers": {"packages": [], "impossible": False},
    "short": [],
    "processes": [],
    "holds": {"foreign": []},
    "changes": {"install": [], "remove": [], "error": "", "others": []},
}
NO_GPU = {"gpus": 0, "loaded": "", "smi": {"status": 9, "said": "NVIDIA-SMI has failed.", "version": ""}}
FOREIGN = {"version": "575.64-0ubuntu1", "from": "LP-PPA-graphics-drivers", "right": False, "held": False}

# tasks, what is planted, variables, words of the answer. No words: it passes.
GUARDS: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "a sound host passes": ({}, {}, []),
    "WSL": ({"wsl": True}, {}, ["the driver belongs into Windows", "nvidia_driver_source=none"]),
    "a container": ({"container": "lxc"}, {}, ["a container (lxc)", "the driver belongs to the container's host"]),
    "a container that may": ({"container": "lxc"}, {"nvidia_driver_in_container": True}, []),
    "half installed": ({"half": ["tzdata"]}, {}, ["tzdata is half installed", "dpkg --configure -a"]),
    "broken and held": ({"unmet": ["a (held)", "b"]}, {}, ["a (held), b", "apt-mark unhold a;"]),
    "a .run file": ({"run_file": "sudo nvidia-uninstall"}, {}, [".run file", "sudo nvidia-uninstall"]),
    "a personal archive": (
        {"drivers": {"nvidia-driver-575": FOREIGN, "libnvidia-compute-575": FOREIGN}},
        {},
        [
            "nvidia-driver-575 575.64-0ubuntu1 from LP-PPA",
            "and 1 more",
            "purge nvidia-driver-575 libnvidia-compute-575",
        ],
    ),
    "no headers": (
        {"headers": {"packages": [], "impossible": True}, "next_kernel": "6.8.0-50-generic"},
        {},
        ["no package linux-headers-6.8.0-45-generic", "the installed 6.8.0-50-generic"],
    ),
    "Secure Boot, no key": (
        {"secure_boot": True, "key": {"path": "", "enrolled": False}},
        {},
        ["has not been made yet", "update-secureboot-policy --new-key", "mokutil --import"],
    ),
    "Secure Boot, a key that is not enrolled": (
        {"secure_boot": True, "key": {"path": "/var/lib/dkms/mok.pub", "enrolled": False}},
        {},
        ["(/var/lib/dkms/mok.pub) is not enrolled", "mokutil --import /var/lib/dkms/mok.pub"],
    ),
    "Secure Boot, enrolled": ({"secure_boot": True, "key": {"path": "/x", "enrolled": True}}, {}, []),
    "no room": ({"short": ["/boot has 9 MiB free and 96 MiB are needed"]}, {}, ["/boot has 9 MiB", "Make room"]),
    "programs": ({"processes": [f"python3 ({n})" for n in range(10)]}, {}, ["python3 (0), ", "and 2 more"]),
    "programs that may": ({"processes": ["a (1)"]}, {"nvidia_driver_allow_running_processes": True}, []),
    "not in the archive": (
        {"missing": ["nvidia-utils-580"], "known": {"nvidia-utils-580": ["580.1-1", "580.2-1"]}},
        {"nvidia_driver_version": "580.3"},
        ["no nvidia-utils-580 of 580.3", "(580.1-1, 580.2-1)"],
    ),
    "another's hold": (
        {
            "holds": {"foreign": ["libcuda1", "apt"]},
            "changes": {"install": [{"name": "libcuda1"}], "remove": [], "error": ""},
        },
        {},
        ["somebody has held libcuda1 on", "apt-mark unhold libcuda1"],
    ),
    "apt's refusal": (
        {"changes": {"install": [], "remove": [], "error": "a : Depends: b"}},
        {},
        ["a : Depends: b", "Nothing was changed"],
    ),
    "others would go": (
        {"changes": {"install": [], "remove": ["slurm"], "error": "", "others": ["slurm"]}},
        {},
        ["would remove slurm"],
    ),
}
AGREE: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "all is well": ({}, {}, []),
    "nothing installed": ({"versions": []}, {}, ["no package of a driver is installed"]),
    "two drivers": ({"versions": ["575.1.1", "580.159.04"]}, {}, ["more than one driver", "575.1.1 and 580.159.04"]),
    "no module": ({"module": {}, "next_module": {}}, {}, ["no module for the kernel 6.8.0-45-generic", "autoinstall"]),
    "the next boot has none": (
        {"next_kernel": "6.8.0-50-generic", "next_module": {}},
        {},
        ["the kernel of the next boot, 6.8.0-50-generic, has no module"],
    ),
    "a library of another version": (
        {"libraries": {"libcuda": "575.1.1", "libnvidia-ml": "580.159.04"}},
        {},
        ["libcuda.so.1 is not of the version of the packages, 580.159.04"],
    ),
    "a mismatch before the reboot": ({"loaded": "575.1.1"}, {}, []),
    "a mismatch after the reboot": (
        {"loaded": "575.1.1"},
        {"bringup_rebooted": True},
        ["the kernel has the module 575.1.1 loaded, and 580.159.04 is installed, after the reboot as before"],
    ),
    "no GPU": ({**NO_GPU, "container": ""}, {"_nvidia_driver_modprobe": {"stderr": "modprobe: No such device"}}, []),
    "a GPU that the module does not take": (
        {**NO_GPU, "gpus": 2},
        {"_nvidia_driver_modprobe": {"stderr": "modprobe: ERROR: could not insert 'nvidia': No such device"}},
        ["which has 2 NVIDIA GPUs", "No such device"],
    ),
    "Secure Boot": (
        {"loaded": "", "smi": NO_GPU["smi"]},
        {"_nvidia_driver_modprobe": {"stderr": "modprobe: ERROR: Key was rejected by service"}},
        ["Secure Boot keeps the module out", "mokutil --import"],
    ),
    "nvidia-smi fails": (
        {"smi": {"status": 12, "said": "no library", "version": ""}},
        {},
        ["nvidia-smi fails (12): no library"],
    ),
    "no nvidia-smi": (
        {"smi": {"status": 127, "said": "", "version": ""}},
        {"bringup_reboot_needed": True},
        ["no nvidia-smi on this host, which has 1 NVIDIA GPUs", "nvidia_driver_packages: nvidia-driver-cuda"],
    ),
    "no nvidia-smi and no GPU": ({"gpus": 0, "loaded": "", "smi": {"status": 127, "said": "", "version": ""}}, {}, []),
}


def answers(cases: dict[str, Any], parts: list[str], folder: Path) -> dict[str, str]:
    """Run the role's task files over each case in one play; return what each said: its failure, or "passed"."""
    base = {
        "nvidia_driver_in_container": False,
        "nvidia_driver_allow_running_processes": False,
        "nvidia_driver_version": "",
        "bringup_rebooted": False,
        "bringup_reboot_needed": False,
        "_nvidia_driver_modprobe": {},
    }
    include = [
        {"ansible.builtin.include_role": {"name": "nvidia_driver", "tasks_from": part, "public": True}}
        for part in parts
    ]
    failure = "{{ said | default({}) | combine({case.name: ansible_failed_result.msg}) }}"
    verdict = (
        "{{ said | default({}) | combine({case.name: 'passed: ' ~ (_nvidia_driver_verdict if case.verdict else '')}) }}"
    )
    (folder / "case.yml").write_text(
        json.dumps(
            [
                {"ansible.builtin.set_fact": {"_nvidia_driver_seen": "{{ case.seen }}"}},
                {"ansible.builtin.set_fact": {name: f"{{{{ case.given.{name} }}}}" for name in base}},
                {
                    "block": [*include, {"ansible.builtin.set_fact": {"said": verdict}}],
                    "rescue": [{"ansible.builtin.set_fact": {"said": failure}}],
                },
            ]
        )
    )
    listed = [
        {"name": name, "seen": {**SOUND, **seen}, "given": {**base, **given}, "verdict": "agree" in parts}
        for name, (seen, given, _) in cases.items()
    ]
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {
            "ansible_python_interpreter": sys.executable,
            "nvidia_driver_source": "nvidia",
            "nvidia_driver_branch": "580",
        },
        "tasks": [
            {
                "ansible.builtin.include_tasks": str(folder / "case.yml"),
                "loop": listed,
                "loop_control": {"loop_var": "case"},
            },
            {
                "ansible.builtin.copy": {
                    "content": "{{ said | to_json }}",
                    "dest": str(folder / "said.json"),
                    "mode": "0600",
                }
            },
        ],
    }
    (folder / "book.yml").write_text(json.dumps([play]))
    env = {**os.environ, "ANSIBLE_ROLES_PATH": str(ROLES), "ANSIBLE_LOCALHOST_WARNING": "0", "LC_ALL": "C.UTF-8"}
    command = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", str(folder / "book.yml")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (folder / "said.json").exists(), done.stdout[-3000:] + done.stderr[-1000:]
    found: dict[str, str] = json.loads((folder / "said.json").read_text())
    return found


@pytest.fixture(scope="module")
def guards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return answers(GUARDS, ["guards", "packages"], tmp_path_factory.mktemp("guards"))


@pytest.fixture(scope="module")
def agree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return answers(AGREE, ["agree"], tmp_path_factory.mktemp("agree"))


def holds(said: str, words: list[str]) -> None:
    assert "\n" not in said
    if not words:
        assert said.startswith("passed"), said
    for one in words:
        assert one in said


@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_says_what_is_in_the_way_and_the_next_step(guards: dict[str, str], name: str) -> None:
    holds(guards[name], GUARDS[name][2])


@pytest.mark.parametrize("name", AGREE)
def test_verification_says_what_does_not_agree(agree: dict[str, str], name: str) -> None:
    holds(agree[name], AGREE[name][2])


def test_a_host_without_a_gpu_is_not_called_a_success(agree: dict[str, str]) -> None:
    assert "modprobe says: No such device" in agree["no GPU"]
    assert "the driver was not seen at work" in agree["no GPU"]
    assert "There is no nvidia-smi" in agree["no nvidia-smi and no GPU"]
    assert "the driver was not seen at work" in agree["no nvidia-smi and no GPU"]
    assert "nvidia-smi works" in agree["all is well"]


def test_a_mismatch_before_the_reboot_asks_for_one(agree: dict[str, str]) -> None:
    assert "Reboot needed" in agree["a mismatch before the reboot"]
