from pathlib import Path

import matplotlib
import numpy as np
import PIL.Image
import pytest
import torch
from jaxtyping import Float
from torch import Tensor


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def photograph() -> PIL.Image.Image:
    """A rear admiral in uniform, from matplotlib's sample data."""
    folder = Path(matplotlib.get_data_path()) / "sample_data"
    return PIL.Image.open(folder / "grace_hopper.jpg").convert("RGB")


@pytest.fixture(scope="session")
def photograph_pixels(photograph: PIL.Image.Image) -> Float[Tensor, "1 3 224 224"]:
    bytes_ = np.array(photograph.resize((224, 224), PIL.Image.Resampling.BICUBIC))
    return torch.from_numpy(bytes_).permute(2, 0, 1)[None].float() / 127.5 - 1
