"""Finding an image tokenizer in whatever folder holds one."""

from pathlib import Path

import torch

from pardalis.devices import find_device
from pardalis.files import existing_folder
from pardalis.pipeline.start import image_tokenizer_in
from pardalis.vq import ImageTokenizer


def find_image_tokenizer(path: Path | str, device: torch.device | str = "cpu") -> ImageTokenizer:
    """Load the image tokenizer of a bundle, of a run, or of its own folder, ready for use.

    Raises:
        BundleError: the folder holds none, or it is incomplete or does not fit its config.
        ConfigError: there is no such device, or a run's recipe is wrong.
    """
    folder = image_tokenizer_in(existing_folder(Path(path)))
    return ImageTokenizer.load(folder).to(find_device(device))
