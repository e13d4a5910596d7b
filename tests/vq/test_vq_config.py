import dataclasses
import json

import pytest
import torch

from pardalis import config as configs
from pardalis.errors import BundleError, ConfigError
from pardalis.vq import (
    PRESETS,
    ImageTokenizer,
    ImageTokenizerConfig,
    QuantizerConfig,
    chameleon,
    initialise,
    tiny,
)


def test_derived_values():
    assert (chameleon().downsampling, chameleon().grid, chameleon().codes_per_image) == (
        16,
        32,
        1024,
    )
    assert (tiny().downsampling, tiny().grid, tiny().codes_per_image) == (8, 8, 64)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_plain_values_round_trip(preset):
    assert configs.from_dict(ImageTokenizerConfig, configs.to_dict(preset())) == preset()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"resolution": 60},
            "resolution is 60, but patch_size 4 and 2 levels downsample by 8",
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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beta": -1.0}, r"^beta must be 0 or more, got -1"),
        ({"kind": "ibq", "entropy_weight": -1.0}, r"^entropy_weight must be 0 or more, got -1"),
        ({"kind": "ema", "legacy": True}, r"^legacy applies to kinds vq, l2, simvq, not ema"),
        ({"kind": "fsq", "legacy": False}, r"^legacy applies to kinds vq, l2, simvq, not fsq"),
        ({"levels": (8, 8)}, r"^levels apply to kind fsq, not vq; leave them out"),
        ({"kind": "fsq", "levels": ()}, r"^levels must be a list of counts from 3 to 64, got \[\]"),
        ({"kind": "fsq", "levels": (8, 2)}, r"counts from 3 to 64, got \[8, 2\]"),
        ({"kind": "fsq", "levels": (65,)}, r"counts from 3 to 64, got \[65\]"),
    ],
)
def test_options_of_another_quantizer_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        QuantizerConfig(**values)


@pytest.mark.parametrize(
    ("n_codes", "levels", "message"),
    [
        (
            1024,
            (8, 5, 5, 5),
            r"^n_codes is 1024, but quantizer.levels \[8, 5, 5, 5\] make 1000 codes",
        ),
        (1021, None, r"^n_codes is 1021, which is no product of numbers from 5 to 64; choose"),
        (4, None, r"^n_codes is 4, which is no product"),
    ],
)
def test_codes_and_levels_must_agree(n_codes, levels, message):
    quantizer = QuantizerConfig(kind="fsq", levels=levels)
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(tiny(), n_codes=n_codes, quantizer=quantizer)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("kind", ["vq", "ema", "l2", "simvq", "ibq", "fsq"])
def test_a_kind_is_one_word(preset, kind):
    values = configs.to_dict(preset())
    values["quantizer"]["kind"] = kind
    assert configs.from_dict(ImageTokenizerConfig, values).quantizer.kind == kind


def test_chameleons_beta_weights_the_codebook_loss():
    assert chameleon().quantizer.beta_weighs_codebook


# ── version 1 ────────────────────────────────────────────────────────────────────────────────────

OLD = {
    "plain": (
        {"kind": "gradient", "beta": 0.25, "legacy": True, "normalise": False},
        QuantizerConfig(kind="vq", legacy=True),
    ),
    "of the paper": (
        {"kind": "gradient", "beta": 0.5, "legacy": False, "normalise": False},
        QuantizerConfig(kind="vq", legacy=False, beta=0.5),
    ),
    "at length 1": (
        {"kind": "gradient", "beta": 0.25, "legacy": False, "normalise": True},
        QuantizerConfig(kind="l2", legacy=False),
    ),
    "running means": (
        {"kind": "ema", "beta": 1.0, "legacy": True, "normalise": False},
        QuantizerConfig(kind="ema", beta=1.0),
    ),
    "running means at length 1": (
        {"kind": "ema", "beta": 0.25, "legacy": True, "normalise": True},
        QuantizerConfig(kind="l2", legacy=False),
    ),
}


@pytest.mark.parametrize("case", OLD)
def test_tokenizers_of_version_1_load(small_config, tmp_path, case):
    old, new = OLD[case]
    expected = initialise(
        ImageTokenizer(dataclasses.replace(small_config, quantizer=new)), seed=0
    ).eval()
    expected.save(tmp_path)
    path = tmp_path / "config.json"
    header = json.loads(path.read_text())
    assert header["version"] == 2
    header["version"], header["config"]["quantizer"] = 1, old
    path.write_text(json.dumps(header))
    loaded = ImageTokenizer.load(tmp_path)
    assert loaded.config == expected.config
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(loaded.encode(pixels), expected.encode(pixels))


def test_an_old_config_without_a_quantizer_is_named(small_tokenizer, tmp_path):
    small_tokenizer.save(tmp_path)
    path = tmp_path / "config.json"
    header = json.loads(path.read_text())
    header["version"] = 1
    del header["config"]["quantizer"]
    path.write_text(json.dumps(header))
    with pytest.raises(BundleError, match=r"config\.json is not an image tokenizer's config"):
        ImageTokenizer.load(tmp_path)
