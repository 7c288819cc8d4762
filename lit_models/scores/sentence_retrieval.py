"""How well generated images fit their sentences where nothing but the sentences says what is in an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lit_models.scores.generation import frechet_distance


class SentenceRetrieval(Metric):
    """Gathers encoded images and sentences of one space and computes all metrics at the end.

    ``compute`` returns

    - ``r_precision``: share of the generated images whose own sentence is nearer, by the cosine, than each of
      :attr:`OTHERS` sentences of other images (Xu et al. 2018, "AttnGAN", with R = 1). The others are those that follow
      in the data, so that the result does not depend on batches. A sentence in the same words is no other one;
    - ``r_precision_real``: the same of the real images, for which the encoders do not reach 1 either;
    - ``r_precision_chance``: what an image that has nothing to do with its sentence would get;
    - ``frechet_distance`` between encoded real and generated images: see
      :func:`~lit_models.scores.generation.frechet_distance`. It is on these encoders' own scale, comparable only
      between runs on the same data.
    """

    full_state_update = False
    images: list[Tensor]
    sentences: list[Tensor]
    real: list[Tensor]
    fake: list[Tensor]

    OTHERS = 99

    def __init__(self) -> None:
        super().__init__()
        for name in ("images", "sentences", "real", "fake"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, images: Tensor, sentences: Tensor, real: Tensor, fake: Tensor) -> None:
        """Adds N sentences.

        Args:
            images: (N,) the number of the image that each is about.
            sentences, real, fake: (N, F), encoded: the sentences, their images, and those generated for them.
        """
        self.images.append(images)
        self.sentences.append(sentences.float())
        self.real.append(real.float())
        self.fake.append(fake.float())

    def compute(self) -> dict[str, Tensor]:
        images = dim_zero_cat(self.images)
        order = images.argsort(stable=True)  # whatever the rank that saw it
        images = images[order]
        sentences, real, fake = (dim_zero_cat(part)[order] for part in (self.sentences, self.real, self.fake))
        first = torch.cat([images.new_ones(1, dtype=torch.bool), images[1:] != images[:-1]])
        rivals = min(self.OTHERS, len(sentences) - 1)
        right, chance = retrieved(fake, sentences, images, rivals)
        return {
            "r_precision": right,
            "r_precision_real": retrieved(real, sentences, images, rivals)[0],
            "r_precision_chance": chance,
            "frechet_distance": frechet_distance(real[first], fake).float(),
        }


def retrieved(made: Tensor, sentences: Tensor, images: Tensor, others: int) -> tuple[Tensor, Tensor]:
    """How often row i of the sentences (N, F) is nearer to row i of ``made`` (N, F) than the ``others`` that follow it.

    Those about the same image, by the numbers ``images`` (N,), and those in the same words, which are encoded alike, do
    not count as others.

    Returns:
        the share of rows for which it is, and what chance would give.
    """
    made, sentences = F.normalize(made, dim=1), F.normalize(sentences, dim=1)
    own = (made * sentences).sum(1)
    right = torch.ones(len(made), dtype=torch.bool, device=made.device)
    rivals = own.new_ones(len(made))
    for shift in range(1, others + 1):
        another = sentences.roll(-shift, 0)
        counts = (images.roll(-shift, 0) != images) & (another != sentences).any(1)
        right &= ((made * another).sum(1) < own) | ~counts
        rivals += counts
    return right.float().mean(), (1 / rivals).mean()
