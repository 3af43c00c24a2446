"""The JSON Schemas of what users write, for their editors."""

from __future__ import annotations

import json
from pathlib import Path

from buildlib import distros, jsonschema
from buildlib.plan import Json
from buildlib.recipe import file_type
from buildlib.site import Site

FOLDER = "docs/schema"


def texts() -> dict[str, str]:
    """Each schema file's name and text."""
    recipe = file_type(distros.sections())
    made: dict[str, Json] = {
        "recipe.schema.json": jsonschema.schema(recipe, title="Netboot recipe"),
        "site.schema.json": jsonschema.schema(Site, title="Netboot site"),
    }
    return {name: json.dumps(schema, indent=1) + "\n" for name, schema in made.items()}


def write(folder: Path) -> list[Path]:
    """Write the schemas of a checkout; give their paths."""
    paths = []
    for name, text in texts().items():
        path = folder / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        paths.append(path)
    return paths
