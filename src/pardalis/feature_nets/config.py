"""Which feature net, and where its weights are."""

from dataclasses import dataclass
from typing import Literal

from pardalis.config import not_deciding
from pardalis.errors import ConfigError

FeatureNetName = Literal["efficientnet_lite0", "squeezenet", "vgg16", "resnet50", "inception_v3"]

_HAVE_A_PACKAGE = ("efficientnet_lite0", "squeezenet")
_HAVE_HEADS = ("vgg16", "squeezenet")  # of those that LPIPS was published with


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureNetConfig:
    """A net and its weights. EfficientNet-lite0 and SqueezeNet have a package that holds them.

    Files are PyTorch's (.pth) or safetensors, with the tensor names of torchvision, and see pixels
    as its nets do: RGB, less ImageNet's mean, over its deviation. Those of Inception are the FID
    one's, ``pt_inception-2015-12-05``.
    """

    name: FeatureNetName = "squeezenet"
    weights: str | None = not_deciding(None)  # a file; none = those of the package
    heads: str | None = not_deciding(None)  # a file of LPIPS heads, such as the package lpips has
    layer_weights: tuple[float, ...] | None = None  # of a distance without heads; none = all alike

    @property
    def files(self) -> list[str]:
        """The files that are named: of weights, and of heads."""
        return [path for path in (self.weights, self.heads) if path is not None]

    def __post_init__(self) -> None:
        if self.weights is None and self.name not in _HAVE_A_PACKAGE:
            raise ConfigError(
                f"weights are missing: no package holds those of {self.name}; name a file of "
                f"them, or choose {' or '.join(_HAVE_A_PACKAGE)}."
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
                f"heads of LPIPS are fitted to torchvision's weights of {self.name}, and the "
                "packaged ones are others; name those weights too, or leave heads out."
            )
        if self.layer_weights is not None:
            raise ConfigError(
                "heads and layer_weights both weigh the layers; leave one of them out."
            )
