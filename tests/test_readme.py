"""What the README says is so: its commands, its names, its table of keys."""

from __future__ import annotations

import re
from pathlib import Path

from kit.recipe.explain import reference_table
from kit.recipe.read import find_recipe

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_it_opens_with_the_two_commands():
    first = re.search(r"```bash\n(.*?)```", README, re.S)
    assert first is not None
    assert first[1].splitlines() == [
        "pip install . && kit quickstart",
        "pip install '.[test]' && pytest",
    ]


def test_every_command_that_it_names_is_there():
    import typer

    from kit.cli.app import app

    commands = set(typer.main.get_command(app).commands)
    named = set(re.findall(r"^kit +([a-z]+)", README, re.M)) | {"quickstart"}
    assert named <= commands
    documented = "quickstart run plan pair evaluate residual merge report recipes schema doctor"
    assert commands == set(documented.split())


def test_every_recipe_that_it_names_is_there():
    for name in re.findall(r"kit (?:plan|run) +([\w.-]+)", README):
        assert find_recipe(name).exists()
    cards = README[README.index("| card |") : README.index("Memory and time of these plans")]
    named = set(re.findall(r"`([\w.-]+)`", cards))
    assert named == {path.stem for path in (ROOT / "recipes").rglob("*.yaml")}


def test_the_table_of_keys_is_the_schemas():
    begin, end = "<!-- recipe reference -->", "<!-- end of recipe reference -->"
    found = README[README.index(begin) + len(begin) : README.index(end)].strip()
    assert found == reference_table().strip()


def test_the_recipe_that_it_shows_is_valid(tmp_path):
    from kit.recipe.read import read_recipe

    shown = re.search(r"```yaml\n(.*?)```", README, re.S)
    assert shown is not None
    (tmp_path / "r.yaml").write_text(shown[1])
    assert read_recipe(tmp_path / "r.yaml").recipe.name == "my-news"


def test_public_names_are_there_and_sorted():
    import kit

    assert list(kit.__all__) == sorted(kit.__all__)
    for name in kit.__all__:
        assert getattr(kit, name).__doc__
