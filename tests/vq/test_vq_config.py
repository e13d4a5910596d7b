import dataclasses

import pytest

from pardalis import config as configs
from pardalis.errors import ConfigError
from pardalis.vq import PRESETS, ImageTokenizerConfig, QuantizerConfig, chameleon, tiny


def test_derived_values():
    assert (chameleon().downsampling, chameleon().grid, chameleon().codes_per_picture) == (
        16,
        32,
        1024,
    )
    assert (tiny().downsampling, tiny().grid, tiny().codes_per_picture) == (8, 8, 64)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_plain_values_and_back(preset):
    assert configs.from_dict(ImageTokenizerConfig, configs.to_dict(preset())) == preset()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"resolution": 60},
            "resolution is 60, but patch_size 4 and 2 levels shrink a side 8 times",
        ),
        ({"n_codes": 0}, "n_codes must be at least 1, got 0"),
        ({"norm_groups": -1}, "norm_groups must be 0 or more, got -1"),
        ({"channel_multipliers": ()}, "channel_multipliers needs at least one level"),
        ({"channel_multipliers": (1, 0)}, r"multiples of 1 or more, got \[1, 0\]"),
    ],
)
def test_wrong_values_name_the_field(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(tiny(), **changes)


def test_a_negative_beta_is_refused():
    with pytest.raises(ConfigError, match=r"^beta must be 0 or more, got -1"):
        QuantizerConfig(beta=-1.0)
