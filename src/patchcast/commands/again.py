"""What has to be typed to run a recipe again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from patchcast.recipe import Recipe


def options(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Name and value of every option that is not the default, in the recipe's order.

    >>> from pathlib import Path
    >>> dict(options(Recipe("mae", "test_vit", "my photos", Path("runs/a"), steps=5, flip=True)))
    {'method': 'mae', 'model': 'test_vit', 'data': 'my photos', 'out': 'runs/a', 'flip': 'true', 'steps': '5'}
    """
    values = recipe.to_dict()
    for field in dataclasses.fields(Recipe):
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        value = values[field.name]
        if value is not None and value != default:
            yield field.name, value if isinstance(value, str) else json.dumps(value)
