"""Profiles: those that come along, and a user's own with every mistake we could think of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from provision.compat.model import Wish
from provision.errors import ProfileError
from provision.profile import PROFILES, known_profiles, load_profile

IMAGE = "registry.example.net/serve@sha256:" + "a1" * 32


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ProfileError) as caught:
        load_profile(own(tmp_path, text))
    assert "mine.toml" in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message.replace(str(tmp_path), "")


@pytest.mark.parametrize("name", known_profiles())
def test_each_profile_that_comes_along_is_read_and_carries_its_file_s_name(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.description
    assert load_profile(PROFILES / f"{name}.toml") == profile


def test_the_profiles_differ_in_what_they_are_for() -> None:
    assert known_profiles() == ("image", "inference", "standard", "training")
    standard, training, image = (load_profile(name) for name in ("standard", "training", "image"))
    assert not standard.gpu_required
    assert standard.wish == Wish()
    assert training.gpu_required
    assert training.wish.cuda == ("13.0",)
    assert training.wish.frameworks == {"torch": "auto", "tensorflow": "auto"}
    assert "keras==3.12.4" in training.extras["tensorflow"]
    assert (image.wish.branch, image.wish.module, image.gpu_required) == ("580", "open", False)


def test_an_unknown_name_is_guessed_at() -> None:
    with pytest.raises(ProfileError, match='no profile is called "trainng"; did you mean "training"') as caught:
        load_profile("trainng")
    assert "--profile ./mine.toml" in caught.value.hint


def test_an_empty_file_is_the_defaults_under_its_own_name(tmp_path: Path) -> None:
    profile = load_profile(own(tmp_path, ""))
    assert profile.name == "mine"
    assert profile.wish == Wish()
    assert profile.gpu_required


def test_every_key_reaches_its_field(tmp_path: Path) -> None:
    profile = load_profile(
        own(
            tmp_path,
            f"""
            name = "lab-7"
            description = "ours"
            gpu_required = false
            images = ["{IMAGE}"]
            driver = {{ source = "mirror", branch = "580.159.04", module = "proprietary", scope = "full" }}
            cuda = {{ toolkits = ["12.9", "13.0"] }}
            containers = {{ docker = "distro", toolkit = false }}
            fabric_manager = {{ wanted = false }}
            nvtop = {{ from = "none" }}
            [frameworks.jax]
            [frameworks.torch]
            version = "2.13.0"
            extras = ["pillow==12.0.0", "/srv/wheels/six-1.16.0-py3-none-any.whl"]
            """,
        )
    )
    assert profile.wish == Wish(
        source="mirror",
        branch="580.159.04",
        module="proprietary",
        scope="full",
        cuda=("12.9", "13.0"),
        fabric_manager=False,
        container_toolkit=False,
        frameworks={"jax": "auto", "torch": "2.13.0"},
    )
    assert (profile.name, profile.description, profile.gpu_required) == ("lab-7", "ours", False)
    assert (profile.docker, profile.nvtop, profile.images) == ("distro", "none", (IMAGE,))
    assert profile.extras == {"torch": ("pillow==12.0.0", "/srv/wheels/six-1.16.0-py3-none-any.whl")}


@pytest.mark.parametrize("make", [lambda path: own(path, "x = 1"), lambda _: "zzz"])
def test_where_nothing_is_near_what_is_allowed_is_said_once(tmp_path: Path, make: Callable[[Path], Path | str]) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(make(tmp_path))

    assert "known:" not in caught.value.message, "the next step names them"
    assert "name, description" in caught.value.hint or "image, inference" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu_require = true", 'unknown key "gpu_require"; did you mean "gpu_required"?'),
        ("[drivr]", 'unknown key "drivr"; did you mean "driver"?'),
        ('[driver]\nbrnch = "580"', '[driver]: unknown key "brnch"; did you mean "branch"?'),
        ("[frameworks.pytorch]", '[frameworks]: unknown key "pytorch"; did you mean "torch"?'),
        ("[frameworks.torch]\nextra = []", '[frameworks.torch]: unknown key "extra"; did you mean "extras"?'),
        ('[driver]\nsource = "nvida"', 'source = "nvida" will not do: it has to be one of nvidia, distro'),
        ('[driver]\nsource = "nvida"', 'did you mean "nvidia"?'),
        ("[driver]\nbranch = 580", "branch = 580 will not do"),
        ('[driver]\nbranch = "latest"', 'branch = "latest" will not do: it has to be a branch as "580"'),
        ("[cuda]\ntoolkits = [12.10]", "not 12.1"),
        ('[cuda]\ntoolkits = "13.0"', 'toolkits = "13.0" will not do: it has to be a list in brackets'),
        ('[cuda]\ntoolkits = ["13.0", "13.0"]', "names each entry once"),
        ("[containers]\ntoolkit = 1", "toolkit = 1 will not do: it has to be true or false"),
        ('gpu_required = "yes"', 'gpu_required = "yes" will not do: it has to be true or false'),
        ('driver = "580"', 'driver = "580" is not a section; write [driver] above its keys'),
        ('[frameworks]\ntorch = "2.13.0"', "write [frameworks.torch] above its keys"),
        ('[frameworks.torch]\nextras = ["keras"]', '"keras"'),
        ('[frameworks.torch]\nextras = ["keras>=3"]', "a package pinned as"),
        ('[frameworks.torch]\nextras = ["--index-url=http://x"]', "a package pinned as"),
        ('[frameworks.torch]\nextras = ["https://me:secret@host/a.whl"]', "a package pinned as"),
        ('images = ["registry.example.net/serve:latest"]', "an image by digest"),
        ('name = "../../etc"', "letters, digits, dots and dashes"),
        ('description = "a\\u001b[31mb"', "one line of text"),
        ("name = ", "is not TOML"),
        ("a = " + "[" * 5000, "nested too deep"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_key_and_what_is_allowed(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text)


def test_a_file_that_is_missing_too_long_or_not_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"none\.toml cannot be read: No such file"):
        load_profile(tmp_path / "none.toml")
    with pytest.raises(ProfileError, match="cannot be read: Is a directory"):
        load_profile(f"{tmp_path}/")
    assert "longer than" in refusal(tmp_path, "#" * 300_000)
    (tmp_path / "mine.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(ProfileError, match="not UTF-8"):
        load_profile(tmp_path / "mine.toml")
