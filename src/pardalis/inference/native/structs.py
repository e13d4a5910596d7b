"""What step.cpp is told: its structs, field by field, and what the numbers in them mean."""

from ctypes import POINTER, Structure, c_double, c_int64, c_void_p
from typing import Any, ClassVar

Fields = list[tuple[str, Any]]


def _pointers(*names: str) -> Fields:
    return [(name, c_void_p) for name in names]


def _integers(*names: str) -> Fields:
    return [(name, c_int64) for name in names]


class Matrix(Structure):
    """A matrix, row by row, of 32-bit (kind 0) or 16-bit floats (1) or 8-bit integers (2)."""

    _fields_: ClassVar[Fields] = [
        *_pointers("values", "scale", "bias", "index"),
        *_integers("rows", "width", "kind"),
    ]


class Norm(Structure):
    """A norm; kind 0 is none, 1 RMSNorm, 2 LayerNorm."""

    _fields_: ClassVar[Fields] = [
        *_integers("kind", "groups"),
        *_pointers("scale", "shift"),
        ("eps", c_double),
    ]


class Layer(Structure):
    """A block of a trunk, or one of trunk 0 or 1 that attends to the other."""

    _fields_: ClassVar[Fields] = [
        *((name, Norm) for name in ("attention_norm", "feed_forward_norm", "q_norm", "k_norm")),
        ("memory_norm", Norm),
        *((name, Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *_integers("trunk", "crosses", "placement"),
        *((name, c_double) for name in ("skip", "branch")),
    ]


class Model(Structure):
    """A decoder or a model of two trunks, its head and its grammar."""

    _fields_: ClassVar[Fields] = [
        *_integers("width", "n_layers", "heads", "kv_heads", "head_width", "hidden"),
        *_integers("activation", "n_trunks"),
        ("embedding_scale", c_double),
        ("embedding_norm", Norm),
        ("norms", Norm * 2),
        ("embedding", Matrix),
        ("combine", Matrix),
        ("positions", c_void_p * 2),
        *_pointers("cosines", "sines"),
        *_integers("n_positions"),
        ("layers", POINTER(Layer)),
        ("image", Matrix),
        ("text", Matrix),
        *_pointers("writable", "hashed", "range_start", "range_stop", "ends"),
        *_integers("n_ends", "begin_image", "eos", "codes_per_image"),
    ]


class Sampling(Structure):
    """:class:`pardalis.inference.sampling.SamplingTensors`."""

    _fields_: ClassVar[Fields] = _pointers("temperature", "top_k", "top_p", "seed")


class Batch(Structure):
    """:class:`pardalis.inference.steps.DecodeBatch`, its slots and its part of the cache."""

    _fields_: ClassVar[Fields] = [
        *_integers("n", "n_conditional", "n_steps", "window", "table_width"),
        *_integers("inside_images", "slots_stride"),
        *_pointers("states", "slots", "table", "keys", "values"),
        *_pointers("text", "max_images", "one_turn", "one_gap", "guided", "branched_image"),
        ("text_sampling", Sampling),
        ("image_sampling", Sampling),
        *_pointers("conditional", "unconditional", "image_conditional"),
        *_pointers("scale_text", "scale_image", "alpha", "k"),
        *_pointers("classifier_free", "contrastive"),
        *_pointers("codes", "guesses"),
        *_integers("codes_width", "grid_width"),
        *_pointers("generated", "hidden"),
        *_pointers("ids", "positions"),
    ]
