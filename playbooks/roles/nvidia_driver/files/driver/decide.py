"""Say how a host stands to what is wanted of it: argv[1] is the wish as JSON, standard output the answer.

What apt would do is asked of apt itself (`apt-get -s`), never guessed.
"""

import json
import os
import re
import sys
from pathlib import Path

from archive import CORE, FABRIC, MODULES, OURS, PREBUILT, Apt, upstream
from kernels import boot_kernels, for_running, headers, kernel_metapackages, leftovers, whole
from look import library, modules, processes, run, run_file, smi, text, unit, unlike, where

SIMULATE = [
    "apt-get", "-s", "-q", "-y", "--no-install-recommends", "--allow-downgrades", "--allow-change-held-packages",
    "-o", "Debug::NoLocking=1", "install",
]  # fmt: skip
HOLDS = Path("/var/lib/gpu-bringup/nvidia_driver_holds")
REASONS = Path("/run/gpu-bringup/reboot")
ROUNDS = 4


def main():
    """Print the answer."""
    wish = json.loads(sys.argv[1])
    apt = Apt(wish)
    kernels = boot_kernels(wish["kernel"] or os.uname().release)
    answer = {
        **where(),
        "kernel": kernels[0],
        "next_kernel": kernels[1],
        "loaded": text("/sys/module/nvidia/version") or loaded_by_proc(),
        "nouveau": Path("/sys/module/nouveau").exists(),
        "initramfs": next((name for name in ("update-initramfs", "dracut") if found_program(name)), ""),
        "module": modules(kernels[0]),
        "next_module": modules(kernels[1]),
        "libraries": {name: library(f"{name}.so.1") for name in ("libcuda", "libnvidia-ml")},
        "smi": smi(),
        "unit": unit(),
        "unlike": unlike(wish["contents"]),
        "drivers": apt.drivers(),
        "reasons": text(REASONS).splitlines(),
        **apt.broken(),
    }
    answer["versions"] = sorted(
        {upstream(one["version"]) for name, one in answer["drivers"].items() if CORE.match(name)} - {""}
    )
    answer["holds"] = holds(apt, answer["drivers"], wish)
    answer["headers"] = headers(apt, kernels, wish)
    answer.update(wanted(apt, wish, answer))
    if not answer["converged"]:
        # Only a change can hurt them, and only a change can be hindered by them.
        answer["processes"] = processes(wish["ignored_processes"])
        answer["run_file"] = run_file()
        answer["short"] = short_of_room(wish["free_mib"])
    sys.stdout.write(json.dumps(answer) + "\n")


def loaded_by_proc():
    """Return the loaded driver's version by /proc, where /sys does not say it."""
    found = re.search(r"\s(\d{3,}\.\d+(?:\.\d+)?)\s", text("/proc/driver/nvidia/version"))
    return found.group(1) if found else ""


def found_program(name):
    """Whether root has this program."""
    return any((Path(folder) / name).exists() for folder in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"))


def holds(apt, drivers, wish):
    """Return which packages lack our hold, and which somebody else holds."""
    ours = set(text(HOLDS).splitlines())
    managers = apt.installed_like(FABRIC)
    names = sorted([*drivers, *(kernel_metapackages(apt) if wish["hold_kernel"] else []), *ours.intersection(managers)])
    missing = [name for name in names if not held(apt, name)]
    foreign = [name for name in dict.fromkeys([*names, *managers]) if held(apt, name) and name not in ours]
    remembered = sorted(name for name in ours if apt.installed(name)) == [one for one in names if one not in foreign]
    return {"all": names, "missing": missing, "foreign": foreign, "remembered": remembered}


def held(apt, name):
    """Whether a package is held."""
    package = apt.package(name)
    return package is not None and package.selected_state == apt.pkg.SELSTATE_HOLD


def wanted(apt, wish, answer):
    """Return the versions to have, what is missing in the archives, and what apt would do about it."""
    names = list(wish["packages"])
    targets, number = choose(apt, names, wish["version"] or wish["branch"])
    if not all(targets.values()) and any(map(PREBUILT.match, names)):
        # There is no prebuilt module for the driver that is installed: the newest has one.
        newest = choose(apt, names, wish["version"] or wish["branch"], keep=False)
        targets, number = newest if all(newest[0].values()) else (targets, number)
    targets.update(for_running(apt, names, number, answer["kernel"]))
    targets.update(persistence(apt, wish, number))
    found = {
        "missing": [name for name, version in targets.items() if not version],
        "known": {name: apt.known(name)[:6] for name, version in targets.items() if not version},
        "number": number,
        "pin": wish["pin"] if wish["pin"] and not apt.installed(wish["pin"]) else "",
        "first": [],
        "changes": {"install": [], "remove": [], "error": "", "words": [], "automatic": []},
        "converged": True,
    }
    if found["pin"] and apt.package(found["pin"]) is None:
        found["missing"].append(found["pin"])
    if found["missing"]:
        return {**found, "converged": False}
    first = answer["headers"]["packages"] + ([found["pin"]] if found["pin"] else [])
    if wish["pin"]:
        # There is room for one. Named, since apt removes nothing by itself that is held.
        other = [name for name in answer["drivers"] if name.startswith("nvidia-driver-pinning") and name != wish["pin"]]
        first += [f"{name}-" for name in other]
    found["first"] = first
    wrong = [name for name, version in targets.items() if apt.installed(name) != version]
    stray = strays(answer["drivers"], number)
    unsound = answer["half"] or answer["unmet"]
    if wrong or first or stray or (unsound and any(OURS.match(name) for name in answer["half"])):
        needed = apt.dependencies(targets, number) if number else {}
        found["changes"] = simulate(apt, {**targets, **needed}, first, answer["drivers"], number)
        # What is named to apt counts as asked for by a person; these are there for others.
        found["changes"]["automatic"] = [name for name in needed if not apt.installed(name)]
        found["converged"] = False
    elif number and answer["module"].get("version") != number and answer["next_module"].get("version") != number:
        # Packages of the right version, and no module of them: a kernel that came without one.
        found["converged"] = not wish["builds"]
    return found


def choose(apt, names, release, *, keep=True):
    """Return name -> version of the packages, and the driver's version that they are all of."""
    targets = {name: apt.choose(name, release, keep=keep) for name in names}
    numbers = {upstream(version) for version in targets.values()} - {""}
    if len(numbers) > 1:
        # One driver for all: what is installed already, else the newest.
        there = {upstream(apt.installed(name)) for name in names} & numbers if keep else set()
        number = max(there or numbers, key=lambda one: [int(part) for part in one.split(".")])
        targets = {name: apt.choose(name, number, keep=keep) for name in names}
        numbers = {number}
    number = numbers.pop() if numbers else ""
    targets.update({name: apt.prebuilt(name, number) for name in names if PREBUILT.match(name)})
    return targets, number


def strays(drivers, number):
    """Return the installed packages of a driver of another version."""
    if not number:
        return []
    return [
        name
        for name, one in drivers.items()
        if CORE.match(name) and upstream(one["version"]) and upstream(one["version"]) != number
    ]


def persistence(apt, wish, number):
    """Return the package that has nvidia-persistenced, by its name in the archive that is used."""
    if not wish["persistence"]:
        return {}
    for name in wish["persistence_packages"]:
        # Debian's own nvidia-persistenced has versions of its own.
        version = apt.choose(name, number, held_to=wish["source"] != "distro" or name != "nvidia-persistenced")
        if version:
            return {name: version}
    return {}


def simulate(apt, targets, first, drivers, number):
    """Return what apt would install and remove, and the words to tell it.

    Packages of another version that are there, or that apt would bring, are named as well.
    """
    words = [f"{name}={version}" for name, version in targets.items()]
    # apt removes or changes nothing by itself that is held: what has to go or to come along is named.
    for name in strays(drivers, number):
        if name not in targets:
            other = apt.choose(name, number)
            words.append(f"{name}={other}" if upstream(other) == number else f"{name}-")
    if any(MODULES.match(name) for name in targets):
        # There is room for one kernel module: the other flavour's, and what drags it along, goes.
        other = [name for name in drivers if MODULES.match(name) and name not in targets]
        words += [f"{name}-" for name in other if f"{name}-" not in words]
    if number:
        words += [f"{name}-" for name in leftovers(apt, targets, drivers, number)]
        words += fabric(apt, number)
    named = {*targets, *strays(drivers, number)}
    for _ in range(ROUNDS):
        status, said = run(*SIMULATE, *first, *words, timeout_s=180)
        if status:
            return {"install": [], "remove": [], "error": unmet(said), "words": words}
        install = re.findall(r"(?m)^Inst (\S+) (?:\[(\S+)\] )?\((\S+)", said)
        remove = re.findall(r"(?m)^Remv (\S+)", said)
        more = []
        for name, _, version in install:
            if number and name not in named and CORE.match(name) and upstream(version) not in ("", number):
                other = apt.choose(name, number)
                if upstream(other) == number:
                    more.append(f"{name}={other}")
                    named.add(name)
        more += [name for name in whole(apt, targets, [one for one, _, _ in install]) if name not in words]
        if not more:
            break
        words += more
    return {
        "install": [{"name": name, "now": now, "then": then} for name, now, then in install],
        "remove": remove,
        "others": [name for name in remove if not OURS.match(name) and not FABRIC.match(name)],
        "error": "",
        "words": words,
    }


def fabric(apt, number):
    """Return the words for the fabric manager and its like: of the driver's version they stay, else they go."""
    words = []
    for name in apt.installed_like(FABRIC):
        if upstream(apt.installed(name)) != number:
            version = apt.choose(name, number)
            words.append(f"{name}={version}" if version else f"{name}-")
    return words


def unmet(said):
    """Return the reason in apt's own words, in one line."""
    lines = [line.strip() for line in said.splitlines()]
    depends = [line for line in lines if re.search(r"(Depends|Conflicts|Breaks): ", line)]
    errors = [line for line in lines if line.startswith("E:")]
    return "; ".join((depends or errors or lines[-1:])[:4])[:600]


def short_of_room(free_mib):
    """Return a sentence for each directory with less room than is needed."""
    found = []
    for name, needed in free_mib.items():
        try:
            room = os.statvfs(name)
        except OSError:
            continue
        free = room.f_bavail * room.f_frsize // 1048576
        if free < int(needed):
            found.append(f"{name} has {free} MiB free and {needed} MiB are needed")
    return found
