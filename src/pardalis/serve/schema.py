"""What the bodies of all requests have in common."""

import secrets
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from pardalis.serve.errors import APIError

Count = Annotated[int, Field(ge=1)]


class Schema(BaseModel):
    """A part of a body: other fields are refused, and types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Sampling(Schema):
    """How to sample, by the names of OpenAI; those of Pardalis stand for what OpenAI lacks.

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
    contrastive_alpha: float | None = None
    contrastive_k: int | None = None
    max_images: int | None = None
    user: str | None = Field(None, description="taken and not used")

    def sampling(self) -> dict[str, Any]:
        """Return the options of :class:`pardalis.GenerationConfig` that are given."""
        found = {
            name: value
            for name in Sampling.model_fields
            if name not in ("model", "user") and (value := getattr(self, name)) is not None
        }
        if isinstance(stop := found.get("stop"), str):
            found["stop"] = (stop,)
        elif stop is not None:
            found["stop"] = tuple(stop)
        found.setdefault("seed", secrets.randbits(31))
        return found


# What the client calls the options, where an error of generation names one.
NAMES = {name: name for name in Sampling.model_fields}


def mode_of(modalities: list[Any] | None) -> str:
    """Return the mode of generation for the modalities that an answer may have."""
    wanted = {"text", "image"} if modalities is None else set(modalities)
    if not wanted:
        raise APIError("modalities must name text, image or both.", param="modalities")
    return "interleaved" if len(wanted) == 2 else wanted.pop()
