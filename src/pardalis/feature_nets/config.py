"""The choice of a feature net and its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pardalis.config import not_deciding
from pardalis.errors import ConfigError

FeatureNetName = Literal["efficientnet_lite0", "squeezenet", "vgg16", "resnet50", "inception_v3"]

_PACKAGED = ("efficientnet_lite0", "squeezenet")
_HAVE_HEADS = ("vgg16", "squeezenet")  # nets that LPIPS was published with


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureNetConfig:
    """A net and its weights; those of EfficientNet-lite0 and SqueezeNet come with a package.

    Files are PyTorch (.pth) or safetensors, with torchvision's tensor names and normalisation: RGB
    with ImageNet's mean and standard deviation. Inception needs the FID weights,
    ``pt_inception-2015-12-05``.
    """

    name: FeatureNetName = "squeezenet"
    weights: Path | None = not_deciding(None)  # a file; None: those of the package
    heads: Path | None = not_deciding(None)  # a file of LPIPS heads, as in the package lpips
    layer_weights: tuple[float, ...] | None = None  # without heads only; None: equal

    @property
    def files(self) -> list[Path]:
        """The files that the config names."""
        return [path for path in (self.weights, self.heads) if path is not None]

    def __post_init__(self) -> None:
        if self.weights is None and self.name not in _PACKAGED:
            raise ConfigError(
                f"weights are missing: no package holds those of {self.name}; give a file, or "
                f"choose {' or '.join(_PACKAGED)}."
            )
        if self.heads is not None:
            self._check_heads()
        if self.layer_weights is not None and not (
            self.layer_weights
            and min(self.layer_weights) >= 0
            and 0 < sum(self.layer_weights) < float("inf")
        ):
            raise ConfigError(
                "layer_weights must be finite, 0 or more and not all 0, got "
                f"{list(self.layer_weights)}."
            )

    def _check_heads(self) -> None:
        if self.name not in _HAVE_HEADS:
            raise ConfigError(
                f"heads of LPIPS are fitted to {' or '.join(_HAVE_HEADS)}, not to {self.name}; "
                "leave them out, or choose one of these nets."
            )
        if self.weights is None:
            raise ConfigError(
                f"heads of LPIPS are fitted to torchvision's weights of {self.name}, which are not "
                "the packaged ones; set weights to a file of them too, or leave heads out."
            )
        if self.layer_weights is not None:
            raise ConfigError(
                "heads and layer_weights both weight the layers; leave one of them out."
            )
