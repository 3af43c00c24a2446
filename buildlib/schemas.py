"""What the types of recipes and site files say of themselves: JSON Schemas for editors, a reference for readers."""

from __future__ import annotations

import json
from pathlib import Path

from buildlib import distros, jsonschema, reference
from buildlib.plan import Json
from buildlib.recipe import file_type
from buildlib.site import Site

FOLDER = "docs"

RECIPE = """\
All keys of `recipes/NAME/recipe.yaml`. What they are for is told in [Recipes](../recipes.md), and of each distribution
in [NixOS](../nixos.md), [Alpine](../alpine.md) and [Arch Linux](../archlinux.md). A path begins at the file that it
stands in, and leads nowhere out of `recipes/`. Lists have no element twice."""

SITE = """\
All keys of `site.yaml`, at the top of the checkout or in `recipes/`. What they are for is told in
[Targets](../targets.md), with an [example](../site.example.yaml) that has them all."""

EXTENDS = "Files to start from. Maps merge, lists are appended to, anything else here overrides; `!replace` discards."


def texts() -> dict[str, str]:
    """Each file's path below docs/ and its text."""
    recipe = file_type(distros.sections())
    made: dict[str, Json] = {
        "schema/recipe.schema.json": jsonschema.schema(recipe, title="Netboot recipe"),
        "schema/site.schema.json": jsonschema.schema(Site, title="Netboot site"),
    }
    return {
        **{name: json.dumps(schema, indent=1) + "\n" for name, schema in made.items()},
        "reference/recipe.md": reference.page(recipe, title="Recipe reference", text=RECIPE, extends=EXTENDS),
        "reference/site.md": reference.page(Site, title="Site reference", text=SITE, extends=EXTENDS),
    }


def write(folder: Path) -> list[Path]:
    """Write the files of a checkout; give their paths."""
    paths = []
    for name, text in texts().items():
        path = folder / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        paths.append(path)
    return paths
