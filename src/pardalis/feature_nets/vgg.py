"""VGG-16 (arXiv 1409.1556), the usual net of LPIPS losses."""

from itertools import chain

from jaxtyping import Float
from torch import Tensor, nn

from pardalis.feature_nets.net import Network, maps_after

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions


class VGG16(Network):
    """The network without its classifier; names follow torchvision's.

    Its maps are the last activations of each stage, as in LPIPS.
    """

    widths = tuple(width for width, _ in _STAGES)
    classifier = "classifier."

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *chain.from_iterable([width] * count for width, count in _STAGES)]
        layers: list[nn.Module] = []
        maps, built = [], 0
        for stage, (_, count) in enumerate(_STAGES):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                layers += [nn.Conv2d(widths[built], widths[built + 1], 3, padding=1), nn.ReLU()]
                built += 1
            maps.append(len(layers) - 1)
        self._maps = tuple(maps)
        self.features = nn.Sequential(*layers)

    def forward(self, pixels: Float[Tensor, "B 3 Y X"]) -> list[Float[Tensor, "B _ _ _"]]:
        return maps_after(self.features, self._maps, pixels)
