"""The options of generation: one set of names, checked in one place and documented everywhere."""

import inspect
import subprocess
import sys
from dataclasses import fields

import pytest

import pardalis
from pardalis.errors import RequestError
from pardalis.inference import Contrastive, EngineDriver, Guidance, PromptFile, SamplingConfig
from pardalis.inference.generation import GenerationConfig, option_help


@pytest.mark.parametrize(
    "documented",
    [
        pardalis.generate,
        pardalis.generate_many,
        pardalis.Engine.submit,
        EngineDriver.submit,
        pardalis.GenerationConfig,
        PromptFile,
    ],
)
def test_the_documentation_lists_every_option_with_its_default(documented):
    text = " ".join(inspect.getdoc(documented).split())
    for option in fields(GenerationConfig):
        assert f" {option.name}: {option_help(option)}." in text
        assert "(default: " in option_help(option)


def test_the_parts_of_a_config():
    config = GenerationConfig(temperature=0.5, top_k=3, image_top_k=4)
    assert config.text_sampling == SamplingConfig(temperature=0.5, top_k=3)
    assert config.image_sampling == SamplingConfig(temperature=0.7, top_k=4, top_p=0.9)
    assert config.guidance_method is None
    assert GenerationConfig(guidance=3.0).guidance_method == Guidance(text=3.0)
    three_way = GenerationConfig(image_guidance=1.2).guidance_method
    assert three_way == Guidance(text=1.0, image=1.2)
    contrastive = GenerationConfig(contrastive_alpha=0.1, contrastive_k=2).guidance_method
    assert contrastive == Contrastive(alpha=0.1, k=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "sing"}, "mode must be one of 'text', 'image', 'interleaved', got 'sing'."),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be of type int, got 2.5."),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number, 1 or more, got 0."),
        ({"max_images": -1}, "max_images must be a whole number, 0 or more, got -1."),
        ({"temperature": "hot"}, "temperature must be of type float, got 'hot'."),
        ({"temperature": True}, "temperature must be of type float, got True."),
        ({"temperature": None}, "temperature must be of type float, got None."),
        ({"temperature": -1}, "temperature must be 0 or more, got -1.0."),
        ({"temperature": 10**400}, "temperature is too large for a floating-point number."),
        ({"image_top_p": 0}, "image_top_p must lie in (0, 1], got 0.0."),
        ({"guidance": float("nan")}, "guidance must be a number, got nan."),
        ({"image_guidance": 1e7}, "image_guidance must be a number from"),
        ({"contrastive_alpha": 2}, "contrastive_alpha must lie in [0, 1], got 2.0."),
        ({"contrastive_k": 3}, "contrastive_k applies to contrastive decoding only"),
        ({"contrastive_alpha": 0.1, "contrastive_k": 0}, "contrastive_k must be a whole number"),
        ({"contrastive_alpha": 0.1, "guidance": 2}, "contrastive_alpha and `guidance` or"),
        ({"chat": 1}, "chat must be of type bool, got 1."),
        ({"logprobs": -1}, "logprobs must be a whole number, 0 or more, got -1."),
        ({"logprobs": 10**12}, "logprobs must be a whole number, 0 or more, got 10000"),
        ({"stop": ["a", ""]}, "stop must hold texts of at least one character, got ''."),
        ({"stop": ["a"] * 65}, "stop holds more than 64 texts, or one of more than 256"),
        ({"stop": ["a" * 257]}, "stop holds more than 64 texts, or one of more than 256"),
        ({"stop": "a"}, "stop must be a list, got 'a'."),
        ({"seed": 1.5}, "seed must be of type int, got 1.5."),
        ({"temprature": 1}, "Unknown key 'temprature'; did you mean 'temperature'?"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(RequestError) as caught:
        GenerationConfig().with_options(options)
    assert str(caught.value).startswith(message)


def test_none_stands_for_the_default_of_an_optional_field():
    config = GenerationConfig(max_images=2, image_guidance=1.2)
    assert config.with_options({"max_images": None, "image_guidance": None}) == GenerationConfig()


def test_options_need_neither_torch_nor_numpy_and_check_types_in_python_too():
    """In a process without the type checker that the other tests run under."""
    code = """
import sys
from pardalis.inference.generation import GenerationConfig
assert {"torch", "numpy"}.isdisjoint(sys.modules)
try:
    GenerationConfig(temperature=1, chat=1)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "RequestError chat must be of type bool, got 1.\n"
