import json

import PIL.Image
import pytest
import torch
from small_nets import write_sentence_net

from pardalis.cli.main import main
from pardalis.errors import BundleError, ConfigError, DataError
from pardalis.evaluate.metrics import pair_net
from pardalis.evaluate.metrics.image_text import image_text_cosine
from pardalis.evaluate.metrics.pair_net import (
    PairNetConfig,
    fit_pair_net,
    load_pair_net,
    train_pair_net,
)
from pardalis.feature_nets.sentences import load_sentence_net

SMALL = PairNetConfig(width=16, hidden=64, steps=60, batch=64)


def unit(*shape: int, seed: int) -> torch.Tensor:
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def pairs(n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features that a linear map relates."""
    hidden = unit(n, 6, seed=0)
    images, texts = (hidden @ unit(6, width, seed=width) for width in (24, 16))
    return tuple(torch.nn.functional.normalize(x, dim=1) for x in (images, texts))


def test_pairs_that_belong_together_are_found():
    net, report = fit_pair_net(*pairs(), SMALL)
    assert (report.pairs, report.heldout_pairs) == (270, 30)
    assert report.chance == pytest.approx(1 / 30)
    assert report.heldout_top1 > 0.3  # nine times chance
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_the_seed_decides_the_net():
    images, texts = pairs(40)
    config = PairNetConfig(width=4, hidden=8, steps=3, heldout=0.0)
    first, report = fit_pair_net(images, texts, config)
    again, _ = fit_pair_net(images, texts, config)
    torch.testing.assert_close(first.images(images), again.images(images), rtol=0, atol=0)
    assert report.heldout_top1 is None and report.chance is None
    other, _ = fit_pair_net(images, texts, PairNetConfig(**{**_plain(config), "seed": 1}))
    assert not torch.equal(first.images(images), other.images(images))


def _plain(config: PairNetConfig) -> dict:
    return {name: getattr(config, name) for name in config.__slots__}


def test_equal_texts_are_no_negatives():
    images, texts = pairs(20)
    net, _ = fit_pair_net(images, texts[:1].expand(20, -1), PairNetConfig(steps=2, heldout=0.0))
    assert torch.isfinite(net.images(images)).all()
    # With one text there is nothing to learn: the loss is 0.
    generator = torch.Generator().manual_seed(0)
    loss = pair_net._loss(net, images, texts[:1].repeat(20, 1), 0.0, generator)
    assert float(loss) == pytest.approx(0)


def test_a_net_is_trained_on_documents_and_read_again(tmp_path, features, monkeypatch, capsys):
    sentences = load_sentence_net(write_sentence_net(tmp_path / "sentences"))
    monkeypatch.setattr(pair_net.ImageFeatures, "load", classmethod(lambda cls: features))
    monkeypatch.setattr(pair_net, "load_sentence_net", lambda: sentences)
    lines = []
    for name in ("red", "green", "blue"):
        PIL.Image.new("RGB", (32, 32), name).save(tmp_path / f"{name}.png")
        lines.append({"segments": [{"image": f"{name}.png"}, {"text": f" {name} field"}]})
    lines += [{"segments": [{"text": "no image"}]}, {"segments": [{"image": "red.png"}]}]
    source = tmp_path / "documents.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = PairNetConfig(width=8, hidden=16, steps=30, heldout=0.0, dropout=0.0)
    report = train_pair_net(source, "jsonl", tmp_path / "net", config)
    assert report.pairs == 3
    written = json.loads((tmp_path / "net" / "config.json").read_text())
    assert written["format"] == "pardalis-pair-net" and written["report"]["pairs"] == 3
    scorer = load_pair_net(tmp_path / "net")
    images = [PIL.Image.open(tmp_path / f"{name}.png") for name in ("red", "green", "blue")]
    right = image_text_cosine(scorer, images, ["red field", "green field", "blue field"])
    wrong = image_text_cosine(scorer, images, ["green field", "blue field", "red field"])
    assert (right > wrong).all()
    (tmp_path / "net" / "mine.txt").touch()
    with pytest.raises(ConfigError, match=r"also holds 'mine.txt', so it is not replaced"):
        train_pair_net(source, "jsonl", tmp_path / "net", config)
    (tmp_path / "net" / "mine.txt").unlink()
    command = ["evaluate", "pair-net", str(source), "-o", str(tmp_path / "net"), "--steps", "2"]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 3
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("learnt 3 pairs\n")
    train_pair_net(source, "jsonl", tmp_path / "net", config)
    with pytest.raises(DataError, match="no document of one readable image and a text"):
        source.write_text(json.dumps(lines[3]) + "\n")
        train_pair_net(source, "jsonl", tmp_path / "net", config)
    (tmp_path / "net" / "config.json").write_text('{"format": "another", "version": 1}')
    with pytest.raises(BundleError, match="cannot be read"):
        load_pair_net(tmp_path / "net")
    (tmp_path / "net" / "config.json").write_text(json.dumps(written | {"text_width": 5}))
    with pytest.raises(BundleError, match="describes no pair net of version 1"):
        load_pair_net(tmp_path / "net")


def test_pairs_that_are_too_few_are_refused():
    with pytest.raises(DataError, match="at least two pairs of an image and a text, got 1"):
        fit_pair_net(unit(1, 4, seed=0), unit(1, 4, seed=1), SMALL)
    with pytest.raises(ConfigError, match="batch must be at least 2"):
        PairNetConfig(batch=1)
