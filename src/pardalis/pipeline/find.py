"""Loading the image tokenizer of a folder."""

from pathlib import Path

import torch

from pardalis.devices import find_device
from pardalis.files import existing_folder
from pardalis.pipeline.start import image_tokenizer_in
from pardalis.vq import ImageTokenizer


def find_image_tokenizer(path: Path | str, device: torch.device | str = "cpu") -> ImageTokenizer:
    """Load the image tokenizer of a bundle, a run, or its own folder onto a device.

    Raises:
        BundleError: the folder has none, or its files are incomplete or do not match its config.
        ConfigError: the device does not exist, or the recipe of a run is wrong.
    """
    folder = image_tokenizer_in(existing_folder(Path(path)))
    return ImageTokenizer.load(folder).to(find_device(device))
