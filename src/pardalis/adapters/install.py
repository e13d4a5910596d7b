"""From a model to one whose adapter is trained, and nothing else.

The model's own code knows nothing of adapters: its linear maps are replaced, and parameters keep
their names. Those of an adapter have names below the matrix that they adapt.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pardalis.adapters.kinds import AdapterConfig
from pardalis.adapters.linear import AdaptedLinear, FrozenLinear, whole
from pardalis.adapters.rows import RowsEmbedding, RowsHead, spans_of
from pardalis.errors import ConfigError
from pardalis.model import LanguageModel
from pardalis.parallel import fill
from pardalis.parameters import ParameterSpec, specs_of
from pardalis.seeds import derive

PART = "adapter"  # what the added parameters are counted as

_STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def install(
    model: LanguageModel,
    config: AdapterConfig,
    ids: Sequence[int] = (),
    *,
    dtype: torch.dtype = torch.float32,
    vectors_dtype: torch.dtype = torch.float32,
) -> list[str]:
    """Freeze a model and add an adapter to it, in place; return the names of what is trained.

    A model on the meta device stays there. Norms and biases stay in 32 bits, as does everything
    that is trained. :func:`start` sets the values of the adapter.

    Args:
        ids: tokens whose rows are trained, ascending: see :func:`pardalis.adapters.row_ids`.
        dtype: what ``base_dtype = "stored"`` means: the dtype of the bundle.
        vectors_dtype: dtype of the output of the embedding.

    Raises:
        ConfigError: a target is no part and no matrix of the model, or the model cannot train rows.
    """
    stored = _STORED.get(config.base_dtype, dtype)
    specs = specs_of(model)
    targets = set(targets_of(model, config.targets))
    model.requires_grad_(False)
    added = []
    for name, linear in list(_linears(model)):
        made = config.adapted(linear) if name in targets else FrozenLinear.of(linear)
        _store(made, stored)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, made)
        if isinstance(made, AdaptedLinear):
            added += [_line(name, factor, specs[f"{name}.weight"], made) for factor in made.factors]
    rate: float = getattr(config, "rows_rate", 1.0)
    added += _add_rows(model, ids, rate, stored, vectors_dtype)
    model.parameter_table = [*model.parameter_table, *added]  # of this one
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def targets_of(model: LanguageModel, targets: Sequence[str]) -> list[str]:
    """Return the names of the modules that targets name.

    Args:
        targets: parts of the parameter table, such as ``attention``, and names of matrices, such
            as ``q_proj`` or ``q``.

    Raises:
        ConfigError: one of them is no part and no matrix of the model.
    """
    specs = specs_of(model)
    found: dict[str, list[str]] = {}
    short: dict[str, list[str]] = {}
    for name, _ in _linears(model):
        part, last = specs[f"{name}.weight"].part, name.rpartition(".")[2]
        for each in dict.fromkeys((part, last.removesuffix("_proj"))):
            found.setdefault(each, []).append(name)
        short.setdefault(last, []).append(name)
    for target in targets:
        if target not in found and target not in short:
            raise ConfigError(
                f"adapter.targets names {target!r}, which is no part and no matrix of the model; "
                f"it has {', '.join(found)}. Rows of the embedding and the head are trained by "
                "adapter.rows."
            )
    return list(
        dict.fromkeys(name for each in targets for name in (found.get(each) or short[each]))
    )


@torch.no_grad()
def start(model: LanguageModel, config: AdapterConfig, seed: int) -> None:
    """Set the initial values of an adapter, after the weights of the model were loaded.

    Rows begin as those of the model. Values depend on the seed and the name of the matrix alone,
    so they are the same for every sharding. Every rank calls this.
    """
    for name, module in adapted(model):
        if config.base_dtype == "int8":
            module.quantise()
        generator = torch.Generator().manual_seed(derive(seed, "init", name))
        for factor, values in module.initial(generator).items():
            fill(getattr(module, factor), values)
    if config.base_dtype == "int8":
        for other in model.modules():
            if type(other) is FrozenLinear:
                other.quantise()
    for matrix in _with_rows(model):
        rows = [whole(matrix.frozen)[span.start : span.stop] for span in matrix.spans]
        fill(matrix.rows, torch.cat(rows).float())


def adapted(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """Yield the maps that an adapter was added to, by name."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            yield name, module


def _with_rows(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        if isinstance(module, RowsEmbedding | RowsHead) and module.rows is not None:
            yield module


def _linears(model: LanguageModel) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear maps of a model but for its head."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not model.head:
            yield name, module


def _line(name: str, factor: str, base: ParameterSpec, made: AdaptedLinear) -> ParameterSpec:
    """Return the line of the parameter table for a parameter that was added to a matrix."""
    of = made.factors[factor]
    return ParameterSpec(
        re.escape(f"{name}.{factor}"),
        PART,
        None,
        decays=of.decays,
        split=of.follows if of.follows == base.split else "none",
    )


def _add_rows(
    model: LanguageModel,
    ids: Sequence[int],
    rate: float,
    stored: torch.dtype,
    vectors_dtype: torch.dtype,
) -> list[ParameterSpec]:
    """Freeze embedding and head, add rows to them; return the lines of the parameter table."""
    embedding: Any = getattr(model, "embedding", None)
    head: nn.Module = model.head
    is_tied = not isinstance(head, nn.Linear)
    if ids and not isinstance(embedding, nn.Embedding):
        raise ConfigError(
            f"adapter.rows needs a model with an `embedding`, and this is a {type(model).__name__};"
            " leave it out."
        )
    if ids and getattr(getattr(model.config, "embedding", None), "norm", False):
        raise ConfigError(
            "adapter.rows cannot stand beside model.embedding.norm: other libraries fold the norm "
            "into the embedding, and would read other rows; leave rows out."
        )
    spans, lines = spans_of(ids), []
    if isinstance(embedding, nn.Embedding):
        RowsEmbedding.of(embedding, spans, vectors_dtype)
        if not is_tied:
            _store(embedding, stored)
        lines.append(ParameterSpec(r"embedding\.rows", PART, None, rate=rate))
    if isinstance(head, nn.Linear):
        RowsHead.of(head, spans)
        _store(head, stored)
        lines.append(ParameterSpec(r"head\.rows", PART, None, decays=True, rate=rate))
    return lines if ids else []


def _store(module: nn.Module, dtype: torch.dtype) -> None:
    """Store the matrix of a module in a dtype."""
    matrix: Tensor | None = module._parameters["weight"]
    if matrix is not None and matrix.dtype != dtype:
        module._parameters["weight"] = nn.Parameter(matrix.to(dtype), requires_grad=False)
