"""Finding an image tokenizer in whatever folder holds one."""

from pathlib import Path

import torch

from pardalis import bundle as bundles
from pardalis.devices import find_device
from pardalis.errors import BundleError
from pardalis.files import existing_folder
from pardalis.pipeline.recipe import load_recipe
from pardalis.pipeline.start import image_tokenizer_folder
from pardalis.vq import ImageTokenizer

_RECIPE = "recipe.toml"
_CONFIG = "config.json"


def find_image_tokenizer(path: Path | str, device: torch.device | str = "cpu") -> ImageTokenizer:
    """Load the image tokenizer of a bundle, of a run, or of its own folder, ready for use.

    Raises:
        BundleError: the folder holds none, or it is incomplete or does not fit its config.
        ConfigError: there is no such device, or a run's recipe is wrong.
    """
    folder = _folder_of(existing_folder(Path(path)))
    return ImageTokenizer.load(folder).to(find_device(device))


def _folder_of(path: Path) -> Path:
    if (path / bundles.DESCRIPTION).is_file():
        return path / bundles.IMAGE_TOKENIZER
    if (path / _RECIPE).is_file():
        return image_tokenizer_folder(load_recipe(path / _RECIPE), path)
    if (path / _CONFIG).is_file():
        return path
    raise BundleError(
        f"{path} holds no image tokenizer; give the folder of a bundle, of a run, or of an image "
        f"tokenizer ({_CONFIG} and model.safetensors)."
    )
