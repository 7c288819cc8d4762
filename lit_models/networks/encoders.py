"""Image encoders: those that end in a feature map, and :func:`image_encoder` for those that end in a vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import ceil, log2
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from common.checks import at_least, nearest, one_of
from lit_models.networks.batch_norm import GlobalBatchNorm2d
from lit_models.parts.evaluating import evaluating

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


Norm = Literal["batch", "group", "none"]


class ConvEncoder(nn.Sequential):
    """Convolutions 3×3 of stride 2, each with a norm and ReLU: (N, C, H, W) in 0..1 → (N, channels[-1], h, w).

    Each layer halves the map: 64×64 becomes 4×4 after four.

    Args:
        ground: the brightness that becomes 0, like the padding. For images with a uniform background, using its
            brightness keeps the image's border from being its strongest edge.
        norm: over the batch, over four groups of channels of each image, or none.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], ground: float = 0.5, norm: Norm = "batch") -> None:
        one_of(Norm, norm=norm)
        layers: list[nn.Module] = [Rescale((ground,) * in_channels, (0.5,) * in_channels)]
        for before, after in zip([in_channels, *channels], channels, strict=False):
            layers.append(nn.Conv2d(before, after, 3, 2, 1, bias=norm == "none"))
            if norm == "batch":
                layers.append(GlobalBatchNorm2d(after))
            elif norm == "group":
                layers.append(nn.GroupNorm(4, after))
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)
        self.out_channels = channels[-1]


class Rescale(nn.Module):
    """Pixels in 0..1 to zero mean and unit deviation, channel by channel; by default 0..1 to -1..1.

    The two are part of the weights, since these are worth nothing without them: whatever is loaded replaces them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,)) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("mean", "std"):
            # Checkpoints from before they were part of the weights do not have them.
            value = state_dict.setdefault(prefix + name, getattr(self, name))
            self.register_buffer(name, torch.empty_like(value, device=self.mean.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class Backbone(nn.Module):
    """A network of torchvision or timm by name, without its pooling and head: (N, 3, H, W) → (N, C, h, w).

    Args:
        name: ``resnet18`` and the like for torchvision's ResNets, or ``timm/<name>`` for anything in timm.
        pretrained: start from the library's ImageNet weights (downloaded by it).
        frozen: keep the weights *and* the batch-norm statistics fixed.
        size: H, W, for networks that are made for one size.

    Raises:
        ValueError: an unknown name, or a timm model although timm is not installed.
    """

    def __init__(
        self, name: str, pretrained: bool = False, frozen: bool = False, size: Sequence[int] = (224, 224)
    ) -> None:
        super().__init__()
        self.rescale = Rescale(IMAGENET_MEAN, IMAGENET_STD)
        self.frozen = frozen
        if name.startswith("timm/"):
            self.body, self.out_channels = _timm_body(name.removeprefix("timm/"), pretrained, size)
        else:
            self.body, self.out_channels = _torchvision_body(name, pretrained)
        if frozen:
            self.body.requires_grad_(False).eval()  # Lightning leaves each part in the mode that it finds

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.body(self.rescale(images))
        return output


def _torchvision_body(name: str, pretrained: bool) -> tuple[nn.Module, int]:
    from torchvision import models

    builders = {known: models.get_model_builder(known) for known in models.list_models()}
    resnets = [known for known, builder in builders.items() if builder.__module__ == models.resnet.__name__]
    if name not in resnets:
        hint = nearest(name, ["conv", "features", *resnets])
        raise ValueError(
            f"encoder={name!r}: expected 'conv', 'features', a ResNet of torchvision or 'timm/<name>'{hint}"
        )
    with _torchvision_weights(name):
        network = models.get_model(name, weights="DEFAULT" if pretrained else None, norm_layer=GlobalBatchNorm2d)
    body = nn.Sequential(*list(network.children())[:-2])  # without average pooling and classifier
    return body, network.fc.in_features


@contextmanager
def _fetching(name: str, address: str, place: str) -> Iterator[None]:
    """Says which file belongs where if the library's weights are not there and can't be fetched."""
    try:
        yield
    except OSError as error:  # of the network, or of the folder
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise ValueError(
            f"pretrained=True: the weights of {name} could not be fetched ({reason}); get {address} and {place}"
        ) from None


def _torchvision_weights(name: str) -> AbstractContextManager[None]:
    from torchvision import models

    return _fetching(
        name, models.get_model_weights(name)["DEFAULT"].url, f"put it into {torch.hub.get_dir()}/checkpoints"
    )


def _timm_body(name: str, pretrained: bool, size: Sequence[int]) -> tuple[nn.Module, int]:
    network = _timm_network(name, pretrained, size, num_classes=0, global_pool="")
    return network, network.num_features


def _timm_network(name: str, pretrained: bool, size: Sequence[int], **options: Any) -> Any:
    try:
        import timm
    except ModuleNotFoundError:
        raise ValueError(f"encoder='timm/{name}': expected timm to be installed (pip install timm)") from None
    if not timm.is_model(name):
        near = timm.list_models(f"*{name[:6]}*")[:3]
        raise ValueError(f"encoder='timm/{name}': expected a model of timm, such as {', '.join(near) or 'resnet50d'}")
    if timm.get_pretrained_cfg(name).fixed_input_size:  # a transformer, made for one size
        options["img_size"] = tuple(size)
    where = timm.get_pretrained_cfg(name)
    with _fetching(
        f"timm/{name}", where.url or f"https://huggingface.co/{where.hf_hub_id}", "put it into timm's cache"
    ):
        return timm.create_model(name, pretrained=pretrained, **options)


def grid_encoder(
    name: str, image_shape: Sequence[int], channels: Sequence[int], norm: Norm, pretrained: bool, frozen: bool
) -> tuple[nn.Module, int]:
    """The image encoder and the number of channels of its output map."""
    if name == "features":
        return nn.Identity(), image_shape[0]
    if name == "conv":
        conv = ConvEncoder(image_shape[0], channels, ground=1.0, norm=norm)  # drawn images have a white or pale one
        return conv, conv.out_channels
    backbone = Backbone(name, pretrained, frozen, image_shape[1:])
    return backbone, backbone.out_channels


def grid_size(encoder: nn.Module, image_shape: Sequence[int]) -> int:
    """The number of values in the grid of one image."""
    with evaluating(encoder), torch.no_grad():
        size: int = encoder(torch.zeros(1, *image_shape)).numel()
        return size


Pooling = Literal["max", "mean", "flatten"]


def pool(grid: Tensor, how: Pooling) -> Tensor:
    """(I, C, h, w) → one vector an image: each channel's maximum or mean (I, C), or all of the grid (I, C·h·w).

    The maximum ignores where a thing is, which is right for recognizing it; its *place* needs the whole grid.
    """
    if how == "flatten":
        return grid.flatten(1)
    return grid.amax((2, 3)) if how == "max" else grid.mean((2, 3))


def with_coordinates(grid: Tensor) -> Tensor:
    """(I, C + 2, h, w): adds two channels, the row and the column of each cell from -1 to 1."""
    images, _, height, width = grid.shape
    rows = torch.linspace(-1, 1, height, dtype=grid.dtype, device=grid.device)
    columns = torch.linspace(-1, 1, width, dtype=grid.dtype, device=grid.device)
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return torch.cat([grid, place.expand(images, -1, -1, -1)], 1)


RESNETS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
"""blocks in each of the four stages (He et al. 2016, table 1): basic ones up to 34 layers, bottlenecks above"""

Stem = Literal["cifar", "imagenet"]


def image_encoder(
    name: str,
    image_shape: Sequence[int],
    *,
    stem: Stem | None = None,
    width: int | None = None,
    pretrained: bool = False,
) -> PooledConv | ResNet | Pooled:
    """A network from images (B, C, H, W) in 0..1 to pooled features (B, D), with D as its ``out_dim``.

    Args:
        name: "conv" for :class:`PooledConv`; one of :data:`RESNETS`; any other classifier of torchvision, or
            ``timm/<name>`` of timm, without its last layer.
        image_shape: C, H, W, with C 1 or 3 (any C for "conv").
        stem: of a ResNet, see :class:`ResNet`; by default "cifar" for images of up to 64 pixels, and "imagenet" for
            larger ones and for pretrained weights, which have that.
        width: channels of a ResNet's first stage (64 in the paper; with 16 two CPU cores can train one), or of the
            first layer of "conv" (by default 32).
        pretrained: start from the library's ImageNet weights (downloaded by it).

    Raises:
        ValueError: an unknown name; an option that does not fit it; a network that does not take images of that shape.
    """
    channels, *size = image_shape
    asked = f"encoder={name!r}"
    at_least(1, width=width)
    if stem is not None:
        one_of(Stem, stem=stem)
    if stem is not None and name not in RESNETS:
        raise ValueError(f"stem={stem!r}: {asked} has no choice of stems, expected null or one of {', '.join(RESNETS)}")
    if name == "conv":
        if pretrained:
            raise ValueError(f"pretrained=True: there are no pretrained weights for {asked}, expected false")
        return PooledConv(image_shape, width or 32)
    if channels not in (1, 3):
        raise ValueError(f"{asked}: expected images of 1 or 3 channels, not {channels}; 'conv' takes any number")
    if name in RESNETS:
        small = max(size) <= 64 and not pretrained
        return ResNet(name, channels, width or 64, stem or ("cifar" if small else "imagenet"), pretrained)
    if width is not None:
        raise ValueError(f"width={width}: expected null with {asked}, whose width is in its name")
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if name.startswith("timm/"):
        network = _timm_network(name.removeprefix("timm/"), pretrained, size, num_classes=0, in_chans=channels)
        mean, std = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
    else:
        network = _headless(name, channels, pretrained)
    return Pooled(
        network,
        image_shape,
        name,
        _rescale(channels, mean, std) if pretrained else _rescale(channels, [0.5] * 3, [0.5] * 3),
    )


class PooledConv(ConvEncoder):
    """A :class:`ConvEncoder` and the mean over its last map: (B, C, H, W) → (B, out_dim).

    Each layer halves the map and doubles the channels, until the map is 4 pixels or less, at least twice: 8×8 and
    16×16 have two layers, 28×28 and 32×32 have three, 64×64 has four.
    """

    def __init__(self, image_shape: Sequence[int], width: int = 32, norm: Norm = "batch") -> None:
        channels, *size = image_shape
        num_layers = max(2, ceil(log2(max(size) / 4)))
        super().__init__(channels, [width * 2**i for i in range(num_layers)], norm=norm)
        self.out_dim = self.out_channels

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = super().forward(input).mean((2, 3))
        return output


class ResNet(nn.Module):
    """torchvision's ResNet without its classifier, of any width and for small images: (B, C, H, W) → (B, out_dim).

    Its parameters have torchvision's names, so that either can load the other's. Pixels in 0..1 are normalized with
    ImageNet's mean and deviation if the weights are ImageNet's, and otherwise mapped to -1..1.

    Args:
        name: of :data:`RESNETS`.
        in_channels: 1 or 3. For 1, pretrained weights of the first layer are summed over the channels, so that a gray
            image gives the same result as three equal channels.
        width: channels of the first stage.
        stem: "imagenet", 7×7 of stride 2 and a maximum over 3×3 of stride 2; or "cifar", one 3×3 of stride 1 (Chen et
            al. 2020, appendix B.9), which leaves 32×32 images at 32, 16, 8 and 4 pixels in the four stages.
        pretrained: ImageNet weights, which are of width 64 and the ImageNet stem.
    """

    def __init__(
        self, name: str, in_channels: int = 3, width: int = 64, stem: Stem = "cifar", pretrained: bool = False
    ) -> None:
        from torchvision.models.resnet import BasicBlock, Bottleneck

        super().__init__()
        one_of(Stem, stem=stem)
        if pretrained and (stem, width) != ("imagenet", 64):
            raise ValueError(f"pretrained=True: expected stem='imagenet' and width=64, not {stem!r} and {width}")
        block: type[BasicBlock | Bottleneck] = BasicBlock if name in ("resnet18", "resnet34") else Bottleneck
        self.rescale = Rescale((0.5,) * in_channels, (0.5,) * in_channels)
        if stem == "cifar":
            self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
        self.bn1 = GlobalBatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        channels = width
        for stage, depth in enumerate(RESNETS[name]):
            planes = width * 2**stage
            blocks = nn.Sequential()
            for i in range(depth):
                stride, shortcut = 2 if stage and not i else 1, None
                if stride != 1 or channels != planes * block.expansion:
                    shortcut = nn.Sequential(
                        nn.Conv2d(channels, planes * block.expansion, 1, stride, bias=False),
                        GlobalBatchNorm2d(planes * block.expansion),
                    )
                blocks.append(block(channels, planes, stride, shortcut, norm_layer=GlobalBatchNorm2d))
                channels = planes * block.expansion
            self.add_module(f"layer{stage + 1}", blocks)
        self.out_dim = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if pretrained:
            self._load_pretrained(name)

    def _load_pretrained(self, name: str) -> None:
        from torchvision import models

        with _torchvision_weights(name):
            weights = models.get_model_weights(name)["DEFAULT"].get_state_dict(progress=False, check_hash=True)
        self.load_state_dict({key: value for key, value in _fitted(weights, self).items() if "fc." not in key})
        self.rescale = _rescale(self.conv1.in_channels, IMAGENET_MEAN, IMAGENET_STD)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.rescale(images)))))
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        output: Tensor = x.mean((2, 3))
        return output


class Pooled(nn.Module):
    """A network of torchvision or timm that outputs a vector, tried on one black image: (B, C, H, W) → (B, out_dim).

    Raises:
        ValueError: the network does not take images of that shape.
    """

    def __init__(self, body: nn.Module, image_shape: Sequence[int], name: str, rescale: Rescale) -> None:
        super().__init__()
        self.rescale = rescale
        for module in body.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = GlobalBatchNorm2d  # which differs in `forward` alone
        self.body = body
        self.eval()
        try:
            with torch.no_grad():
                self.out_dim: int = self(torch.zeros(1, *image_shape)).shape[1]
        except (RuntimeError, AssertionError, ValueError) as error:
            shape = "×".join(map(str, image_shape))
            raise ValueError(f"encoder={name!r}: does not take images of {shape} ({error})") from error
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.body(self.rescale(images)).flatten(1)
        return output


def _headless(name: str, in_channels: int, pretrained: bool) -> nn.Module:
    """A torchvision classifier without its last linear layer, with its first convolution adapted."""
    from torchvision import models

    known = models.list_models(models)
    if name not in known:
        hint = nearest(name, ["conv", *known])
        raise ValueError(f"encoder={name!r}: expected 'conv', a classifier of torchvision or 'timm/<name>'{hint}")
    with _torchvision_weights(name):
        network = models.get_model(name, weights="DEFAULT" if pretrained else None)
    linear = [key for key, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"encoder={name!r}: expected a classifier that ends in a linear layer")
    network.set_submodule(linear[-1], nn.Identity())
    key, first = next((key, module) for key, module in network.named_modules() if isinstance(module, nn.Conv2d))
    if first.in_channels != in_channels:
        form = {part: getattr(first, part) for part in ("kernel_size", "stride", "padding", "dilation", "groups")}
        fitted = nn.Conv2d(in_channels, first.out_channels, bias=first.bias is not None, **form)
        fitted.load_state_dict(_fitted(first.state_dict(), fitted))
        network.set_submodule(key, fitted)
    module: nn.Module = network
    return module


def _fitted(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Sums the first convolution of weights over its channels if the network has only one input channel."""
    own = network.state_dict()
    return {
        key: value.sum(1, keepdim=True)
        if key in own and value.dim() == 4 and value.shape[1] == 3 and own[key].shape[1] == 1
        else value
        for key, value in weights.items()
    }


def library_weights(encoder: nn.Module) -> dict[str, Tensor]:
    """The weights of an :func:`image_encoder` under torchvision's or timm's names.

    Says, in a line for each, what that library's network must have replaced before it takes them, and how pixels are
    scaled.
    """
    rescale = getattr(encoder, "rescale", None)
    if isinstance(rescale, Rescale):
        mean, std = ([round(value, 4) for value in each.flatten().tolist()] for each in (rescale.mean, rescale.std))
        rank_zero_info(f"These weights take pixels of 0..1 after (pixels - mean) / std with mean {mean}, std {std}.")
    if isinstance(encoder, ResNet) and (form := encoder.conv1).weight.shape[2] == 3:
        rank_zero_info(
            f"Before a ResNet of torchvision or timm loads them: network.conv1 = nn.Conv2d({form.in_channels}, "
            f"{form.out_channels}, 3, 1, 1, bias=False); network.maxpool = nn.Identity()"
        )
    network = encoder.body if isinstance(encoder, Pooled) else encoder
    weights = network.state_dict().items()
    return {key: value.detach().clone() for key, value in weights if not key.startswith("rescale.")}


def _rescale(channels: int, mean: Sequence[float], std: Sequence[float]) -> Rescale:
    """To the mean and deviation of three colors; to their averages for one channel."""
    return Rescale(mean, std) if channels == 3 else Rescale((sum(mean) / 3,), (sum(std) / 3,))
