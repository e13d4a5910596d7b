"""Reading and writing the layout of Chameleon's original release.

FOLDER/
├─ models/7b/
│  ├─ params.json, consolidate_params.json
│  └─ consolidated.pth               or consolidated.00.pth, .01.pth, ... one for each rank
└─ tokenizer/
   ├─ text_tokenizer.json
   └─ vqgan.yaml, vqgan.ckpt         the image tokenizer, encoder and decoder (:mod:`.vqgan`)

A rank's file has its shard of every matrix, its own copy of every RMSNorm scale, and one QK-norm
scale for all its heads. The ranks were trained without averaging the replicated scales, so copies
may differ. The imported model then has their mean, as in Hugging Face's conversion. The copies are
kept as foreign tensors, and an export writes them again if the model still has their mean.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pardalis.bundle import CARD, LICENCES, new_folder
from pardalis.config import shown
from pardalis.errors import BundleError
from pardalis.files import read_json, write_json, write_text
from pardalis.interop.licences import licences_of
from pardalis.interop.model import (
    ForeignModel,
    check_tensors,
    decoder_shapes,
    describing,
    halves_from_pairs,
    pairs_from_halves,
    read_text,
    reasons,
    refuse,
    reorder_ids,
    rope_of,
    unheld_options,
    untied,
)
from pardalis.interop.names import has_qk_norm, lines
from pardalis.interop.tensors import (
    LazyTensor,
    Tensors,
    join,
    lazy,
    open_tensors,
    write_checkpoints,
)
from pardalis.interop.vocabulary import (
    PLACEHOLDER_AT_META,
    chameleon_tokenizer,
    check_codes,
    from_foreign,
    read_vocabulary,
    to_foreign,
)
from pardalis.interop.vqgan import read_vqgan, unheld, write_vqgan
from pardalis.model import (
    AttentionConfig,
    ModelConfig,
    ModelShape,
    NoQKNormConfig,
    QKLayerNormConfig,
    ResidualConfig,
    RMSNormConfig,
    RoPEConfig,
    SwiGLUConfig,
    swiglu_width,
)
from pardalis.model.positions import rope_frequencies
from pardalis.tokens import TextTokenizer

_PARAMS, _MORE_PARAMS = "params.json", "consolidate_params.json"
_FREQS = "rope.freqs"  # a buffer of the release: RoPE's frequencies, which follow from rope_theta


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def read_meta(folder: Path) -> ForeignModel:
    """Read a release; raises as :func:`.convert.import_model`.

    The folder is the one with ``models/`` and ``tokenizer/``, or that of one model in it.
    """
    model, tokenizer = _find(folder)
    params = _read_params(model)
    paths = _rank_files(model, params)
    ranks = [open_tensors(path) for path in paths]
    embedding = ranks[0].get("tok_embeddings.weight")
    vocab_size = embedding.shape[0] if embedding else params.get("vocab_size", 1)
    config = _config(params, model / _PARAMS, vocab_size, len(ranks))
    expected = _expected(config, len(ranks))
    for path, tensors in zip(paths, ranks, strict=True):
        check_tensors(path, expected, {n: t for n, t in tensors.items() if n != _FREQS})
    path = tokenizer / "text_tokenizer.json"
    vocabulary = read_vocabulary(read_text(path), vocab_size, str(path))
    image_tokenizer, image_tensors = read_vqgan(tokenizer / "vqgan.ckpt")
    check_codes(vocabulary, image_tokenizer.n_codes, path)
    decoder, foreign = _join_ranks(ranks, config)
    return ForeignModel(
        config=config,
        vocabulary=vocabulary,
        text_tokenizer=TextTokenizer.load(path, vocabulary),
        image_tokenizer=image_tokenizer,
        decoder=reorder_ids(decoder, to_foreign(vocabulary)),
        image_tensors=image_tensors,
        origin="meta",
        foreign=foreign,
        licences=licences_of(folder, model, tokenizer),
    )


def is_meta(folder: Path) -> bool:
    """Return whether a folder looks like a release, or like one model of it.

    Mistral's folders have a ``params.json`` of another kind beside their ``config.json``.
    """
    is_model = (folder / _PARAMS).is_file() and not (folder / "config.json").is_file()
    return is_model or any(folder.glob(f"models/*/{_PARAMS}"))


def _find(folder: Path) -> tuple[Path, Path]:
    """Return the folder of the model and that of the tokenizers."""
    models = [folder] if (folder / _PARAMS).is_file() else sorted(
        path.parent for path in folder.glob(f"models/*/{_PARAMS}")
    )  # fmt: skip
    if len(models) != 1:
        names = ", ".join(str(path.relative_to(folder)) for path in models)
        raise BundleError(f"{folder} holds {len(models)} models ({names}); give the path of one.")
    for parent in (models[0], *models[0].resolve().parents[:2]):
        if (parent / "tokenizer").is_dir():
            return models[0], parent / "tokenizer"
    raise BundleError(
        f"{models[0]} has no folder 'tokenizer' beside it or above it; copy the whole release."
    )


def _read_params(model: Path) -> dict[str, Any]:
    """Merge the two files as the release's own loader does."""
    merged: dict[str, Any] = {}
    for path in (model / _PARAMS, *model.glob(_MORE_PARAMS)):
        with describing(path):
            values = read_json(path)
            merged = {**merged, **values, **values.get("model", {})}
    return merged


def _rank_files(model: Path, params: Mapping[str, Any]) -> list[Path]:
    whole = model / "consolidated.pth"
    found = [whole] if whole.is_file() else sorted(model.glob("consolidated.[0-9][0-9].pth"))
    n_ranks = params.get("model_parallel_size") or len(found) or 1
    if not isinstance(n_ranks, int):
        raise BundleError(
            f"{model / _PARAMS} is not a model's config (model_parallel_size is {shown(n_ranks)}); "
            "copy it again."
        )
    needed = [model / f"consolidated.{rank:02}.pth" for rank in range(n_ranks)]
    if found != needed and not (n_ranks == 1 and found == [whole]):
        names = ", ".join(path.name for path in found) or "none"
        raise BundleError(
            f"{model} needs a file of weights for each of {n_ranks} ranks (model_parallel_size), "
            f"consolidated.00.pth and so on, or consolidated.pth for one rank, but has: {names}. "
            "Copy the whole folder again."
        )
    return found


def _config(params: Mapping[str, Any], where: Path, vocab_size: int, n_ranks: int) -> ModelConfig:
    if missing := [name for name in ("dim", "n_heads", "n_layers") if name not in params]:
        raise BundleError(f"{where} lacks {', '.join(missing)}; copy it again.")
    with describing(where):
        heads, width = params["n_heads"], params["dim"]
        theta = float(params.get("rope_theta") or 10_000.0)
        # Hugging Face's conversion script chooses the context in the same way.
        context = params.get("max_seq_len") or (16_384 if theta > 10_000 else 4096)
        return ModelConfig(
            vocab_size=vocab_size,
            context=context,
            d_model=width,
            n_layers=params["n_layers"],
            attention=AttentionConfig(
                n_heads=heads,
                n_kv_heads=params.get("n_kv_heads") or heads,
                qk_norm=QKLayerNormConfig(groups=n_ranks)
                if params.get("qk_normalization")
                else NoQKNormConfig(),
            ),
            feed_forward=SwiGLUConfig(
                width=swiglu_width(
                    width, params.get("ffn_dim_multiplier") or 1.0, params.get("multiple_of") or 256
                )
            ),
            position=RoPEConfig(theta=theta),
            residual=ResidualConfig(placement="reordered" if params.get("swin_norm") else "pre"),
            norm=RMSNormConfig(eps=params.get("norm_eps", 1e-5)),
        )


def _expected(config: ModelConfig, n_ranks: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a rank's file."""
    ours = decoder_shapes(config)
    expected = {}
    for line, n in lines(config):
        shape = list(ours[line.ours.format(n=n)])
        if line.qk_norm:
            shape = [config.d_head]
        elif line.cut is not None:
            shape[line.cut] //= n_ranks
        expected[line.meta.format(n=n)] = tuple(shape)
    return expected


def _join_ranks(
    ranks: Sequence[Tensors], config: ModelConfig
) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """Return the decoder under the names of Pardalis, and the tensors that only the release has."""
    decoder: dict[str, LazyTensor] = {}
    foreign: dict[str, LazyTensor] = {}
    if _FREQS in ranks[0]:
        foreign[_FREQS] = ranks[0][_FREQS]
    for line, n in lines(config):
        name = line.meta.format(n=n)
        parts = [rank[name] for rank in ranks]
        if line.qk_norm:
            rows = [part.map(lambda t: t[None], (1, *part.shape)) for part in parts]
            tensor = halves_from_pairs(join(rows, 0), len(ranks))
        elif line.cut is None:
            tensor = parts[0]
            copies = torch.stack([part.read() for part in parts])  # one vector per rank
            if not torch.equal(copies, copies[:1].expand_as(copies)):
                foreign[name] = lazy(copies)
                tensor = lazy(copies.mean(0))
        else:
            tensor = join(parts, line.cut)
            if line.rotary:
                tensor = halves_from_pairs(tensor, line.n_heads(config))
        decoder[line.ours.format(n=n)] = tensor
    return decoder, foreign


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def write_meta(
    model: ForeignModel,
    folder: Path,
    dtype: torch.dtype | None = None,
    n_ranks: int | None = None,
) -> None:
    """Write a model as the release has it, under ``models/``.

    Args:
        dtype: dtype of the decoder (default: as in the model).
        n_ranks: number of files to split the decoder into (default: the groups of QK-norm).

    Raises:
        BundleError: the layout cannot hold the model; the message lists every option that does not
            fit.
    """
    model = untied(model)
    config = model.config
    groups: int = getattr(config.attention.qk_norm, "groups", None) or 1
    ranks = groups if n_ranks is None else n_ranks
    refuse(folder, "Meta's layout cannot hold this model", _unheld_by_meta(model, ranks))
    tokenizer_json = chameleon_tokenizer(
        model.vocabulary, model.text_tokenizer, placeholder=PLACEHOLDER_AT_META, adds_bos=False
    )
    files = _divide(model, ranks, dtype)
    with new_folder(folder) as partial:
        home, tokenizer = partial / "models" / _name(config), partial / "tokenizer"
        home.mkdir(parents=True)
        tokenizer.mkdir()
        write_text(tokenizer / "text_tokenizer.json", tokenizer_json)
        write_vqgan(model.image_tokenizer, model.image_tensors, tokenizer)
        write_json(home / _PARAMS, {"model_parallel_size": ranks, "model": _params(config)})
        write_json(
            home / _MORE_PARAMS, {"model_parallel_size": ranks, "vocab_size": config.vocab_size}
        )
        if model.licences:
            write_text(partial / LICENCES, model.licences)
        if model.card:
            write_text(partial / CARD, model.card)
        numbers = [""] if ranks == 1 else [f".{rank:02}" for rank in range(ranks)]
        paths = [home / f"consolidated{number}.pth" for number in numbers]
        write_checkpoints(dict(zip(paths, files, strict=True)), "Model")


def _name(config: ModelShape) -> str:
    """Return the folder's name in the release; its loader expects those of the published sizes."""
    published = {(32, 4096): "7b", (48, 8192): "30b"}
    return published.get((config.n_layers, config.d_model), "model")


def _unheld_by_meta(model: ForeignModel, n_ranks: int) -> list[str]:
    config = model.config
    if n_ranks < 1:
        return [f"it needs 1 rank or more, not {n_ranks}"]
    if unheld_by_both := unheld_options(config):
        return unheld_by_both
    wrong = [
        f"{name} is {count}, which {n_ranks} ranks do not divide"
        for name, count in (
            ("model.attention.n_heads", config.attention.n_heads),
            ("model.attention.n_kv_heads", config.attention.kv_heads),
            ("model.d_model", config.d_model),
            ("model.feed_forward.width", config.feed_forward.width),
            ("model.vocab_size", config.vocab_size),
        )
        if count % n_ranks
    ]  # fmt: skip
    qk_norm = config.attention.qk_norm
    has_norm, groups = has_qk_norm(config), getattr(qk_norm, "groups", None)
    eps = getattr(qk_norm, "eps", 1e-5)
    codes = [to_foreign(model.vocabulary)[i] for i in model.vocabulary.image]
    wrong += reasons({
        "model.position.scaling is set (needed: none)": rope_of(config).scaling is not None,
        "model.attention.qk_norm.groups is not set, so each head has its own scale (needed: one "
        "for all heads of a rank)": has_norm and groups is None,
        f"model.attention.qk_norm.groups is {groups}, which needs that many ranks or a multiple, "
        f"not {n_ranks}": has_norm and groups is not None and n_ranks % groups,
        f"model.attention.qk_norm.eps is {eps} (needed: 1e-05)": has_norm and eps != 1e-5,
        "the image tokens are not in the order of the codes, as its loader needs":
            codes != sorted(codes),
        "the image tokenizer has no decoder; run `import_model` again with the vqgan.ckpt of the "
        "release": not model.image_tokenizer.has_decoder,
    })  # fmt: skip
    return [*wrong, *unheld(model.image_tokenizer)]


def _params(config: ModelConfig) -> dict[str, Any]:
    return {
        "dim": config.d_model,
        "n_layers": config.n_layers,
        "n_heads": config.attention.n_heads,
        "n_kv_heads": config.attention.kv_heads,
        **_ffn_params(config),
        "norm_eps": config.norm.eps,
        "rope_theta": rope_of(config).theta,
        "qk_normalization": has_qk_norm(config),
        "swin_norm": config.residual.placement == "reordered",
        "vocab_size": config.vocab_size,
        "max_seq_len": config.context,  # not in the release, whose loader ignores it
    }


def _ffn_params(config: ModelConfig) -> dict[str, Any]:
    """Return the two numbers from which the release computes the feed-forward width."""
    width = config.feed_forward.width
    if swiglu_width(config.d_model) == width:
        return {"multiple_of": 256}
    ratio = (width + 0.5) / int(8 * config.d_model / 3)  # the half survives rounding down
    return {"ffn_dim_multiplier": ratio, "multiple_of": 1}


def _divide(
    model: ForeignModel, n_ranks: int, dtype: torch.dtype | None
) -> list[dict[str, LazyTensor]]:
    """Return the tensors of each rank's file."""
    config = model.config
    decoder = reorder_ids(model.decoder, from_foreign(model.vocabulary))
    files: list[dict[str, LazyTensor]] = [{} for _ in range(n_ranks)]
    for line, n in lines(config):
        tensor, name = decoder[line.ours.format(n=n)], line.meta.format(n=n)
        if line.qk_norm:
            tensor = pairs_from_halves(tensor, tensor.shape[0])
            rows = tensor.split(tensor.shape[0], 0)
            flat = [row.map(lambda t: t[0], row.shape[1:]) for row in rows]
            parts = [flat[rank * len(flat) // n_ranks] for rank in range(n_ranks)]
        elif line.cut is None:
            parts = _copies(model, name, tensor, n_ranks)
        else:
            if line.rotary:
                tensor = pairs_from_halves(tensor, line.n_heads(config))
            parts = tensor.split(n_ranks, line.cut)
        for file, part in zip(files, parts, strict=True):
            file[name] = part.to(dtype)
    freqs = model.foreign.get(_FREQS) or lazy(
        rope_frequencies(config.d_head, rope_of(config).theta)
    )
    return [{**file, _FREQS: freqs} for file in files]


def _copies(model: ForeignModel, name: str, tensor: LazyTensor, n_ranks: int) -> list[LazyTensor]:
    """Return a norm's scale for every rank: the kept copies if the model still has their mean."""
    kept = model.foreign.get(name)
    if kept is not None and kept.shape[0] == n_ranks:
        copies = kept.read()
        if torch.equal(copies.mean(0).to(tensor.dtype), tensor.read()):
            return [lazy(copy.to(tensor.dtype)) for copy in copies]
    return [tensor] * n_ranks
