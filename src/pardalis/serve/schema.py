"""What the bodies of all requests have in common."""

import secrets
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from pardalis.documents import Document, Text
from pardalis.documents.document import is_unicode
from pardalis.inference.generation import MOST_STOPS
from pardalis.serve.errors import APIError

if TYPE_CHECKING:
    from pardalis.serve.service import Service

Count = Annotated[int, Field(ge=1)]
Modality = Literal["text", "image"]


class Schema(BaseModel):
    """A part of a body: other fields are refused, and types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Body(Schema):
    """A request for answers: how to sample by the names of OpenAI, and of Pardalis where it lacks.

    A field that is missing or null has the default of :class:`pardalis.GenerationConfig`. Without a
    seed one is drawn, and the answer says which.
    """

    model: str = Field(
        description="as GET /v1/models lists them: the model, or one of its adapters"
    )
    temperature: float | None = Field(None, description="of text; 0 takes the most likely token")
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    top_k: int | None = None
    image_temperature: float | None = None
    image_top_k: int | None = None
    image_top_p: float | None = None
    guidance: float | None = Field(None, description="scale of classifier-free guidance of images")
    image_guidance: float | None = None
    unconditional: Literal["empty", "mask"] | None = Field(
        None,
        description="what guidance compares with: nothing (default), or a mask, for models that "
        "have learnt to infill",
    )
    contrastive_alpha: float | None = None
    contrastive_k: int | None = None
    max_images: int | None = None
    user: str | None = Field(None, description="taken and not used")
    stream: bool | None = None

    not_sampling: ClassVar[frozenset[str]] = frozenset({"model", "user", "stream"})

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Return the options of :class:`pardalis.GenerationConfig` for all fields."""

    @abstractmethod
    def document(self, service: "Service") -> Document:
        """Return the prompt; it may block. Raises APIError."""

    @property
    def gap(self) -> int | None:
        """Before which segment of the document stands a gap to be filled; None: there is none."""
        return None

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return 1

    def sampling(self) -> dict[str, Any]:
        """Return the options that the fields of this class give."""
        found = {name: value for name in NAMES if (value := getattr(self, name)) is not None}
        if isinstance(stop := found.get("stop"), str):
            found["stop"] = (stop,)
        elif stop is not None:
            found["stop"] = tuple(stop[: MOST_STOPS + 1])  # refused, without a look at a million
        found.setdefault("seed", secrets.randbits(31))
        return found


# What the client calls the options, where an error of generation names one.
NAMES = {name: name for name in Body.model_fields if name not in Body.not_sampling}


class StreamOptions(Schema):
    include_usage: bool = False


class ChunkedBody(Body):
    """What the two older endpoints have in common, whose streams are chunks of completions."""

    max_tokens: Count | None = None
    n: Count | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None

    @property
    def choices(self) -> int:
        return self.n or 1


def mode_of(modalities: list[Any] | None) -> str:
    """Return the mode of generation for the modalities that an answer may have."""
    wanted = {"text", "image"} if modalities is None else set(modalities)
    if not wanted:
        raise APIError("modalities must name text, image or both.", param="modalities")
    return "interleaved" if len(wanted) == 2 else wanted.pop()


def prompt_document(
    prompt: str, role: Literal["user"] | None = None, field: str = "prompt"
) -> Document:
    """Return a prompt of text alone; raises APIError."""
    if not is_unicode(prompt):
        raise APIError(f"{field} holds broken Unicode: half of a surrogate pair.", param=field)
    return Document((Text(prompt, role),))
