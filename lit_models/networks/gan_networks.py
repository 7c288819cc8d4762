"""Generator and discriminator of :mod:`lit_models.text_to_image`: those of DCGAN, conditioned on a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_models.networks.batch_norm import GlobalBatchNorm2d


class Generator(nn.Module):
    """G: a sentence's encoding (N, text_dim) and noise → an image (N, C, S, S) in −1..1, S = 4·2ⁿ.

    Transposed convolutions from 4×4, each with batch norm and ReLU (Radford et al. 2016); ``width`` channels next to
    the image, and twice as many in each earlier layer.
    """

    def __init__(
        self, image_shape: Sequence[int], text_dim: int, condition_dim: int, noise_dim: int, width: int
    ) -> None:
        super().__init__()
        self.condition_dim, self.noise_dim = condition_dim, noise_dim
        self.distribution = nn.Linear(text_dim, 2 * condition_dim)
        channels = [width * 2**i for i in reversed(range(doublings(image_shape)))]
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(noise_dim + condition_dim, channels[0], 4, bias=False),
            GlobalBatchNorm2d(channels[0]),
            nn.ReLU(inplace=True),
        ]
        for before, after in pairwise(channels):
            layers += [
                nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False),
                GlobalBatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        self.body = nn.Sequential(*layers, nn.ConvTranspose2d(channels[-1], image_shape[0], 4, 2, 1), nn.Tanh())
        self.body.apply(init_weights)

    def condition(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ² (N, condition_dim) of the conditioning augmentation."""
        mean, log_var = F.leaky_relu(self.distribution(text), 0.2).chunk(2, 1)
        return mean, log_var

    def forward(self, mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
        """``noise`` (N, noise_dim + condition_dim), standard normal: z, and the ε that is multiplied by σ."""
        z, epsilon = noise.split([self.noise_dim, self.condition_dim], 1)
        c = mean + (0.5 * log_var).exp() * epsilon
        output: Tensor = self.body(torch.cat([z, c], 1)[:, :, None, None])
        return output


class Discriminator(nn.Module):
    """D: images (N, C, S, S) in −1..1 and sentences' encodings (N, text_dim) → logits (N,) that they belong together.

    Convolutions of stride 2 down to 4×4, each with batch norm and a leaky ReLU; there the sentence, projected to
    ``condition_dim`` numbers, joins every cell. With ``spectral`` each layer has spectral norm 1 (Miyato et al. 2018)
    in place of the batch norm.
    """

    def __init__(
        self, image_shape: Sequence[int], text_dim: int, condition_dim: int, width: int, spectral: bool
    ) -> None:
        super().__init__()
        channels = [width * 2**i for i in range(doublings(image_shape))]
        layers: list[nn.Module] = [nn.Conv2d(image_shape[0], width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        for before, after in pairwise(channels):
            layers.append(nn.Conv2d(before, after, 4, 2, 1, bias=spectral))
            if not spectral:
                layers.append(GlobalBatchNorm2d(after))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        self.trunk = nn.Sequential(*layers)
        self.text = nn.Sequential(nn.Linear(text_dim, condition_dim), nn.LeakyReLU(0.2, inplace=True))
        self.joint = nn.Sequential(
            nn.Conv2d(channels[-1] + condition_dim, channels[-1], 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(channels[-1], 1, 4),
        )
        self.apply(init_weights)
        if spectral:
            for module in self.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.utils.parametrizations.spectral_norm(module)

    def judge(self, features: Tensor, text: Tensor) -> Tensor:
        """Logits (N,) of features (N, F, 4, 4), as ``trunk`` gives them, and sentences (N, text_dim)."""
        sentence = self.text(text)[:, :, None, None].expand(-1, -1, *features.shape[2:])
        output: Tensor = self.joint(torch.cat([features, sentence], 1)).flatten()
        return output

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        return self.judge(self.trunk(images), text)


def doublings(image_shape: Sequence[int]) -> int:
    """The n of a square image of side 4·2ⁿ.

    Raises:
        ValueError: the image has another shape.
    """
    _, height, width = image_shape
    count = round(math.log2(max(height, 1) / 4))
    if height != width or count < 1 or height != 4 * 2**count:
        raise ValueError(f"image_shape={list(image_shape)}: expected a square of side 8, 16, 32, 64, …")
    return count


def init_weights(module: nn.Module) -> None:
    """Normal of deviation 0.02, for the scale of batch norm around 1 (Radford et al. 2016, section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
