"""The public face: every name imports, and grows only on purpose."""

import importlib

import pytest

import pardalis
from pardalis.config import Kinds

PACKAGES = (
    "documents",
    "tokens",
    "parallel",
    "feature_nets",
    "vq",
    "data",
    "model",
    "objectives",
    "retrieval",
    "train",
    "evaluate",
    "pipeline",
)


def test_the_top_level():
    assert pardalis.__all__ == [
        "Bundle", "Document", "Engine", "EngineConfig", "GenerationConfig", "Image", "Mask",
        "PardalisError", "Response", "Text", "generate", "generate_many", "infill", "infill_many",
        "load", "score",
    ]  # fmt: skip
    for name in pardalis.__all__:
        assert getattr(pardalis, name) is not None
        assert name in dir(pardalis)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        pardalis.nothing  # noqa: B018


def public_names(module) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


@pytest.mark.parametrize("package", [*PACKAGES, "inference.public"])
def test_a_package_exports_its_own_names(package):
    """What its __init__ imports is public, so it imports nothing of other packages."""
    home = f"pardalis.{package.partition('.')[0]}"
    for name, value in public_names(importlib.import_module(f"pardalis.{package}")).items():
        module = getattr(value, "__module__", home)
        assert (
            module.startswith(home)
            or isinstance(value, Kinds)
            or module
            in (
                "types",
                "typing",
                "builtins",
                "collections.abc",
            )
        ), name


def test_names_of_inference_are_imported_on_use():
    inference = importlib.import_module("pardalis.inference")
    for name, value in public_names(importlib.import_module("pardalis.inference.public")).items():
        assert getattr(inference, name) is value
