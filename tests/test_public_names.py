"""The public face: every name imports, and grows only on purpose."""

import importlib

import pytest

import pardalis

PACKAGES = (
    "documents",
    "tokens",
    "parallel",
    "feature_nets",
    "vq",
    "data",
    "model",
    "objectives",
    "train",
    "inference",
    "evaluate",
    "pipeline",
)


def test_the_top_level():
    assert pardalis.__all__ == [
        "Bundle", "Document", "Engine", "EngineConfig", "GenerationConfig", "Image",
        "Text", "generate", "generate_many", "load",
    ]  # fmt: skip
    for name in pardalis.__all__:
        assert getattr(pardalis, name) is not None
        assert name in dir(pardalis)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        pardalis.nothing  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists_once(package):
    module = importlib.import_module(f"pardalis.{package}")
    assert len(module.__all__) == len(set(module.__all__))
    for name in module.__all__:
        assert hasattr(module, name), name
