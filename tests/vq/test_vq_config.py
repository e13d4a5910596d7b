import dataclasses
import json

import pytest
import torch

from pardalis import config as configs
from pardalis.errors import BundleError, ConfigError
from pardalis.vq import (
    PRESETS,
    QUANTIZERS,
    ImageTokenizer,
    ImageTokenizerConfig,
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
        (
            {"channel_multipliers": (1, 0)},
            r"multiples of 1 or more, at most 16 and 1024, got \[1, 0\]",
        ),
    ],
)
def test_wrong_values_name_the_field(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(tiny(), **changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beta": -1.0}, r"^quantizer.beta must be 0 or more, got -1"),
        ({"kind": "ibq", "entropy_weight": -1.0}, r"^quantizer.entropy_weight must be 0 or more"),
        ({"kind": "ema", "legacy": True}, r"for kind 'ema'; it is a key of 'vq' and 'l2' and 'sim"),
        ({"kind": "fsq", "legacy": False}, r"^Unknown key 'quantizer.legacy' for kind 'fsq'"),
        ({"levels": [8, 8]}, r"'quantizer.levels' for kind 'vq'; it is a key of 'fsq'"),
        ({"kind": "fsq", "levels": []}, r"^quantizer.levels must be a list of counts from 3 to 64"),
        ({"kind": "fsq", "levels": [8, 2]}, r"counts from 3 to 64, got \[8, 2\]"),
        ({"kind": "fsq", "levels": [65]}, r"counts from 3 to 64, got \[65\]"),
    ],
)
def test_options_of_another_quantizer_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        configs.from_dict(ImageTokenizerConfig, configs.to_dict(tiny()) | {"quantizer": values})


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
    quantizer = QUANTIZERS["fsq"](levels=levels)
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(tiny(), n_codes=n_codes, quantizer=quantizer)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("kind", ["vq", "ema", "l2", "simvq", "ibq", "fsq"])
def test_a_kind_is_one_word(preset, kind):
    values = configs.merged(configs.to_dict(preset()), {"quantizer": {"kind": kind}})
    assert configs.from_dict(ImageTokenizerConfig, values).quantizer.kind == kind


def test_chameleons_beta_weights_the_codebook_loss():
    assert chameleon().quantizer.legacy


# ── version 1 ────────────────────────────────────────────────────────────────────────────────────

OLD = {
    "plain": (
        {"kind": "gradient", "beta": 0.25, "legacy": True, "normalise": False},
        QUANTIZERS["vq"](legacy=True),
    ),
    "of the paper": (
        {"kind": "gradient", "beta": 0.5, "legacy": False, "normalise": False},
        QUANTIZERS["vq"](legacy=False, beta=0.5),
    ),
    "at length 1": (
        {"kind": "gradient", "beta": 0.25, "legacy": False, "normalise": True},
        QUANTIZERS["l2"](legacy=False),
    ),
    "running means": (
        {"kind": "ema", "beta": 1.0, "legacy": True, "normalise": False},
        QUANTIZERS["ema"](beta=1.0),
    ),
    "running means at length 1": (
        {"kind": "ema", "beta": 0.25, "legacy": True, "normalise": True},
        QUANTIZERS["l2"](legacy=False),
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
    assert header["version"] == 3
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


def test_a_tokenizer_of_version_2_loads(small_config, tmp_path):
    """Its table had the fields of every kind."""
    expected = initialise(ImageTokenizer(small_config), seed=0)
    expected.save(tmp_path)
    path = tmp_path / "config.json"
    header = json.loads(path.read_text())
    header["version"] = 2
    header["config"]["quantizer"] = {"kind": "ema", "beta": 0.25, "entropy_weight": 0.05}
    path.write_text(json.dumps(header))
    assert ImageTokenizer.load(tmp_path).config == expected.config
