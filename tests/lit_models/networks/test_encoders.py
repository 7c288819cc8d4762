"""Image encoders that end in a vector or in a map: their shapes, stems, widths, channels and names."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from lit_models.networks.batch_norm import GlobalBatchNorm2d
from lit_models.networks.encoders import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RESNETS,
    Backbone,
    ConvEncoder,
    PooledConv,
    Rescale,
    ResNet,
    image_encoder,
    library_weights,
)


def sizes_of_maps(network: nn.Module, image_shape: list[int]) -> dict[str, tuple[int, ...]]:
    """Height and width of what each child of a network makes of one image."""
    found: dict[str, tuple[int, ...]] = {}
    for name, child in network.named_children():
        child.register_forward_hook(lambda module, inputs, output, name=name: found.update({name: output.shape[2:]}))
    network.eval()(torch.rand(1, *image_shape))
    return {name: tuple(size) for name, size in found.items()}


@pytest.mark.parametrize(
    ("name", "shape", "options", "out_dim"),
    [
        ("conv", [1, 8, 8], {}, 64),
        ("conv", [3, 8, 8], {"width": 8}, 16),
        ("conv", [1, 16, 16], {}, 64),
        ("conv", [1, 28, 28], {}, 128),
        ("conv", [4, 32, 32], {}, 128),
        ("conv", [3, 64, 64], {}, 256),
        ("conv", [3, 32, 64], {}, 256),
        ("resnet18", [3, 32, 32], {"width": 16}, 128),
        ("resnet34", [1, 28, 28], {"width": 8}, 64),
        ("resnet50", [3, 32, 32], {"width": 16}, 512),
        ("resnet101", [3, 32, 32], {"width": 8}, 256),
        ("resnet18", [3, 96, 96], {"width": 16}, 128),
        ("resnet18", [1, 8, 8], {}, 512),
        ("mobilenet_v3_small", [3, 32, 32], {}, 1024),
        ("mobilenet_v3_small", [1, 32, 32], {}, 1024),
        ("shufflenet_v2_x0_5", [1, 32, 32], {}, 1024),
        ("resnext50_32x4d", [3, 32, 32], {}, 2048),
    ],
)
def test_features_are_one_finite_vector_an_image_with_a_gradient(
    name: str, shape: list[int], options: dict[str, Any], out_dim: int
) -> None:
    encoder = image_encoder(name, shape, **options)
    features = encoder(torch.rand(3, *shape))
    assert features.shape == (3, out_dim)
    assert encoder.out_dim == out_dim
    features.square().sum().backward()
    assert features.isfinite().all()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    alone = encoder.eval()(images := torch.rand(3, *shape))
    assert torch.allclose(encoder(images[1:2]), alone[1:2], atol=1e-4)
    assert not any(type(module) is nn.BatchNorm2d for module in encoder.modules())
    assert any(isinstance(module, GlobalBatchNorm2d) for module in encoder.modules())


def test_timms_networks_are_encoders_too() -> None:
    pytest.importorskip("timm")
    for shape in ([3, 32, 32], [1, 32, 32]):
        encoder = image_encoder("timm/resnet10t", shape)
        assert encoder(torch.rand(2, *shape)).shape == (2, 512) == (2, encoder.out_dim)


# ResNets.


def test_cifar_stem_keeps_small_images_large() -> None:
    sizes = sizes_of_maps(image_encoder("resnet18", [3, 32, 32], width=8), [3, 32, 32])
    expected = {"conv1": 32, "maxpool": 32, "layer1": 32, "layer2": 16, "layer3": 8, "layer4": 4}
    assert {name: sizes[name] for name in expected} == {name: (size, size) for name, size in expected.items()}
    encoder = image_encoder("resnet18", [3, 32, 32])
    assert (encoder.conv1.kernel_size, encoder.conv1.stride, encoder.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(encoder.maxpool, nn.Identity)


def test_imagenet_stem_quarters_images() -> None:
    for encoder in (
        image_encoder("resnet18", [3, 224, 224], width=8),
        image_encoder("resnet18", [3, 32, 32], width=8, stem="imagenet"),
    ):
        sizes = sizes_of_maps(encoder, [3, 224, 224])
        expected = {"conv1": 112, "maxpool": 56, "layer1": 56, "layer2": 28, "layer3": 14, "layer4": 7}
        assert {name: sizes[name] for name in expected} == {name: (size, size) for name, size in expected.items()}


def test_stem_follows_from_the_size_unless_it_is_given() -> None:
    def kernel(size: int, **options: Any) -> tuple[int, ...]:
        return image_encoder("resnet18", [3, size, size], width=8, **options).conv1.kernel_size

    assert kernel(64) == (3, 3)
    assert kernel(65) == (7, 7)
    assert kernel(224, stem="cifar") == (3, 3)


@pytest.mark.parametrize(
    "name",
    [name if name in ("resnet18", "resnet50") else pytest.param(name, marks=pytest.mark.slow) for name in RESNETS],
)
def test_resnets_are_torchvisions_under_the_same_names(name: str) -> None:
    torch.manual_seed(0)
    theirs, ours = models.get_model(name), ResNet(name, stem="imagenet")
    weights = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    assert list(library_weights(ours)) == list(weights)
    ours.load_state_dict(weights)
    theirs.fc = nn.Identity()
    assert ours.out_dim == models.get_model(name).fc.in_features
    images = torch.rand(2, 3, 64, 64)
    for mode in (False, True):
        assert torch.allclose(ours.train(mode)(images), theirs.train(mode)(2 * images - 1), atol=1e-4)
    # And back: an encoder's weights are torchvision's but for the classifier.
    lacking = models.get_model(name).load_state_dict(library_weights(ours), strict=False)
    assert (lacking.missing_keys, lacking.unexpected_keys) == (["fc.weight", "fc.bias"], [])


def test_initial_weights_are_torchvisions_in_kind() -> None:
    torch.manual_seed(0)
    theirs, ours = models.resnet18(), ResNet("resnet18", stem="imagenet")
    for (name, one), other in zip(library_weights(ours).items(), theirs.state_dict().values(), strict=False):
        if one.dim() == 4:
            assert abs(one.std() / other.std() - 1) < 0.1, name
            assert abs(one.mean()) < 0.1 * one.std(), name
        else:
            assert torch.equal(one, other), name


def test_width_scales_every_stage() -> None:
    encoder = image_encoder("resnet18", [3, 32, 32], width=16)
    assert [encoder.get_submodule(f"layer{i}.1.conv2").out_channels for i in (1, 2, 3, 4)] == [16, 32, 64, 128]
    whole = sum(p.numel() for p in ResNet("resnet18").parameters())
    assert 15 < whole / sum(p.numel() for p in encoder.parameters()) < 17


def fake_weights(monkeypatch: pytest.MonkeyPatch, name: str) -> dict[str, Tensor]:
    """What torchvision would download, made of random numbers."""
    torch.manual_seed(1)
    network = models.get_model(name)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    state = network.state_dict()
    weights = type(models.get_model_weights(name)["DEFAULT"])
    monkeypatch.setattr(weights, "get_state_dict", lambda self, *args, **options: dict(state))
    return state


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_pretrained_weights_meet_images_scaled_as_theirs_were(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = fake_weights(monkeypatch, name)
    network = models.get_model(name)
    network.load_state_dict(state)
    if name == "resnet18":
        network.fc = nn.Identity()
    else:
        network.classifier[3] = nn.Identity()
    encoder = image_encoder(name, [3, 96, 96], pretrained=True).eval()
    images = torch.rand(2, 3, 96, 96)
    scaled = (images - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    assert torch.allclose(encoder(images), network.eval()(scaled), atol=1e-4)
    # A gray image gives what three equal channels give, scaled alike.
    gray = image_encoder(name, [1, 96, 96], pretrained=True).eval()
    mean, std = sum(IMAGENET_MEAN) / 3, sum(IMAGENET_STD) / 3
    expected = network((images[:, :1].expand(-1, 3, -1, -1) - mean) / std)
    assert torch.allclose(gray(images[:, :1]), expected, atol=1e-3)


def test_the_scale_of_pixels_has_one_shape_whatever_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that weights which are taken over by their shapes bring it along."""
    fake_weights(monkeypatch, "resnet18")
    for channels in (1, 3):
        plain, pretrained = (
            image_encoder("resnet18", [channels, 96, 96], pretrained=pretrained).state_dict()
            for pretrained in (False, True)
        )
        assert {key: value.shape for key, value in plain.items()} == {k: v.shape for k, v in pretrained.items()}


def test_weights_may_bring_the_scale_of_their_pixels() -> None:
    """And pass it on: a network that is trained further, saved and loaded again takes the same pixels."""
    images = torch.rand(2, 3, 16, 16)
    scale = {"mean": torch.tensor([0.1, 0.2, 0.3])[:, None, None], "std": torch.tensor([0.5, 1.0, 2.0])[:, None, None]}
    plain = image_encoder("resnet18", [3, 16, 16], width=4).eval()
    expected = plain(0.5 + 0.5 * (images - scale["mean"]) / scale["std"])  # which it makes (images − mean) / std of
    plain.load_state_dict(plain.state_dict() | {f"rescale.{name}": value for name, value in scale.items()})
    torch.testing.assert_close(plain(images), expected)
    again = image_encoder("resnet18", [3, 16, 16], width=4).eval()
    again.load_state_dict(plain.state_dict())
    torch.testing.assert_close(again(images), expected)


def test_pretrained_weights_fit_their_own_form_only() -> None:
    for options in ({"stem": "cifar"}, {"stem": "imagenet", "width": 32}):
        with pytest.raises(ValueError, match="pretrained=True: expected stem='imagenet' and width=64"):
            image_encoder("resnet18", [3, 32, 32], pretrained=True, **options)
    with pytest.raises(ValueError, match="pretrained=True: there are no pretrained weights for encoder='conv'"):
        image_encoder("conv", [3, 32, 32], pretrained=True)


def test_building_a_network_that_is_tried_first_leaves_no_trace_in_it() -> None:
    torch.manual_seed(0)
    encoder = image_encoder("mobilenet_v3_small", [3, 32, 32])
    after = torch.get_rng_state()
    torch.manual_seed(0)
    network = models.get_model("mobilenet_v3_small")
    assert torch.equal(torch.get_rng_state(), after)
    assert all(module.training for module in encoder.modules())
    for name, value in encoder.body.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name


# The small network.


@pytest.mark.parametrize(("size", "layers"), [(8, 2), (16, 2), (28, 3), (32, 3), (48, 4), (64, 4)])
def test_small_network_halves_until_the_map_is_four_pixels_or_less(size: int, layers: int) -> None:
    encoder = PooledConv([1, size, size], 4)
    convolutions = [module for module in encoder if isinstance(module, nn.Conv2d)]
    assert [module.out_channels for module in convolutions] == [4 * 2**i for i in range(layers)]
    images = torch.rand(2, 1, size, size)
    maps = nn.Sequential(*encoder.eval())(images)
    assert maps.shape[2] == maps.shape[3] <= 4
    assert torch.allclose(encoder(images), maps.mean((2, 3)))


# Mistakes.


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("resnet19", [3, 32, 32], {}, r"encoder='resnet19': expected 'conv'.*; did you mean 'resnet\d+'"),
        ("cnov", [3, 32, 32], {}, "did you mean 'conv'"),
        ("timm/resnet50x9", [3, 32, 32], {}, "encoder='timm/resnet50x9': expected a model of timm"),
        ("vit_b_16", [3, 32, 32], {}, r"encoder='vit_b_16': does not take images of 3×32×32 \(.*224"),
        (
            "squeezenet1_0",
            [3, 64, 64],
            {},
            "encoder='squeezenet1_0': expected a classifier that ends in a linear layer",
        ),
        ("resnet18", [2, 32, 32], {}, "encoder='resnet18': expected images of 1 or 3 channels, not 2"),
        ("resnet18", [3, 32, 32], {"stem": "mnist"}, "stem='mnist': expected 'cifar' or 'imagenet'"),
        ("resnet18", [3, 32, 32], {"width": 0}, "width=0: expected at least 1"),
        ("conv", [3, 32, 32], {"stem": "cifar"}, "stem='cifar': encoder='conv' has no choice of stems"),
        ("vgg11", [3, 32, 32], {"width": 16}, "width=16: expected null with encoder='vgg11'"),
    ],
)
def test_mistakes_are_named(name: str, shape: list[int], options: dict[str, Any], message: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with pytest.raises(ValueError, match=message):
        image_encoder(name, shape, **options)


# Encoders that end in a map.


@pytest.mark.parametrize(("size", "side"), [(64, 8), (75, 10), (16, 2)])
def test_conv_encoder_halves_the_map_with_each_layer(size: int, side: int) -> None:
    encoder = ConvEncoder(1, [4, 8, 6])
    assert encoder.out_channels == 6
    assert encoder(torch.rand(2, 1, size, size)).shape == (2, 6, side, side)
    assert sum(isinstance(module, GlobalBatchNorm2d) for module in encoder) == 3


def test_conv_encoder_shifts_its_input_to_be_centered() -> None:
    encoder = ConvEncoder(3, [4])
    seen: list[Tensor] = []
    encoder[1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    encoder(torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]))
    assert (seen[0][0] == -1).all()
    assert (seen[0][1] == 1).all()
    white = ConvEncoder(3, [4], ground=1.0)
    assert not white[0](torch.ones(1, 3, 4, 4)).any()  # as the padding around it is


def test_rescaling_is_channel_by_channel() -> None:
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    images = torch.rand(2, 3, 4, 4)
    scaled = Rescale(mean, std)(images)
    for c in range(3):
        torch.testing.assert_close(scaled[:, c], (images[:, c] - mean[c]) / std[c])
    # It is part of the weights, and of those saved before it was, the network's own stays.
    loaded = Rescale()
    loaded.load_state_dict(Rescale(mean, std).state_dict())
    torch.testing.assert_close(loaded(images), scaled)
    loaded.load_state_dict({})
    torch.testing.assert_close(loaded(images), scaled)


def test_backbone_ends_in_a_map() -> None:
    backbone = Backbone("resnet18").eval()
    images = torch.rand(2, 3, 64, 64)
    assert backbone.out_channels == 512
    assert backbone(images).shape == (2, 512, 2, 2)
    normalized = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    torch.testing.assert_close(backbone(images), backbone.body(normalized))


def test_timm_backbone_ends_in_a_map() -> None:
    pytest.importorskip("timm")
    backbone = Backbone("timm/resnet10t").eval()
    assert backbone(torch.rand(1, 3, 64, 64)).shape == (1, backbone.out_channels, 2, 2)


@pytest.mark.parametrize("frozen", [True, False])
def test_only_a_frozen_backbone_keeps_weights_and_statistics_in_training(frozen: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Backbone("resnet18", frozen=frozen), nn.Flatten(), nn.Linear(512, 2))
    assert model[0].body.training != frozen, "from the start: Lightning does not call train() before a fit"
    model.train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()
        model(torch.rand(3, 3, 32, 32)).square().sum().backward()
        optimizer.step()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"2.weight", "2.bias"} <= changed
    if frozen:
        assert changed == {"2.weight", "2.bias"}
        assert not model[0].body.training
    else:
        assert {"0.body.0.weight", "0.body.1.running_mean", "0.body.1.num_batches_tracked"} <= changed


def test_an_unknown_backbone_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"encoder='resnet19'.*did you mean 'resnet1[08]'|'resnet19'.*'resnet\d+'"):
        Backbone("resnet19")
    with pytest.raises(ValueError, match=r"encoder='wide_resnet50'.*did you mean 'wide_resnet50_2'"):
        Backbone("wide_resnet50")
    with pytest.raises(ValueError, match=r"encoder='vgg16': expected 'conv', 'features'"):
        Backbone("vgg16")
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"encoder='timm/resnet50x9': expected.*such as .*resnet"):
        Backbone("timm/resnet50x9")
