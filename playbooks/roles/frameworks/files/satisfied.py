"""Exit with 0 where the requirements in the arguments are there with all they need: pip takes a second for that."""

import sys
from importlib.metadata import distribution

from pip._vendor.packaging.requirements import Requirement


def satisfied(requirement, seen):
    """Whether it is installed in its version, and what it needs, its extras included; raises where it is not there."""
    key = (requirement.name.lower(), *sorted(requirement.extras))
    if key in seen:
        return True
    seen.add(key)
    found = distribution(requirement.name)
    if requirement.url or not requirement.specifier.contains(found.version, prereleases=True):
        return False
    extras = ["", *requirement.extras]
    needed = [Requirement(line) for line in found.requires or []]
    return all(
        satisfied(one, seen)
        for one in needed
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
    )


# A requirement that this cannot read is pip's: the traceback ends it with another status.
done = set()
sys.exit(0 if all(satisfied(Requirement(text), done) for text in sys.argv[1:]) else 1)
