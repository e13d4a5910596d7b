"""Chameleon's original release: equal logits and round trips of every tensor."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import shapes
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import pardalis
from pardalis.bundle import Bundle
from pardalis.errors import BundleError
from pardalis.interop import export_model, import_model, meta
from pardalis.interop.huggingface import read_chameleon, write_chameleon
from pardalis.interop.meta import read_meta, write_meta
from pardalis.interop.model import ForeignModel, halves_from_pairs, pairs_from_halves, read_bundle
from pardalis.interop.tensors import lazy, open_tensors
from pardalis.model import Decoder, chameleon_7b, chameleon_34b
from pardalis.vq import EMAConfig

NORMS = ("attention_norm.weight", "ffn_norm.weight", "norm.weight")


def rank_files(release: Path) -> list[dict[str, torch.Tensor]]:
    [home] = (release / "models").iterdir()
    return [torch.load(path, weights_only=True) for path in sorted(home.glob("*.pth"))]


def parameters(release: Path) -> dict:
    [home] = (release / "models").iterdir()
    params = json.loads((home / "params.json").read_text())
    more = json.loads((home / "consolidate_params.json").read_text())
    return {**params, **params["model"], **more}


# ── what the release computes ────────────────────────────────────────────────────────────────────


def release_logits(release: Path, ids: torch.Tensor) -> torch.Tensor:
    """Return logits (T, V) of one sequence; a rank is an entry of a list."""
    files, params = rank_files(release), parameters(release)
    assert len(files) == params["model_parallel_size"]
    d_head = params["dim"] // params["n_heads"]
    eps, theta = params["norm_eps"], params["rope_theta"]
    embedded = torch.cat([file["tok_embeddings.weight"][ids] for file in files], dim=1)
    streams = [embedded for _ in files]
    for n in range(params["n_layers"]):
        layers = [
            {key.removeprefix(f"layers.{n}."): t for key, t in file.items()} for file in files
        ]
        for name, branch in (("attention_norm", attend), ("ffn_norm", feed)):
            norms = [layer[f"{name}.weight"] for layer in layers]
            if params.get("swin_norm"):
                parts = [branch(s, w, d_head, theta) for s, w in zip(streams, layers, strict=True)]
                added = [rms_norm(sum(parts), norm, eps) for norm in norms]
            else:
                normed = [rms_norm(s, norm, eps) for s, norm in zip(streams, norms, strict=True)]
                parts = [branch(s, w, d_head, theta) for s, w in zip(normed, layers, strict=True)]
                added = [sum(parts) for _ in parts]
            streams = [s + more for s, more in zip(streams, added, strict=True)]
    logits = [
        rms_norm(stream, file["norm.weight"], eps) @ file["output.weight"].T
        for stream, file in zip(streams, files, strict=True)
    ]
    return torch.cat(logits, dim=1)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def attend(x: torch.Tensor, w: dict, d_head: int, theta: float) -> torch.Tensor:
    """One rank's heads, and its part of the output."""
    q, k, v = (
        (x @ w[f"attention.{name}.weight"].T).unflatten(1, (-1, d_head))
        for name in ("wq", "wk", "wv")
    )
    if "attention.q_normalization.weight" in w:
        q, k = (
            F.layer_norm(
                y,
                (d_head,),
                w[f"attention.{name}_normalization.weight"],
                w[f"attention.{name}_normalization.bias"],
                1e-5,
            )
            for name, y in (("q", q), ("k", k))
        )
    q, k = rotate_pairs(q, theta), rotate_pairs(k, theta)
    heads = []
    for head in range(q.shape[1]):
        shared = head * k.shape[1] // q.shape[1]
        scores = q[:, head] @ k[:, shared].T / d_head**0.5
        future = torch.ones(scores.shape, dtype=torch.bool).triu(1)
        heads.append(scores.masked_fill(future, -torch.inf).softmax(1) @ v[:, shared])
    return torch.cat(heads, dim=1) @ w["attention.wo.weight"].T


def rotate_pairs(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotate each pair (x[2i], x[2i + 1]) of a head; x is (T, N, H)."""
    out = torch.empty_like(x)
    d_head = x.shape[-1]
    positions = torch.arange(len(x), dtype=torch.float64)[:, None]
    for i in range(d_head // 2):
        angle = positions * theta ** (-2 * i / d_head)
        cos, sin = angle.cos().float(), angle.sin().float()
        even, odd = x[..., 2 * i], x[..., 2 * i + 1]
        out[..., 2 * i] = even * cos - odd * sin
        out[..., 2 * i + 1] = even * sin + odd * cos
    return out


def feed(x: torch.Tensor, w: dict, *_: float) -> torch.Tensor:
    """One rank's part of the feed-forward."""
    gate, up = (x @ w[f"feed_forward.{name}.weight"].T for name in ("w1", "w3"))
    return (F.silu(gate) * up) @ w["feed_forward.w2.weight"].T


RELEASES = {
    "1 rank": {},
    "1 rank, grouped, swin": {"n_kv_heads": 2, "swin_norm": True},
    "2 ranks": {"ranks": 2},
    "2 ranks, no QK-norm, scattered ids": {
        "ranks": 2, "qk_normalization": False, "scattered": True,
    },
    "4 ranks, grouped": {"ranks": 4, "n_kv_heads": 4, "rope_theta": 500.0},
    "4 ranks, grouped, swin": {
        "ranks": 4, "n_kv_heads": 4, "swin_norm": True, "ffn_dim_multiplier": 1.3,
    },
    "2 ranks, odd sizes": {
        "ranks": 2, "n_kv_heads": 2, "dim": 80, "n_heads": 4, "multiple_of": 10,
        "ffn_dim_multiplier": 0.7, "norm_eps": 1e-3,
    },
}  # fmt: skip
IDS = torch.arange(40) * 7


@pytest.mark.parametrize("kind", RELEASES)
def test_logits_equal_those_of_the_release(release_folder, tmp_path, compare, kind):
    release = release_folder(**RELEASES[kind])
    import_model(release, tmp_path / "bundle")
    bundle = pardalis.load(tmp_path / "bundle")
    foreign = torch.tensor(bundle.codec.vocabulary.foreign_ids)
    with torch.no_grad():
        ours = bundle.model(IDS[None])[0]
    theirs = release_logits(release, foreign[IDS])[:, foreign]
    assert theirs.abs().max() > 1
    # measured: 6.5e-6 of values up to 5.9
    compare(f"Chameleon's release, {kind}", "logits", ours, theirs, atol=2e-5)


def test_ids_are_remapped_by_name(release_folder, tmp_path):
    """In a scattered vocabulary; the row of each name is still the row of that name."""
    release = release_folder(scattered=True)
    names = json.loads((release / "tokenizer/text_tokenizer.json").read_text())["model"]["vocab"]
    model = read_meta(release)
    ours, vocabulary = model.decoder["embedding.weight"].read(), model.vocabulary
    theirs = rank_files(release)[0]["tok_embeddings.weight"]
    for name, our_id in (
        ("<s>", vocabulary.bos_id), ("<racm3:break>", vocabulary.begin_image_id),
        ("IMGIMGAZ", vocabulary.image[0]), ("IMGIMGGDZ", vocabulary.image[63]),
    ):  # fmt: skip
        assert torch.equal(ours[our_id], theirs[names[name]]), name
    [piece] = model.text_tokenizer.encode("e")
    assert torch.equal(ours[vocabulary.text_id(piece)], theirs[names["e"]])


# ── examples by hand ─────────────────────────────────────────────────────────────────────────────


def test_rows_of_heads_by_hand():
    """Two heads of width 4: what the release rotates as pairs (0, 1), (2, 3) are ours as halves."""
    rows = torch.arange(8.0)[:, None]
    ours = halves_from_pairs(lazy(rows), 2)
    assert ours.read().flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert pairs_from_halves(ours, 2).read().equal(rows)


def test_rows_of_wider_heads_by_hand():
    """Width 8, where the permutation is not its own inverse."""
    rows = torch.arange(8.0)[:, None]
    assert halves_from_pairs(lazy(rows), 1).read().flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert pairs_from_halves(lazy(rows), 1).read().flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_qk_norm_by_hand(release_folder, tmp_path):
    """A rank's scale is a row of ours, its entries in our order."""
    release = tmp_path / "release"
    shutil.copytree(release_folder(ranks=2, n_heads=16), release)
    for rank, first in enumerate((0.0, 10.0)):
        path = release / f"models/7b/consolidated.{rank:02}.pth"
        tensors = torch.load(path, weights_only=True)
        for n, name in enumerate(("q_normalization.weight", "k_normalization.bias")):
            tensors[f"layers.1.attention.{name}"] = torch.arange(4.0) + first + 100 * n
        torch.save(tensors, path)
    model = read_meta(release)
    assert model.config.attention.qk_norm.groups == 2
    assert model.decoder["trunk.blocks.1.attention.q_norm.weight"].read().tolist() == [
        [0, 2, 1, 3],
        [10, 12, 11, 13],
    ]
    assert model.decoder["trunk.blocks.1.attention.k_norm.bias"].read().tolist() == [
        [100, 102, 101, 103],
        [110, 112, 111, 113],
    ]


def test_the_tensors_of_a_rank(release_folder, tmp_path):
    """Names, and which part of ours; written out for one layer of the second of two ranks."""
    import_model(release_folder(ranks=2, n_kv_heads=2, n_layers=1), tmp_path / "bundle")
    export_model(tmp_path / "bundle", tmp_path / "meta", "meta")
    ours = open_tensors(tmp_path / "bundle/model.safetensors")
    whole = {name: tensor.read() for name, tensor in ours.items()}
    file = rank_files(tmp_path / "meta")[1]
    block = "trunk.blocks.0."
    assert set(file) == {
        "tok_embeddings.weight", "norm.weight", "output.weight", "rope.freqs",
        "layers.0.attention_norm.weight", "layers.0.ffn_norm.weight",
        "layers.0.attention.wq.weight", "layers.0.attention.wk.weight",
        "layers.0.attention.wv.weight", "layers.0.attention.wo.weight",
        "layers.0.attention.q_normalization.weight", "layers.0.attention.q_normalization.bias",
        "layers.0.attention.k_normalization.weight", "layers.0.attention.k_normalization.bias",
        "layers.0.feed_forward.w1.weight", "layers.0.feed_forward.w2.weight",
        "layers.0.feed_forward.w3.weight",
    }  # fmt: skip
    for theirs, mine in {
        "tok_embeddings.weight": whole["embedding.weight"][:, 32:],
        "output.weight": whole["head.weight"][len(whole["head.weight"]) // 2 :],
        "norm.weight": whole["trunk.norm.weight"],
        "layers.0.attention_norm.weight": whole[block + "attention_norm.weight"],
        "layers.0.ffn_norm.weight": whole[block + "feed_forward_norm.weight"],
        "layers.0.attention.wv.weight": whole[block + "attention.v_proj.weight"][8:],
        "layers.0.attention.wo.weight": whole[block + "attention.o_proj.weight"][:, 32:],
        "layers.0.feed_forward.w1.weight": whole[block + "feed_forward.gate_proj.weight"][96:],
        "layers.0.feed_forward.w3.weight": whole[block + "feed_forward.up_proj.weight"][96:],
        "layers.0.feed_forward.w2.weight": whole[block + "feed_forward.down_proj.weight"][:, 96:],
    }.items():
        assert torch.equal(file[theirs], mine), theirs
    half = [0, 4, 1, 5, 2, 6, 3, 7]  # of ours, in their order
    q = whole[block + "attention.q_proj.weight"][32:]
    assert torch.equal(file["layers.0.attention.wq.weight"][8:16], q[8:16][half])
    bias = whole[block + "attention.k_norm.bias"][1]
    assert torch.equal(file["layers.0.attention.k_normalization.bias"], bias[half])


# ── round trips ──────────────────────────────────────────────────────────────────────────────────


def assert_same_release(found: Path, expected: Path) -> None:
    """Every tensor of every rank, every parameter, every name of a token, and the images'."""
    theirs = rank_files(expected)
    assert len(rank_files(found)) == len(theirs)
    for mine, wanted in zip(rank_files(found), theirs, strict=True):
        assert mine.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert mine[name].dtype == tensor.dtype, name
            assert torch.equal(mine[name], tensor), name
    mine, wanted = parameters(found), parameters(expected)
    of_width = ("multiple_of", "ffn_dim_multiplier", "model")  # may say it in another way
    for name in wanted.keys() - {*of_width}:
        assert mine[name] == wanted[name], name
    vocabularies = [
        json.loads((folder / "tokenizer/text_tokenizer.json").read_text())
        for folder in (found, expected)
    ]
    assert vocabularies[0]["model"] == vocabularies[1]["model"]
    assert vocabularies[0]["added_tokens"] == vocabularies[1]["added_tokens"]
    images = [
        torch.load(folder / "tokenizer/vqgan.ckpt", weights_only=True)["state_dict"]
        for folder in (found, expected)
    ]
    assert images[0].keys() == {n for n in images[1] if not n.startswith("loss.")}
    for name, tensor in images[0].items():
        assert torch.equal(tensor, images[1][name]), name


@pytest.mark.parametrize("kind", RELEASES)
def test_round_trip(release_folder, tmp_path, kind):
    dtype = torch.bfloat16
    release = release_folder(**RELEASES[kind], copies_differ=True, dtype=dtype)
    import_model(release, tmp_path / "bundle")
    assert pardalis.load(tmp_path / "bundle").model.head.weight.dtype == dtype
    # Without QK-norm nothing says how many ranks there were.
    n_ranks = None if RELEASES[kind].get("qk_normalization", True) else 2
    export_model(tmp_path / "bundle", tmp_path / "meta", "meta", n_ranks=n_ranks)
    assert_same_release(tmp_path / "meta", release)


@pytest.mark.parametrize(
    "kind", ["1 rank, grouped, swin", "4 ranks, grouped", "2 ranks, odd sizes"]
)
def test_round_trip_through_hugging_face(release_folder, tmp_path, kind):
    release = release_folder(**RELEASES[kind], copies_differ=True)
    write_chameleon(read_meta(release), tmp_path / "hf")
    write_meta(read_chameleon(tmp_path / "hf"), tmp_path / "meta")
    assert_same_release(tmp_path / "meta", release)
    write_chameleon(read_meta(tmp_path / "meta"), tmp_path / "again")
    names = sorted(path.name for path in (tmp_path / "hf").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in {*names} - {"LICENCES.md"}:
        before, after = tmp_path / "hf" / name, tmp_path / "again" / name
        if name.endswith(".safetensors"):
            mine, theirs = (safetensors.torch.load_file(path) for path in (after, before))
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[tensor], theirs[tensor]) for tensor in theirs)
        else:
            assert after.read_bytes() == before.read_bytes(), name


def test_round_trip_of_our_own_model(own_bundle, tmp_path, compare):
    """A model that was never Meta's; its width of the feed-forward is no multiple of 256."""
    export_model(own_bundle, tmp_path / "meta", "meta")
    import_model(tmp_path / "meta", tmp_path / "bundle")
    before, after = pardalis.load(own_bundle), pardalis.load(tmp_path / "bundle")
    config = shapes.changed(before.model.config, dropout=0.0)
    assert after.model.config == config
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[name], tensor), name
    mine, theirs = before.codec.image_tokenizer, after.codec.image_tokenizer
    assert theirs.config == mine.config
    for name, tensor in mine.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name
    text = pardalis.Document((pardalis.Text("An owl, naïve 🦉 <s> </b>\t\n"),))
    assert after.codec.encode(text) == before.codec.encode(text)
    assert after.codec.decode(after.codec.encode(text).ids).segments == text.segments
    ids = IDS % before.codec.vocabulary.size
    with torch.no_grad():
        ours = before.model(ids[None])[0]
    theirs = release_logits(tmp_path / "meta", ids)
    compare("Chameleon's release, written by us", "logits", ours, theirs, atol=2e-5)


def test_an_ema_codebook(own_bundle, tmp_path):
    """Its training state is not in the release's layout and does not change images."""
    model = read_bundle(own_bundle)
    trained = dataclasses.replace(
        model.image_tokenizer,
        quantizer=EMAConfig(beta=1.0),
    )
    write_meta(dataclasses.replace(model, image_tokenizer=trained), tmp_path / "meta")
    found = read_meta(tmp_path / "meta")
    for name, tensor in model.image_tensors.items():
        assert torch.equal(found.image_tensors[name].read(), tensor.read()), name


def test_more_ranks_than_groups(release_folder, tmp_path, compare):
    release = release_folder(ranks=2, n_kv_heads=4)
    write_meta(read_meta(release), tmp_path / "meta", n_ranks=4)
    assert len(rank_files(tmp_path / "meta")) == 4
    ours, theirs = release_logits(tmp_path / "meta", IDS), release_logits(release, IDS)
    compare("Chameleon's release, 4 ranks of 2", "logits", ours, theirs, atol=2e-5)
    back = read_meta(tmp_path / "meta")
    assert back.config.attention.qk_norm.groups == 4
    for name, tensor in read_meta(release).decoder.items():
        rows = back.decoder[name].read()
        if "q_norm" in name or "k_norm" in name:
            rows = rows[::2]
        assert torch.equal(rows, tensor.read()), name


@given(d_model=st.integers(8, 20_000), d_ff=st.integers(1, 80_000))
def test_any_width_of_the_feed_forward(d_model, d_ff):
    """The release computes it from two numbers, in these three steps."""
    config = shapes.changed(
        chameleon_7b().sized(65_536, 4096), d_model=2 * d_model, n_heads=1, n_kv_heads=1, d_ff=d_ff
    )
    written = json.loads(json.dumps(meta._ffn_params(config)))
    width = int(2 * (4 * config.d_model) / 3)
    if written.get("ffn_dim_multiplier") is not None:
        width = int(written["ffn_dim_multiplier"] * width)
    multiple = written["multiple_of"]
    assert multiple * ((width + multiple - 1) // multiple) == d_ff
    values = {"dim": config.d_model, "n_heads": 1, "n_layers": 1, **written}
    assert meta._config(values, Path("params.json"), 8, 1).feed_forward.width == d_ff


def test_a_common_width_has_the_common_parameters():
    assert meta._ffn_params(chameleon_7b().sized(65_536, 4096)) == {"multiple_of": 256}


def test_the_published_sizes_have_their_names():
    assert [meta._name(shape()) for shape in (chameleon_7b, chameleon_34b)] == ["7b", "30b"]


@pytest.mark.parametrize(
    ("params", "context"), [({"rope_theta": 10_000.0}, 4096), ({"rope_theta": 10_001.0}, 16_384),
                            ({"max_seq_len": 77}, 77)],
)  # fmt: skip
def test_the_context_is_inferred(params, context):
    values = {"dim": 64, "n_heads": 4, "n_layers": 1, **params}
    assert meta._config(values, Path("params.json"), 8, 1).context == context


# ── copies of norms ──────────────────────────────────────────────────────────────────────────────


def test_our_norm_is_the_mean_of_the_copies(release_folder):
    release = release_folder(ranks=4, n_kv_heads=4, copies_differ=True)
    files, model = rank_files(release), read_meta(release)
    for ours, theirs in (
        ("trunk.norm.weight", "norm.weight"),
        ("trunk.blocks.1.attention_norm.weight", "layers.1.attention_norm.weight"),
        ("trunk.blocks.0.feed_forward_norm.weight", "layers.0.ffn_norm.weight"),
    ):
        copies = torch.stack([file[theirs] for file in files])
        assert not torch.equal(copies[0], copies[1])
        assert torch.equal(model.decoder[ours].read(), copies.mean(0))


def test_equal_copies_are_not_kept(release_folder):
    assert list(read_meta(release_folder(ranks=2)).foreign) == ["rope.freqs"]


def test_copies_are_not_written_once_the_norm_was_trained(release_folder, tmp_path):
    release = release_folder(ranks=2, copies_differ=True)
    import_model(release, tmp_path / "bundle")
    path = tmp_path / "bundle/model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["trunk.norm.weight"] += 0.5
    safetensors.torch.save_file(tensors, path)
    export_model(tmp_path / "bundle", tmp_path / "meta", "meta")
    for mine, theirs in zip(rank_files(tmp_path / "meta"), rank_files(release), strict=True):
        assert torch.equal(mine["norm.weight"], tensors["trunk.norm.weight"])
        for name in theirs.keys() - {"norm.weight"}:
            assert torch.equal(mine[name], theirs[name]), name


def test_a_bundle_that_was_saved_anew_has_no_copies(release_folder, tmp_path):
    """As after training; what the release has besides is computed."""
    release = release_folder(ranks=2, copies_differ=True)
    import_model(release, tmp_path / "bundle")
    loaded = pardalis.load(tmp_path / "bundle")
    Bundle(loaded.model, loaded.codec, {}).save(tmp_path / "trained")
    export_model(tmp_path / "trained", tmp_path / "meta", "meta")
    first, second = rank_files(tmp_path / "meta")
    assert torch.equal(first["norm.weight"], second["norm.weight"])
    for mine, theirs in zip((first, second), rank_files(release), strict=True):
        for name in {name for name in theirs if not name.endswith(NORMS)}:
            assert torch.equal(mine[name], theirs[name]), name


@pytest.mark.parametrize("where", ["import", "export"])
def test_copies_in_another_dtype(release_folder, tmp_path, where):
    release = release_folder(ranks=2, copies_differ=True)
    half = torch.bfloat16
    import_model(release, tmp_path / "bundle", dtype=half if where == "import" else None)
    export_model(
        tmp_path / "bundle", tmp_path / "meta", "meta", dtype=half if where == "export" else None
    )
    for mine, theirs in zip(rank_files(tmp_path / "meta"), rank_files(release), strict=True):
        for name in theirs.keys() - {"rope.freqs"}:
            assert torch.equal(mine[name], theirs[name].to(half)), name


def test_copies_in_a_wider_dtype(release_folder, tmp_path):
    release = release_folder(ranks=2, copies_differ=True, dtype=torch.bfloat16)
    import_model(release, tmp_path / "bundle", dtype=torch.float32)
    export_model(tmp_path / "bundle", tmp_path / "meta", "meta", dtype=torch.bfloat16)
    assert_same_release(tmp_path / "meta", release)


# ── what the layout cannot hold ──────────────────────────────────────────────────────────────────


def refused(model: ForeignModel, folder: Path, **options) -> str:
    with pytest.raises(BundleError) as caught:
        write_meta(model, folder / "meta", **options)
    assert list(folder.iterdir()) == []
    message = str(caught.value)
    assert message.startswith(f"{folder / 'meta'}: Meta's layout cannot hold this model: ")
    assert message.endswith(". Nothing was written.")
    return message


def changed(model: ForeignModel, **changes) -> ForeignModel:
    """Return the model with another config and the same tensors."""
    vq = {name: changes.pop(name) for name in ("has_decoder", "patch_size", "norm_groups")
          if name in changes}  # fmt: skip
    return dataclasses.replace(
        model,
        config=shapes.changed(model.config, **changes),
        image_tokenizer=dataclasses.replace(model.image_tokenizer, **vq),
    )


@pytest.mark.parametrize(
    ("changes", "options", "what"),
    [
        (
            {"qk_norm_groups": None},
            {},
            r"model\.attention\.qk_norm\.groups is not set, so each head ",
        ),
        ({"qk_norm_eps": 1e-6}, {}, r"attention\.qk_norm\.eps is 1e-06 \(needed: 1e-05\)"),
        ({}, {"n_ranks": 1}, r"qk_norm\.groups is 2, which needs that many ranks or a "),
        ({}, {"n_ranks": 0}, "it needs 1 rank or more, not 0"),
        ({}, {"n_ranks": -2}, "it needs 1 rank or more, not -2"),
        (
            {"has_decoder": False},
            {},
            "the image tokenizer has no decoder; run `import_model` again",
        ),
        ({"patch_size": 2}, {}, r"image_tokenizer\.patch_size is 2 \(needed: 1\)"),
        ({"norm_groups": 0}, {}, r"image_tokenizer\.norm_groups is 0 \(needed: 32\)"),
    ],
)
def test_options_that_the_layout_cannot_hold(own_bundle, tmp_path, changes, options, what):
    assert re.search(
        what, refused(changed(read_bundle(own_bundle), **changes), tmp_path, **options)
    )


def test_all_options_that_it_cannot_hold_are_named_together(own_bundle, tmp_path):
    model = changed(
        read_bundle(own_bundle), qk_norm_groups=None, d_ff=79, has_decoder=False, patch_size=2
    )
    message = refused(model, tmp_path, n_ranks=5)
    assert model.config.vocab_size % 5
    for name in ("n_heads is 4, which 5 ranks do not divide", "n_kv_heads is 2", "d_model is 48",
                 "feed_forward.width is 79", f"vocab_size is {model.config.vocab_size}",
                 "qk_norm.groups is not",
                 "no decoder", "patch_size is 2"):  # fmt: skip
        assert name in message
    message = refused(model, tmp_path, n_ranks=6)
    assert "d_model" not in message  # 48


def test_image_ids_in_another_order(own_bundle, tmp_path):
    """The release's code sorts them, and takes the first for code 0."""
    model = read_bundle(own_bundle)
    ids = list(range(model.vocabulary.size))
    first, last = model.vocabulary.image[0], model.vocabulary.image[-1]
    ids[first], ids[last] = last, first
    vocabulary = dataclasses.replace(model.vocabulary, foreign_ids=ids)
    message = refused(dataclasses.replace(model, vocabulary=vocabulary), tmp_path)
    assert "the image tokens are not in the order of the codes" in message


def test_hugging_faces_without_a_decoder(release_folder, tmp_path):
    write_chameleon(read_meta(release_folder(ranks=2)), tmp_path / "hf")
    (tmp_path / "hf/pardalis.safetensors").unlink()
    model = read_chameleon(tmp_path / "hf")
    shutil.rmtree(tmp_path / "hf")
    assert "no decoder" in refused(model, tmp_path)


# ── broken releases ──────────────────────────────────────────────────────────────────────────────


def change_json(path: Path, **changes) -> None:
    values = json.loads(path.read_text())
    values |= changes
    path.write_text(json.dumps({n: v for n, v in values.items() if v is not None}))


def change_model(home: Path, **changes) -> None:
    model = json.loads((home / "params.json").read_text())["model"] | changes
    change_json(home / "params.json", model={n: v for n, v in model.items() if v is not None})


def change_tensors(path: Path, **changes) -> None:
    """Replace tensors, or remove them where there is None."""
    tensors = torch.load(path, weights_only=True) | changes
    torch.save({name: t for name, t in tensors.items() if t is not None}, path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


RANK = "consolidated.01.pth"
DAMAGE = {
    "a rank is missing": (
        lambda m, t: (m / RANK).unlink(),
        r"needs a file of weights for each of 2 ranks \(model_parallel_size\).* but has: "
        r"consolidated\.00\.pth\.",
    ),
    "no rank": (
        lambda m, t: [path.unlink() for path in m.glob("*.pth")],
        "for each of 2 ranks .* but has: none",
    ),
    "another rank": (
        lambda m, t: (m / RANK).rename(m / "consolidated.02.pth"),
        r"each of 2 ranks .* but has: consolidated\.00\.pth, consolidated\.02\.pth",
    ),
    "fewer ranks in the config": (
        lambda m, t: change_json(m / "consolidate_params.json", model_parallel_size=1),
        r"each of 1 ranks .* but has: consolidated\.00\.pth, consolidated\.01\.pth",
    ),
    "more ranks in the config": (
        lambda m, t: change_json(m / "consolidate_params.json", model_parallel_size=4),
        "each of 4 ranks",
    ),
    "one file for two ranks": (
        lambda m, t: [(m / "consolidated.00.pth").rename(m / "consolidated.pth"),
                      (m / RANK).unlink()],
        r"each of 2 ranks .* but has: consolidated\.pth",
    ),
    "parameters are missing": (
        lambda m, t: change_model(m, dim=None, n_layers=None),
        r"params\.json lacks dim, n_layers; copy it again",
    ),
    "parameters of another kind": (
        lambda m, t: change_model(m, rope_theta="large"),
        r"params\.json is not a model's config \(.*large.*\); copy it again",
    ),
    "ranks of another kind": (
        lambda m, t: change_json(m / "consolidate_params.json", model_parallel_size="2"),
        r"params\.json is not a model's config \(model_parallel_size is '2'\); copy it again",
    ),
    "parameters that no decoder has": (
        lambda m, t: change_model(m, n_heads=7),
        r"params\.json: qk_norm\.groups \(2\) must divide n_kv_heads \(7\)",
    ),
    "ranks do not divide the heads": (
        lambda m, t: change_model(m, n_kv_heads=1),
        r"params\.json: qk_norm\.groups \(2\) must divide n_kv_heads \(1\)",
    ),
    "no JSON": (
        lambda m, t: (m / "params.json").write_text("{"),
        r"params\.json is not a model's config",
    ),
    "a list": (
        lambda m, t: (m / "consolidate_params.json").write_text("[1]"),
        r"consolidate_params\.json is not a model's config",
    ),
    "two models": (
        lambda m, t: shutil.copytree(m, m.with_name("30b")),
        r"holds 2 models \(models/30b, models/7b\); give the path of one",
    ),
    "no tokenizers": (lambda m, t: shutil.rmtree(t), "has no folder 'tokenizer' beside it or abo"),
    "no text tokenizer": (
        lambda m, t: (t / "text_tokenizer.json").unlink(),
        r"text_tokenizer\.json is missing; copy the whole folder again",
    ),
    "no image tokenizer": (lambda m, t: (t / "vqgan.ckpt").unlink(), r"vqgan\.ckpt is missing"),
    "no yaml": (lambda m, t: (t / "vqgan.yaml").unlink(), r"vqgan\.yaml, .* is missing"),
    "wrong tensors": (
        lambda m, t: change_tensors(
            m / RANK,
            **{"norm.weight": torch.ones(63), "layers.0.ffn_norm.weight": None,
               "layers.1.attention.wo.weight": None, "layers.0.extra": torch.ones(1)},
        ),
        r"consolidated\.01\.pth do not fit their config: missing layers\.1\.attention\.wo\.weight, "
        r"layers\.0\.ffn_norm\.weight|missing layers\.0\.ffn_norm\.weight, "
        r"layers\.1\.attention\.wo\.weight; unexpected layers\.0\.extra; of another shape "
        r"norm\.weight \(63 instead of 64\)",
    ),
    "no embedding": (
        lambda m, t: change_tensors(m / "consolidated.00.pth", **{"tok_embeddings.weight": None}),
        r"consolidated\.00\.pth do not fit their config: missing tok_embeddings\.weight\. Nothing",
    ),
    "another width": (
        lambda m, t: change_model(m, multiple_of=256),
        r"of another shape layers\.0\.feed_forward\.w1\.weight \(96x64 instead of 128x64\), ",
    ),
    "half a rank": (lambda m, t: cut(m / RANK), r"consolidated\.01\.pth cannot be read .*truncate"),
    "half an image tokenizer": (
        lambda m, t: cut(t / "vqgan.ckpt"),
        r"vqgan\.ckpt cannot be read .*truncated",
    ),
    "half a text tokenizer": (
        lambda m, t: cut(t / "text_tokenizer.json"),
        r"text_tokenizer\.json is not a tokenizer that can be read",
    ),
    "names are missing": (
        lambda m, t: (t / "text_tokenizer.json").write_text(
            (t / "text_tokenizer.json").read_text().replace("IMGIMGBCZ", "x").replace("<eoss>", "y")
        ),
        r"is not a Chameleon vocabulary: no <eoss>; no IMGIMGBCZ among its 63 image tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_release(release_folder, tmp_path, damage):
    release, out = tmp_path / "release", tmp_path / "out"
    shutil.copytree(release_folder(ranks=2), release)
    out.mkdir()
    spoil, what = DAMAGE[damage]
    spoil(release / "models/7b", release / "tokenizer")
    with pytest.raises(BundleError) as caught:
        import_model(release, out / "bundle")
    message = str(caught.value)
    assert re.search(what, message), message
    assert message.endswith(".") and "\n" not in message
    assert list(out.iterdir()) == []


# ── where things lie ─────────────────────────────────────────────────────────────────────────────


def test_the_path_of_one_of_two_models(release_folder, tmp_path, monkeypatch):
    release = tmp_path / "release"
    shutil.copytree(release_folder(), release)
    shutil.copytree(release / "models/7b", release / "models/30b")
    model = read_meta(release / "models/30b")
    assert torch.equal(
        model.decoder["trunk.norm.weight"].read(), rank_files(release_folder())[0]["norm.weight"]
    )
    monkeypatch.chdir(release / "models/30b")
    assert read_meta(Path()).config == model.config


def test_one_rank_may_be_numbered(release_folder, tmp_path):
    release = tmp_path / "release"
    shutil.copytree(release_folder(), release)
    (release / "models/7b/consolidated.pth").rename(release / "models/7b/consolidated.00.pth")
    assert read_meta(release).config == read_meta(release_folder()).config


def test_parameters_may_lie_in_one_file(release_folder, tmp_path):
    release = tmp_path / "release"
    shutil.copytree(release_folder(ranks=2), release)
    (release / "models/7b/consolidate_params.json").unlink()
    assert read_meta(release).config == read_meta(release_folder(ranks=2)).config


def test_licences_are_copied(release_folder, tmp_path):
    release = tmp_path / "release"
    shutil.copytree(release_folder(), release)
    (release / "LICENSE").write_text("Research only.")
    import_model(release, tmp_path / "bundle")
    assert "Research only." in pardalis.load(tmp_path / "bundle").licences
    export_model(tmp_path / "bundle", tmp_path / "meta", "meta")
    assert "Research only." in (tmp_path / "meta/LICENCES.md").read_text()


def test_a_decoder_is_built_from_any_release(release_folder):
    """Every tensor has the shape that the config promises."""
    for options in RELEASES.values():
        model = read_meta(release_folder(**options))
        with torch.device("meta"):
            expected = Decoder(model.config).state_dict()
        assert {n: t.shape for n, t in model.decoder.items()} == {
            n: tuple(t.shape) for n, t in expected.items()
        }
