"""What to generate and how to sample it: one set of options for Python, files and commands.

This module imports neither torch nor numpy, so that the command line can list the options at once.
"""

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from math import isfinite
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, TypeVar

from pardalis import config as configs
from pardalis.errors import ConfigError, RequestError

GenerationMode = Literal["text", "image", "interleaved"]
LARGEST_SCALE = 1e6  # guidance scale; above it, rounding errors exceed the logits

MOST_STOPS, _LONGEST_STOP = 64, 256  # texts, and characters: each is looked for at every token

T = TypeVar("T", bound=Callable[..., Any])


def is_count(number: object) -> bool:
    """Whether something is an integer of 0 or more that a tensor of any integer type can hold."""
    return isinstance(number, int) and 0 <= number < 2**31


def _check_scale(name: str, scale: float | None) -> None:
    if scale is not None and not abs(scale) <= LARGEST_SCALE:  # also refuses NaN
        raise RequestError(
            f"{name} must be a number from {-LARGEST_SCALE:g} to {LARGEST_SCALE:g}, got {scale}."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How a token is sampled from the model's distribution after the grammar has masked it."""

    temperature: float = 1.0  # divides the logits; 0 takes the most likely token
    top_k: int = 0  # keep the k most likely tokens and those tied with the k-th; 0 keeps all
    top_p: float = 1.0  # keep the most likely tokens that together reach this probability

    def __post_init__(self) -> None:
        if not (isfinite(self.temperature) and self.temperature >= 0):
            raise RequestError(f"temperature must be 0 or more, got {self.temperature}.")
        if not is_count(self.top_k):
            raise RequestError(
                f"top_k must be a whole number, 0 (off) or more and below 2^31, got {self.top_k}."
            )
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must lie in (0, 1], got {self.top_p}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """Classifier-free guidance of image tokens.

    Let l be the logits given the whole context, u those of the unconditional branch, which reads
    ``bos`` and the open image only, and i those of the image-conditional branch, which reads the
    context's images without its text. Tokens are sampled from u + text (l - u), or, if ``image`` is
    given, from u + image (i - u) + text (l - i) as in Chameleon's release. If the context has no
    image before the open one, i equals u and the two forms agree.
    """

    text: float = 1.0  # scale of the text's influence; 1 is no guidance
    image: float | None = None  # scale of the earlier images' influence; Chameleon uses 1.2

    def __post_init__(self) -> None:
        _check_scale("text", self.text)
        _check_scale("image", self.image)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrastive:
    """Contrastive decoding of image tokens, CD-K of CM3Leon (arXiv 2309.02591).

    Let p be the distribution given the whole context and q that of the unconditional branch, which
    reads ``bos`` and the open image only. A token t with p(t) >= alpha times the k-th largest p has
    the score log p(t) - log q(t); other tokens are masked. k = 1 is plain contrastive decoding. The
    paper does not give its values of alpha and k.
    """

    alpha: float  # 0 keeps every token
    k: int

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise RequestError(f"alpha must lie in [0, 1], got {self.alpha}.")
        if not (is_count(self.k) and self.k):
            raise RequestError(f"k must be a whole number, 1 or more and below 2^31, got {self.k}.")


ImageGuidance: TypeAlias = Guidance | Contrastive


def option_help(option: "Field[Any]") -> str:
    """Return the meaning of a field of :class:`GenerationConfig`, with its default."""
    meaning: str = option.metadata["help"]
    return meaning if option.default in (None, ()) else f"{meaning} (default: {option.default})"


def documents_options(target: T) -> T:
    """Replace ``{options}`` in a docstring by the fields of :class:`GenerationConfig`."""
    before, found, after = (target.__doc__ or "").partition("{options}")
    if found:
        indent = before[before.rindex("\n") + 1 :]
        entries = [
            textwrap.fill(
                f"{option.name}: {option_help(option)}.", 92, subsequent_indent=indent + "    "
            )
            for option in fields(GenerationConfig)
        ]
        target.__doc__ = before + f"\n{indent}".join(entries) + after
    return target


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def plain_value(name: str, value: Any) -> Any:
    """Return an option's value as one of Python's own types; NumPy has numbers of its own.

    Raises:
        RequestError: it has no such type, or is a number too large to write down.
    """
    if isinstance(value, list | tuple):
        return tuple(plain_value(f"{name}[{number}]", each) for number, each in enumerate(value))
    if isinstance(value, Integral) and not isinstance(value, bool):
        value = int(value)
        if value.bit_length() > 4096:
            raise RequestError(f"{name} has more than 4,096 bits, too many for any option.")
    elif isinstance(value, Real) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, bool | int | float | str | None):
        raise RequestError(
            f"{name} must be a number, a text or None, got a value of type {type(value).__name__}."
        )
    return value


def _option(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationConfig:
    """What to generate for a prompt and how to sample it.

    The same names are keyword arguments of :func:`pardalis.generate`, keys of a line in a JSONL
    file of prompts and, with dashes, flags of ``pardalis generate``. An option says something of
    the texts or of the images that are generated, and holds for each of them: where there is none,
    as in mode ``text`` for images, it changes nothing.

    Args:
        {options}

    Raises:
        RequestError: a value has the wrong type or is out of range. The message begins with the
            name of the field.
    """

    mode: GenerationMode = _option(  # noqa: RUF009
        "interleaved",
        "what may be generated: text only, images only, or interleaved text and images, where the "
        "model decides when an image begins",
    )
    max_new_tokens: int | None = _option(
        None,
        "largest number of tokens in the completion (default: what the model's context leaves)",
    )
    max_images: int | None = _option(
        None,
        "largest number of images in the completion (default: 1 in mode image, otherwise no limit)",
    )
    temperature: float = _option(0.0, "sampling temperature of text; 0 takes the most likely token")
    top_k: int = _option(0, "sample text from the k most likely tokens; 0 keeps all")
    top_p: float = _option(
        1.0, "sample text from the most likely tokens that together reach this probability"
    )
    image_temperature: float = _option(
        0.7, "sampling temperature of image tokens; 0 takes the most likely one"
    )
    image_top_k: int = _option(0, "sample image tokens from the k most likely; 0 keeps all")
    image_top_p: float = _option(
        0.9, "sample image tokens from the most likely that together reach this probability"
    )
    guidance: float = _option(
        1.0,
        "scale of classifier-free guidance of images; 1 is no guidance, Chameleon uses 3, small "
        "models tolerate about 2",
    )
    image_guidance: float | None = _option(
        None,
        "separate scale of guidance by earlier images, as in Chameleon's release, which uses 1.2 "
        "(default: guidance applies to text and images together)",
    )
    unconditional: Literal["empty", "mask"] = _option(
        "empty",
        "what the unconditional branch of guidance reads in place of the prompt: nothing, or a "
        "mask, as in CM3Leon, for models that have learnt to infill",
    )
    contrastive_alpha: float | None = _option(
        None,
        "contrastive decoding of images (CD-K of CM3Leon) instead of guidance: keep the image "
        "tokens that have at least alpha times the probability of the k-th most likely one "
        "(default: off)",
    )
    contrastive_k: int = _option(1, "k of contrastive decoding")
    chat: bool = _option(
        False,
        "read the prompt as a user's turn and generate one turn of the assistant, for models "
        "trained on conversations; otherwise the model continues the prompt",
    )
    stop: tuple[str, ...] = _option(
        (),
        "texts that end the completion; the first one to come, and what follows it, is left out "
        "(default: none)",
    )
    logprobs: int = _option(
        0,
        "report the log-probability of each generated token and of the n most likely tokens in its "
        "place: the model's own, before temperature, top-k, top-p and guidance; 0 is off",
    )
    adapter: str | None = _option(
        None, "name of the adapter to use, of those that are loaded (default: none)"
    )
    seed: int = _option(
        0, "random seed; the same bundle, prompt, options and seed give the same completion"
    )

    def __post_init__(self) -> None:
        try:
            configs.check_types(self)
        except ConfigError as error:
            raise RequestError(str(error)) from error
        new_tokens, images = self.max_new_tokens, self.max_images
        if not (new_tokens is None or (is_count(new_tokens) and new_tokens)):
            raise RequestError(
                f"max_new_tokens must be a whole number, 1 or more, got {new_tokens}."
            )
        if not (images is None or is_count(images)):
            raise RequestError(f"max_images must be a whole number, 0 or more, got {images}.")
        if not is_count(self.logprobs):
            raise RequestError(f"logprobs must be a whole number, 0 or more, got {self.logprobs}.")
        if len(self.stop) > MOST_STOPS or any(len(text) > _LONGEST_STOP for text in self.stop):
            raise RequestError(
                f"stop holds more than {MOST_STOPS} texts, or one of more than {_LONGEST_STOP} "
                "characters; give fewer or shorter ones."
            )
        if "" in self.stop:
            raise RequestError("stop must hold texts of at least one character, got ''.")
        if not all(map(_is_unicode, self.stop)):
            raise RequestError("stop holds broken Unicode: half of a surrogate pair.")
        _check_scale("guidance", self.guidance)
        _check_scale("image_guidance", self.image_guidance)
        self._build(SamplingConfig, "")
        self._build(SamplingConfig, "image_")
        if self.unconditional != "empty" and self.guidance_method is None:
            raise RequestError(
                "unconditional applies to guidance only; give `guidance` or `contrastive_alpha` "
                "too."
            )
        if self.contrastive_alpha is None:
            if self.contrastive_k != 1:
                raise RequestError(
                    "contrastive_k applies to contrastive decoding only; give `contrastive_alpha` "
                    "too."
                )
            return
        self._build(Contrastive, "contrastive_")
        if self.guidance != 1 or self.image_guidance is not None:
            raise RequestError(
                "contrastive_alpha and `guidance` or `image_guidance` exclude each other; choose "
                "one of them."
            )

    @property
    def text_sampling(self) -> SamplingConfig:
        """How text tokens are sampled."""
        return self._build(SamplingConfig, "")

    @property
    def image_sampling(self) -> SamplingConfig:
        """How image tokens are sampled."""
        return self._build(SamplingConfig, "image_")

    @property
    def guidance_method(self) -> ImageGuidance | None:
        """The guidance of image tokens; None if they are sampled without any."""
        if self.contrastive_alpha is not None:
            return self._build(Contrastive, "contrastive_")
        method = Guidance(text=self.guidance, image=self.image_guidance)
        return None if method == Guidance() else method

    @staticmethod
    def of(config: object, options: Mapping[str, Any]) -> "GenerationConfig":
        """Return a config, or the default one, with options over it; raises RequestError."""
        if not isinstance(config, GenerationConfig | None):
            raise RequestError(
                f"config must be a GenerationConfig, got {type(config).__name__}; give options as "
                "keyword arguments."
            )
        return (config or GenerationConfig()).with_options(options)

    def with_options(self, options: Mapping[str, Any]) -> "GenerationConfig":
        """Return a config in which some fields have other values.

        Raises:
            RequestError: a name is unknown, or a value has the wrong type or is out of range.
        """
        try:
            plain = {name: plain_value(name, value) for name, value in options.items()}
            return configs.from_dict(GenerationConfig, {**asdict(self), **plain})
        except ConfigError as error:
            raise RequestError(str(error)) from error

    def _build(self, cls: type[configs.Config], prefix: str) -> configs.Config:
        """Build the config whose fields are those of this one that have a prefix."""
        names = [option.name for option in fields(cls)]  # type: ignore[arg-type]
        try:
            return cls(**{name: getattr(self, prefix + name) for name in names})
        except RequestError as error:  # begins with the name of the field
            raise RequestError(f"{prefix}{error}") from error


documents_options(GenerationConfig)
