"""Image encoders that end in a feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lit_models.parts.distributed import GlobalBatchNorm2d

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


Norm = Literal["batch", "group", "none"]


class ConvEncoder(nn.Sequential):
    """Convolutions 3×3 of stride 2, each with a norm and ReLU: (N, C, H, W) in 0..1 → (N, channels[-1], h, w).

    Each layer halves the map: 64×64 becomes 4×4 after four.

    Args:
        ground: the brightness that becomes 0, as the padding is. Where images are drawn on an even ground, its own
            brightness keeps the frame of the image from being the strongest edge in it.
        norm: over the batch, over four groups of channels of each image, or none.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], ground: float = 0.5, norm: Norm = "batch") -> None:
        layers: list[nn.Module] = [Rescale((ground,))]
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
    """Pixels in 0..1 to zero mean and unit deviation, channel by channel; by default 0..1 to -1..1."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,)) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class Backbone(nn.Module):
    """A network of torchvision or timm by name, without its pooling and head: (N, 3, H, W) → (N, C, h, w).

    Args:
        name: ``resnet18`` and the like for torchvision's ResNets, or ``timm/<name>`` for anything in timm.
        pretrained: start from the library's ImageNet weights (downloaded by it).
        frozen: keep the weights *and* the batch-norm statistics as they are.

    Raises:
        ValueError: an unknown name, or timm is asked for and not installed.
    """

    def __init__(self, name: str, pretrained: bool = False, frozen: bool = False) -> None:
        super().__init__()
        self.rescale = Rescale(IMAGENET_MEAN, IMAGENET_STD)
        self.frozen = frozen
        if name.startswith("timm/"):
            self.body, self.out_channels = _timm_body(name.removeprefix("timm/"), pretrained)
        else:
            self.body, self.out_channels = _torchvision_body(name, pretrained)
        if frozen:
            self.body.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self.rescale(images))


def _torchvision_body(name: str, pretrained: bool) -> tuple[nn.Module, int]:
    from difflib import get_close_matches

    from torchvision import models

    builders = {known: models.get_model_builder(known) for known in models.list_models()}
    resnets = [known for known, builder in builders.items() if builder.__module__ == models.resnet.__name__]
    if name not in resnets:
        near = get_close_matches(name, resnets, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"encoder={name!r}: expected 'conv', 'features', a ResNet of torchvision or 'timm/<name>'{hint}"
        )
    network = models.get_model(name, weights="DEFAULT" if pretrained else None, norm_layer=GlobalBatchNorm2d)
    body = nn.Sequential(*list(network.children())[:-2])  # without average pooling and classifier
    return body, network.fc.in_features


def _timm_body(name: str, pretrained: bool) -> tuple[nn.Module, int]:
    try:
        import timm
    except ModuleNotFoundError:
        raise ValueError(f"encoder='timm/{name}': expected timm to be installed (pip install timm)") from None
    if not timm.is_model(name):
        near = timm.list_models(f"*{name[:6]}*")[:3]
        raise ValueError(f"encoder='timm/{name}': expected a model of timm, such as {', '.join(near) or 'resnet50d'}")
    network = timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="")
    channels: int = network.num_features  # type: ignore[assignment]
    return network, channels
