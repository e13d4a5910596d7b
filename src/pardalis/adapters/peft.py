"""The folder of an adapter, in the format of Hugging Face's PEFT.

    adapter_config.json         PEFT's LoraConfig
    adapter_model.safetensors   the values, in 32 bits, under the names of the exported model
    pardalis.json               format version, and the fingerprint of the model it was trained on

PEFT loads the folder onto the model that an export for Hugging Face's classes writes. A folder
that PEFT saved has no ``pardalis.json``: only the shapes of its model can be checked then. A model
that no other library has keeps its own names, and a kind of adapter that PEFT does not have is told
by ``pardalis.json``.

Rows of tokens are PEFT's ``trainable_token_indices``, under the ids of the exported model.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from pardalis.adapters.adapter import ROWS, Adapter
from pardalis.adapters.dora import DoRAConfig
from pardalis.adapters.kinds import ADAPTERS, AdapterConfig
from pardalis.adapters.lora import LoRAConfig
from pardalis.bundle import new_folder
from pardalis.config import from_dict, shown, to_dict
from pardalis.errors import BundleError, ConfigError
from pardalis.files import existing_folder, read_json, write_json
from pardalis.interop.names import rename
from pardalis.interop.tensors import LazyTensor, Tensors, lazy, open_tensors, write_safetensors
from pardalis.interop.vocabulary import to_foreign
from pardalis.tokens import Vocabulary
from pardalis.weights import check_finite

CONFIG, WEIGHTS, ABOUT = "adapter_config.json", "adapter_model.safetensors", "pardalis.json"
FORMAT_VERSION = 1

_PREFIX = "base_model.model."
# Ends of PEFT's keys, and our names of the parameters.
_FACTORS = {
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_magnitude_vector": "lora_magnitude",
}
_ROWS = "token_adapter.trainable_tokens_delta"
_ROW_MODULES = {"embedding": "embed_tokens", "head": "lm_head"}
_KEY = re.compile(
    rf"{re.escape(_PREFIX)}(.+?)\.({'|'.join(map(re.escape, (*_FACTORS, _ROWS)))}|[a-z_]+)"
)
_NOT_SHOWN = ("rows", "rows_rate", "base_dtype")  # of the training
_NO_TARGETS = "dummy-target-modules"  # PEFT's word for an adapter of rows alone
_OF_PEFT = ("lora", "dora")  # kinds that PEFT has
# Keys of PEFT's config that change what an adapter is, with the value that ours have.
_ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "layer_replication": (None,),
    "alpha_pattern": ({}, None),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),  # others change the model
}


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def save_adapter(adapter: Adapter, folder: Path, vocabulary: Vocabulary) -> None:
    """Write the folder of an adapter atomically; an earlier one is replaced.

    Args:
        vocabulary: that of the bundle.

    Raises:
        BundleError: the folder cannot be written.
    """
    foreign = to_foreign(vocabulary)
    config: Any = adapter.config
    indices = {_ROW_MODULES[name]: [foreign[i] for i in adapter.row_ids] for name in adapter.rows}
    targets = sorted({_foreign_name(name).rpartition(".")[2] for name in adapter.linears})
    values = {
        "peft_type": config.kind.upper(),
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "target_modules": targets or _NO_TARGETS,
        "trainable_token_indices": indices or None,
    }
    if config.kind in _OF_PEFT:
        values |= {
            "peft_type": "LORA",
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
            "use_rslora": config.rslora,
            "use_dora": isinstance(config, DoRAConfig),
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "modules_to_save": None,
        }
    about = {
        "format_version": FORMAT_VERSION,
        "base": adapter.base,
        "config": to_dict(config),
    }
    with new_folder(folder) as partial:
        write_safetensors(partial / WEIGHTS, dict(_to_peft(adapter)), "Adapter")
        write_json(partial / CONFIG, values)
        write_json(partial / ABOUT, about)


def _to_peft(adapter: Adapter) -> Iterator[tuple[str, LazyTensor]]:
    for name, factors in adapter.linears.items():
        ends = {key: end for end, key in _FACTORS.items()}
        for key, values in factors.items():
            end = ends.get(key, key)
            yield f"{_PREFIX}{_foreign_name(name)}.{end}", lazy(values.contiguous())
    for name, rows in adapter.rows.items():
        yield f"{_PREFIX}{_foreign_name(name)}.{_ROWS}", lazy(rows.contiguous())


def _foreign_name(module: str) -> str:
    try:
        return rename(f"{module}.weight", "ours", "transformers").removesuffix(".weight")
    except KeyError:
        return module


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def load_adapter(folder: Path | str, vocabulary: Vocabulary) -> Adapter:
    """Read the folder of an adapter that :func:`save_adapter` or PEFT wrote.

    Args:
        folder: that of the adapter, or of the run that has trained it.
        vocabulary: that of the bundle; tokens have other ids in the exported model.

    Raises:
        BundleError: the folder is missing, incomplete or damaged, or holds what Pardalis has not.
            Whether the adapter fits a model is checked by :meth:`Adapter.require_fits`.
    """
    folder = _adapter_folder(folder)
    values, about = read_description(folder), _about(folder)
    linears, rows = _tensors(folder)
    config = _config(folder, values, about, linears)
    ids = _row_ids(folder, values, rows, vocabulary)
    _check_shapes(folder, config, linears, rows, len(ids))
    order = torch.tensor(ids, dtype=torch.long).argsort()
    return Adapter(
        config=config,
        linears={name: _read(folder, each) for name, each in linears.items()},
        rows={name: each[order] for name, each in _read(folder, rows).items()},
        row_ids=sorted(ids),
        base=about.get("base"),
    )


def _adapter_folder(path: Path | str) -> Path:
    """Return the folder of an adapter, for which that of the run that trained it may stand."""
    folder = existing_folder(Path(path))
    of_run = folder / "adapter"
    return of_run if not (folder / CONFIG).exists() and (of_run / CONFIG).exists() else folder


def _tensors(folder: Path) -> tuple[dict[str, dict[str, LazyTensor]], dict[str, LazyTensor]]:
    """Return the parameters of each adapted matrix, and the rows, by our names."""
    linears: dict[str, dict[str, LazyTensor]] = {}
    rows: dict[str, LazyTensor] = {}
    for key, tensor in open_tensors(folder / WEIGHTS).items():
        match = _KEY.fullmatch(key)
        if match is None or not tensor.dtype.is_floating_point:
            raise BundleError(
                f"{folder / WEIGHTS} holds {shown(key)}, which is no part of a LoRA or DoRA "
                "adapter; give a folder that PEFT or Pardalis wrote."
            )
        name = _own_name(match[1])
        if match[2] == _ROWS:
            rows[name] = tensor
        else:
            linears.setdefault(name, {})[_FACTORS.get(match[2], match[2])] = tensor
    if not linears and not rows:
        raise BundleError(f"{folder / WEIGHTS} holds no values; copy the folder again.")
    return linears, rows


def describe_adapter(folder: Path | str) -> dict[str, Any]:
    """Return what the folder of an adapter says of it; no values are read.

    Raises:
        BundleError: as :func:`load_adapter`.
    """
    folder = _adapter_folder(folder)
    values, about = read_description(folder), _about(folder)
    linears, rows = _tensors(folder)
    config = _config(folder, values, about, linears)
    n_rows = max((each.shape[0] for each in rows.values() if each.shape), default=0)
    _check_shapes(folder, config, linears, rows, n_rows)
    tensors = [each for factors in linears.values() for each in factors.values()]
    return {
        **{name: value for name, value in to_dict(config).items() if name not in _NOT_SHOWN},
        "targets": list(config.targets) if linears else [],
        "matrices": len(linears),
        "rows": n_rows,
        "parameters": sum(each.n_elements for each in (*tensors, *rows.values())),
        "base": about.get("base"),
    }


def read_description(folder: Path) -> dict[str, Any]:
    """Return the content of ``adapter_config.json``; raises BundleError as load_adapter does."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise BundleError(f"No adapter at {folder}; give the folder of an adapter.")
    if not path.exists():
        raise BundleError(
            f"{folder} is not the folder of an adapter: it has no {CONFIG}. A run writes its "
            "adapter to the folder adapter/."
        )
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); copy it again.") from error
    return values


def _about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    if not os.path.lexists(path):
        return {}
    try:
        about = read_json(path)
        version = about["format_version"]
        if type(version) is not int or version > FORMAT_VERSION:
            raise BundleError(
                f"{path} has format version {shown(version)}; this Pardalis reads up to "
                f"{FORMAT_VERSION}. Upgrade Pardalis."
            )
        if not isinstance(about["base"], str | None):
            raise TypeError(f"base is {shown(about['base'])}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} cannot be read ({error!r}); copy it again.") from error
    return dict(about)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Own:
    adapter: Annotated[AdapterConfig, ADAPTERS]


def _config(
    folder: Path, values: Mapping[str, Any], about: Mapping[str, Any], linears: Mapping[str, Any]
) -> AdapterConfig:
    """Return the config of an adapter; its targets are the matrices that have values."""
    own = about.get("config")
    targets = sorted({name.rpartition(".")[2] for name in linears})
    rest = {"targets": targets} | ({} if linears else {"rows": ["all"]})
    try:
        if isinstance(own, dict) and own.get("kind") not in (None, *_OF_PEFT):
            return from_dict(_Own, {"adapter": {**own, **rest}}).adapter
        _refuse_others(folder / CONFIG, values)
        found = {
            "rank": values.get("r"),
            "alpha": values.get("lora_alpha"),
            "dropout": values.get("lora_dropout", 0.0),
            "rslora": values.get("use_rslora", False),
        }
        kind: type[LoRAConfig] = DoRAConfig if values.get("use_dora", False) else LoRAConfig
        return from_dict(kind, found | rest)
    except ConfigError as error:
        raise BundleError(f"{folder / CONFIG} does not describe an adapter: {error}") from error


def _refuse_others(path: Path, values: Mapping[str, Any]) -> None:
    """Raise BundleError for a config of PEFT's that LoRA and DoRA here cannot hold."""
    for name, needed in _ONLY.items():
        if name in values and values[name] not in needed:
            raise BundleError(
                f"{path} has {name} = {shown(values[name])}, which Pardalis cannot hold; it must "
                f"be {' or '.join(map(repr, needed))}."
            )


def _own_name(module: str) -> str:
    try:
        return rename(f"{module}.weight", "transformers", "ours").removesuffix(".weight")
    except KeyError:
        return module


def _row_ids(
    folder: Path, values: Mapping[str, Any], rows: Tensors, vocabulary: Vocabulary
) -> list[int]:
    """Return the tokens of the rows, in the order of the rows."""
    named = values.get("trainable_token_indices") or {}
    if isinstance(named, list):
        named = {_ROW_MODULES["embedding"]: named}
    if isinstance(named, dict) and len(named) > len(rows):
        raise BundleError(
            f"{folder / CONFIG} names tokens of {', '.join(map(shown, named))}, and "
            f"{folder / WEIGHTS} has rows of {len(rows)} of them; copy the folder again."
        )
    where, ours = folder / CONFIG, {foreign: i for i, foreign in enumerate(to_foreign(vocabulary))}
    lists: list[list[int]] = []
    for name in rows:
        indices = named.get(_ROW_MODULES.get(name, "")) if isinstance(named, dict) else None
        if not isinstance(indices, list) or not all(type(i) is int for i in indices):
            raise BundleError(
                f"{where} does not say of which tokens {name} has rows; copy the folder again."
            )
        if unknown := [i for i in indices if i not in ours]:
            raise BundleError(
                f"{where} names the token {shown(unknown[0])}, and the bundle has "
                f"{vocabulary.size}; give the bundle that its training started from."
            )
        lists.append([ours[i] for i in indices])
    ids = lists[0] if lists else []
    if any(other != ids for other in lists) or len(set(ids)) < len(ids):
        raise BundleError(
            f"{where} names other tokens for the head than for the embedding, or a token twice; "
            "Pardalis trains the same rows of both."
        )
    return ids


def _check_shapes(
    folder: Path,
    config: AdapterConfig,
    linears: Mapping[str, Tensors],
    rows: Tensors,
    n_rows: int,
) -> None:
    where = folder / WEIGHTS
    for name, factors in linears.items():
        if factors.keys() != config.factors.keys():
            raise BundleError(
                f"{where} has {', '.join(sorted(factors))} for {name}; kind = {config.kind!r} "
                f"needs {', '.join(config.factors)}. Copy the folder again."
            )
        if not isinstance(config, LoRAConfig):
            continue
        a, b = factors["lora_A"].shape, factors["lora_B"].shape
        magnitude = factors["lora_magnitude"].shape if "lora_magnitude" in factors else None
        fits = len(a) == len(b) == 2 and a[0] == b[1] and a[0] > 0
        if not fits or magnitude not in (None, (b[0],)):
            raise BundleError(
                f"{where} has matrices of the shapes {list(a)} and {list(b)} for {name}, which do "
                "not fit each other; copy the folder again."
            )
    for name, each in rows.items():
        if name not in ROWS or len(each.shape) != 2 or each.shape[0] != n_rows or not n_rows:
            raise BundleError(
                f"{where} has rows of the shape {list(each.shape)} for {name}, where {CONFIG} "
                f"names {n_rows} tokens; copy the folder again."
            )


def _read(folder: Path, tensors: Tensors) -> dict[str, Tensor]:
    read = {name: tensor.read().float() for name, tensor in tensors.items()}
    check_finite(folder / WEIGHTS, read.items())
    return read
