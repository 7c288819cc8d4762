"""Asking a trained model about pictures of any kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from lit_models.parts.evaluating import evaluating


def takes_pictures(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Lets a method of images (B, C, H, W), such as ``encode``, also take pictures of any kind.

    A float tensor with four axes is a batch of the network, and goes to the method as it is. All else (paths, images of
    Pillow, arrays, other tensors; one or a list) goes through the module's ``preprocess`` first, and then through the
    module in evaluation mode, without gradients. The result has a row for each picture.
    """

    @wraps(method)
    def taking(self: Any, images: Any, *args: Any, **options: Any) -> Tensor:
        if isinstance(images, Tensor) and images.is_floating_point() and images.dim() == 4:
            return method(self, images, *args, **options)
        with torch.no_grad(), evaluating(self):
            return method(self, self.preprocess(images, self), *args, **options)

    return taking
