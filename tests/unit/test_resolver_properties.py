"""Whatever is asked, the resolver never proposes what a fact forbids (resolver_facts.py is the oracle)."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from provision.compat.model import Machine, Resolution, Source, Wish
from provision.compat.resolver import resolve
from tests.unit.resolver_facts import LAST_BRANCH, SYSTEMS, allowed_branches, forbidden

SOURCES: tuple[Source, ...] = ("nvidia", "distro")
GROUPS: dict[tuple[str, int], list[str]] = {}
for one in sorted(LAST_BRANCH):
    GROUPS.setdefault((one[:2], LAST_BRANCH[one]), []).append(one)
cards = (
    st.sampled_from(sorted(GROUPS))
    .flatmap(lambda key: st.sampled_from(GROUPS[key]))
    .flatmap(lambda one: st.sampled_from([f"10de:{one}", f"10de:{one.upper()}", f"10de:{one} 10de:0001"]))
)
strange = st.sampled_from(["10de:4001", "10de:ffff", "8086:2335", "1002:740f"])
machines = st.builds(
    Machine,
    gpus=st.lists(st.one_of(*[cards] * 19, strange), max_size=3).map(tuple),
    os=st.sampled_from(SYSTEMS * 9 + ("rocky-9.5", "")),
    kernel=st.sampled_from(["", "6.8.0-45-generic", "5.15.0-100-generic", "7.0.0-1017-aws", "6.1.0-30-amd64", "6.6.6"]),
    architecture=st.sampled_from(["x86_64"] * 19 + ["aarch64"]),
    nvswitches=st.sampled_from([0, 4]),
    secure_boot=st.sampled_from([None, False, True]),
)
branches = ["auto"] * 20 + ["390", "470", "535", "550", "570", "580", "590", "595", "610", "615", "620"]
branches += ["580.159.04", "580.65.01", "595.91.07", "535.183.01", "latest", "58", "580.1.2.3"]
wishes = st.builds(
    Wish,
    source=st.sampled_from(["nvidia", "distro", "mirror", "none"]),
    branch=st.sampled_from(branches),
    module=st.sampled_from(["auto", "auto", "auto", "open", "proprietary"]),
    scope=st.sampled_from(["compute", "full"]),
    cuda=st.lists(
        st.sampled_from(["auto", "10.2", "11.5", "11.8", "12.0", "12.4", "12.9", "13.0", "13.1", "13.4", "13.5", "x"]),
        max_size=3,
    ).map(tuple),
    fabric_manager=st.sampled_from([True, True, True, False]),
    container_toolkit=st.booleans(),
    frameworks=st.fixed_dictionaries(
        {},
        optional={
            "torch": st.sampled_from(["auto", "auto", "2.15.0", "2.14.1", "2.10.0", "2.7.1", "2.0.1", "1.0"]),
            "tensorflow": st.sampled_from(["auto", "auto", "2.21.0", "2.16.2", "2.14.1"]),
            "jax": st.sampled_from(["auto", "0.10.2", "0.6.2"]),
        },
    ),
)


@settings(max_examples=1000, deadline=None)
@given(machine=machines, wish=wishes)
@example(machine=Machine(("10de:118a",), "ubuntu-26.04"), wish=Wish(source="distro"))
@example(machine=Machine(("10de:1db1", "10de:2901"), "ubuntu-24.04"), wish=Wish())
@example(machine=Machine(("10de:2901",), "debian-13"), wish=Wish(source="distro"))
@example(machine=Machine(("10de:2901",), "ubuntu-26.04"), wish=Wish(source="distro", cuda=("12.4",)))
@example(machine=Machine(("10de:2335",), "debian-13", nvswitches=4), wish=Wish(source="distro"))
@example(machine=Machine(("10de:3182",), "ubuntu-24.04"), wish=Wish(cuda=("12.4", "auto")))
@example(machine=Machine(("10de:1b06",), "ubuntu-24.04"), wish=Wish(cuda=("13.0",), frameworks={"torch": "2.15.0"}))
def test_the_resolver_never_proposes_what_a_fact_forbids(machine: Machine, wish: Wish) -> None:
    found = resolve(machine, wish)

    assert forbidden(machine, wish, found) == []


@settings(max_examples=400, deadline=None)
@given(gpus=st.lists(cards, min_size=1, max_size=3).map(tuple), os=st.sampled_from(SYSTEMS), wish=wishes)
def test_a_driver_is_found_exactly_where_the_facts_allow_one(gpus: tuple[str, ...], os: str, wish: Wish) -> None:
    wish = replace(wish, branch="auto", source=wish.source if wish.source != "none" else "nvidia")
    machine = Machine(gpus, os)
    driver = resolve(machine, wish).part("driver")

    allowed: set[int | None] = {*allowed_branches(machine, wish, list(gpus))}

    assert (int(driver.value) if driver else None) in (allowed or {None})


def test_the_default_wish_breaks_no_fact_for_any_card_of_nvidias_list_on_any_system() -> None:
    frameworks = {"torch": "auto", "tensorflow": "auto", "jax": "auto"}
    for one in LAST_BRANCH:
        for system in SYSTEMS:
            for source in SOURCES:
                machine, wish = (
                    Machine((f"10de:{one}",), system),
                    Wish(source=source, cuda=("auto",), frameworks=frameworks),
                )
                assert forbidden(machine, wish, resolve(machine, wish)) == [], (one, system, source)


@settings(max_examples=100, deadline=None)
@given(machine=machines, wish=wishes, data=st.data())
def test_neither_the_order_of_the_cards_nor_how_many_of_a_kind_there_are_changes_the_parts(
    machine: Machine, wish: Wish, data: st.DataObject
) -> None:
    other = data.draw(st.permutations(machine.gpus * 2).map(tuple))
    again = Machine(other, machine.os, machine.kernel, machine.architecture, machine.nvswitches, machine.secure_boot)

    def core(found: Resolution) -> list[tuple[str, str, tuple[str, ...], str, str]]:
        return [(part.name, part.value, part.packages, part.pin, part.index) for part in found.parts]

    assert core(resolve(machine, wish)) == core(resolve(again, wish))


@settings(max_examples=200, deadline=None)
@given(
    gpus=st.lists(st.text(max_size=30), max_size=3).map(tuple),
    words=st.lists(st.text(max_size=20), min_size=6, max_size=6),
)
def test_whatever_a_host_or_a_profile_says_ends_in_a_resolution_with_plain_text(
    gpus: tuple[str, ...], words: list[str]
) -> None:
    machine = Machine(gpus, "ubuntu-24.04", words[0], "x86_64", 2, None)
    wish = Wish(branch=words[1], cuda=(words[2],), frameworks={words[3]: words[4], "torch": words[5]})

    found = resolve(machine, wish)

    assert found.blockers
    for text in (*found.notes, *(one.what + one.next_step for one in found.blockers)):
        assert text.isascii() and text.isprintable()
