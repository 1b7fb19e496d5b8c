"""What apt knows, by its own bindings. Changes nothing."""

import re

import apt_pkg
from look import text

RELEASE = re.compile(r"^\d{3,}\.\d+(\.\d+)?$")
OURS = re.compile(
    r"^(nvidia-(driver(?!-assistant)|dkms|kernel|open|headless|utils|compute-utils|smi|modprobe|persistenced|settings|firmware"
    r"|alternative|legacy|tesla|vulkan|egl|opencl|vdpau)|libnvidia-(?!container|ml-dev)|libcuda1"
    r"|libcudadebugger|cuda-drivers|xserver-xorg-video-nvidia|linux-(modules|objects|signatures)-nvidia"
    r"|firmware-nvidia-gsp|libnvcuvid|libnvoptix)"
)
CORE = re.compile(
    r"^(libnvidia-compute|libcuda1$|libnvidia-ml1$|nvidia-(compute-)?utils|nvidia-smi$|nvidia-driver-cuda$|nvidia-dkms"
    r"|nvidia-(open-)?kernel(-open)?(-dkms|-source|-common|-support)|nvidia-open|nvidia-driver(?!-(pinning|assistant))"
    r"|nvidia-headless|cuda-drivers|nvidia-firmware|libnvidia-)"
)

MODULES = re.compile(
    r"^(nvidia-dkms(-\d+)?(-server)?(-open)?|nvidia-(kernel|open-kernel|kernel-open)-dkms|nvidia-open(-\d+)?|cuda-drivers(-\d+)?)$"
)
# Ubuntu's prebuilt modules: their versions are the kernel's.
PREBUILT = re.compile(r"^linux-(modules|objects|signatures)-nvidia-")
# Of the driver's version, but not of the driver: the role fabric_manager has them.
FABRIC = re.compile(r"^(nvidia-fabricmanager|nvlink5|libnvsdm|nvidia-imex)")


def upstream(version):
    """Return the driver's version of a package's: 580.159.04 of 580.159.04-1ubuntu1; empty where it is none."""
    bare = version.partition(":")[2] or version
    bare = bare.rpartition("-")[0] or bare
    return bare if RELEASE.match(bare) else ""


class Apt:
    """What apt knows, by its own bindings. `wish` is argv[1]."""

    def __init__(self, wish):
        self.wish = wish
        self.pkg = apt_pkg
        apt_pkg.init_config()
        apt_pkg.init_system()
        self.cache = apt_pkg.Cache(None)
        # Looked through once: a distribution has a hundred thousand packages that a host does not.
        self.present = [one for one in self.cache.packages if one.current_state != apt_pkg.CURSTATE_NOT_INSTALLED]
        self.policy = apt_pkg.DepCache(self.cache)
        self.sources = apt_pkg.SourceList()
        self.sources.read_main_list()
        lines = text("/etc/apt/sources.list.d/nvidia.sources").splitlines()
        self.uris = [word.rstrip("/") for line in lines if line.startswith("URIs:") for word in line.split()[1:]]

    def package(self, name):
        """Return a package, or None."""
        return self.cache[name] if name in self.cache else None  # noqa: SIM401  apt's cache has no get()

    def installed(self, name):
        """Return the installed version's text, or the empty one."""
        package = self.package(name)
        return package.current_ver.ver_str if package is not None and package.current_ver else ""

    def installed_like(self, pattern):
        """Return the installed packages whose names match."""
        return sorted(
            one.name for one in self.cache.packages if one.current_ver is not None and pattern.match(one.name)
        )

    def origins(self, version):
        """Return (words for a person, whether it is the wanted source) for each archive that has this version."""
        found = []
        for file, _ in version.file_list:
            if file.not_source:
                continue
            index = self.sources.find_index(file)
            uri = index.archive_uri("").rstrip("/") if index is not None else ""
            nvidia = uri in self.uris or file.label == "NVIDIA CUDA" or file.origin == "NVIDIA"
            personal = file.origin.startswith("LP-PPA")
            right = nvidia if self.wish["source"] != "distro" else not nvidia and not personal
            found.append((file.origin or file.label or uri or "an archive without a name", right))
        return found

    def right(self, version):
        """Whether the wanted source has this version."""
        return any(right for _, right in self.origins(version))

    def choose(self, name, release, *, held_to=True, keep=True):
        """Return the version of a package to have, as text; empty where the wanted source has none.

        `release`: a driver version or a branch. What is installed is kept where it will do, unless `keep` is false.
        `held_to` false: a package whose version is not the driver's.
        """
        package = self.package(name)
        if package is None:
            return ""

        def fits(version):
            number = upstream(version.ver_str)
            if not number or not held_to or not release:
                return True
            return number == release or number.startswith(f"{release}.")

        there = package.current_ver
        if keep and there is not None and fits(there) and (self.right(there) or not self.origins(there)):
            return there.ver_str
        best = None
        for version in package.version_list:
            newer = best is None or self.pkg.version_compare(version.ver_str, best.ver_str) > 0
            if newer and self.right(version) and fits(version):
                best = version
        return best.ver_str if best is not None else ""

    def find(self, name, text_of_version):
        """Return a package's version object, or None."""
        package = self.package(name)
        versions = package.version_list if package is not None else []
        return next((one for one in versions if one.ver_str == text_of_version), None)

    def dependencies(self, targets, number):
        """Return the driver's packages that `targets` (name -> version) need, in the version `number`.

        apt takes the newest of each, and gives up where only an older one fits or brings two drivers together.
        """
        found = {}
        ahead = [self.find(name, version) for name, version in targets.items()]
        while ahead:
            version = ahead.pop()
            lists = version.depends_list if version is not None else {}
            for group in [*lists.get("PreDepends", []), *lists.get("Depends", [])]:
                name = group[0].target_pkg.name
                if name in targets or name in found or not OURS.match(name):
                    continue
                exact = [one.ver_str for one in group[0].all_targets()] if PREBUILT.match(name) else []
                chosen = exact[0] if exact else self.choose(name, number)
                if exact or upstream(chosen) == number:
                    found[name] = chosen
                    ahead.append(self.find(name, chosen))
        return found

    def known(self, name):
        """Return the versions of a package that the wanted source has."""
        package = self.package(name)
        return [one.ver_str for one in package.version_list if self.right(one)] if package is not None else []

    def drivers(self):
        """Return the installed packages of a driver, with version, hold and origin."""
        found = {}
        for package in self.present:
            if package.current_ver is None or not OURS.match(package.name):
                continue
            origins = self.origins(package.current_ver)
            # A version that its archive has dropped since is still that archive's.
            right = any(one for _, one in origins) if origins else any(map(self.right, package.version_list))
            found[package.name] = {
                "version": package.current_ver.ver_str,
                "held": package.selected_state == self.pkg.SELSTATE_HOLD,
                "from": ", ".join(sorted({one for one, _ in origins})) or "no archive that apt knows",
                "right": right,
            }
        return found

    def suits(self, version, number):
        """Whether a version of a prebuilt module's package is for the driver `number`: its dependencies say so."""
        lists = version.depends_list
        for group in [*lists.get("PreDepends", []), *lists.get("Depends", [])]:
            names = [one.target_pkg.name for one in group]
            there = [one for dependency in group for one in dependency.all_targets()]
            if any(map(PREBUILT.match, names)):
                if not any(self.suits(one, number) for one in there):
                    return False
            elif any(map(CORE.match, names)) and not any(upstream(one.ver_str) == number for one in there):
                return False
        return True

    def prebuilt(self, name, number):
        """Return the version of a prebuilt module's package for a driver: the installed one, else the newest."""
        package = self.package(name)
        if package is None:
            return ""
        there, best = package.current_ver, None
        for version in package.version_list:
            if (version == there or self.right(version)) and self.suits(version, number):
                if version == there:
                    return there.ver_str
                if best is None or self.pkg.version_compare(version.ver_str, best.ver_str) > 0:
                    best = version
        return best.ver_str if best is not None else ""

    def broken(self):
        """Return the packages that are half installed, and those whose dependencies are not met."""
        sound = (self.pkg.CURSTATE_NOT_INSTALLED, self.pkg.CURSTATE_CONFIG_FILES, self.pkg.CURSTATE_INSTALLED)
        half, unmet = [], []
        for package in self.present:
            if package.current_state not in sound:
                half.append(package.name)
            elif package.current_ver is not None and self.policy.is_inst_broken(package):
                held = " (held)" if package.selected_state == self.pkg.SELSTATE_HOLD else ""
                unmet.append(package.name + held)
        return {"half": sorted(half), "unmet": sorted(unmet)}
