"""What each parameter of a decoder is. A layer with parameters of other names adds lines.

The names of modules may have a prefix: ``cross_attention`` is counted and divided as ``attention``,
``cross_norm`` as a norm.
"""

from pardalis.parameters import ParameterSpec

# What a decoder's parameters are counted as, in the order of the forward pass.
PARTS = ("embedding", "attention", "feed_forward", "norms", "head")

_ATTENTION, _FEED_FORWARD = r"(\w+_)?attention\.", r"(\w+_)?feed_forward\."
_NORM = r"(?![qk]_norm)(\w+_)?norm\."

PARAMETERS = [
    ParameterSpec(r"embedding\.weight", "embedding", "normal", split="vocabulary"),
    ParameterSpec(r"(\w+_)?position_embedding\.weight", "embedding", "position"),
    ParameterSpec(
        rf"{_ATTENTION}[qkv]_proj\.weight", "attention", "normal", decays=True, split="outputs"
    ),
    ParameterSpec(rf"{_ATTENTION}[qkv]_proj\.bias", "attention", "zeros", split="outputs"),
    ParameterSpec(
        rf"{_ATTENTION}o_proj\.weight", "attention", "output", decays=True, split="inputs"
    ),
    ParameterSpec(rf"{_ATTENTION}o_proj\.bias", "attention", "zeros"),
    ParameterSpec(
        rf"{_FEED_FORWARD}(gate|up)_proj\.weight",
        "feed_forward", "normal", decays=True, split="outputs",
    ),
    ParameterSpec(rf"{_FEED_FORWARD}up_proj\.bias", "feed_forward", "zeros", split="outputs"),
    ParameterSpec(
        rf"{_FEED_FORWARD}down_proj\.weight",
        "feed_forward", "output", decays=True, split="inputs",
    ),
    ParameterSpec(rf"{_FEED_FORWARD}down_proj\.bias", "feed_forward", "zeros"),
    ParameterSpec(rf"{_ATTENTION}[qk]_norm\.weight", "norms", "ones", split="heads"),
    ParameterSpec(rf"{_ATTENTION}[qk]_norm\.bias", "norms", "zeros", split="heads"),
    ParameterSpec(rf"{_NORM}weight", "norms", "ones"),
    ParameterSpec(rf"{_NORM}bias", "norms", "zeros"),
    ParameterSpec(r"combine\.weight", "head", "normal", decays=True),
    ParameterSpec(r"head\.weight", "head", "normal", decays=True, split="vocabulary"),
]  # fmt: skip
