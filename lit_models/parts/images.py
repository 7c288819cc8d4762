"""Converts an image of any kind to the tensor that a trained model expects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def to_image_batch(image: Any, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """One image as (1, C, H, W) float in 0..1.

    Args:
        image: a PIL image of any mode; an array (H, W) or (H, W, C); or a tensor (H, W), (C, H, W) or (1, C, H, W).
            Integers count 0..255 and floats 0..1. One channel is repeated to three, three are averaged to one by
            luminance, and an alpha channel is laid over white.
        shape: the required (C, H, W), with C 1 or 3; other sizes are resized with antialiasing.

    Raises:
        TypeError: it is not an image. ValueError: its shape or range is not that of an image, or it is not finite.
    """
    if isinstance(image, Tensor):
        tensor = image[0] if image.dim() == 4 and len(image) == 1 else image
    elif isinstance(image, np.ndarray):
        tensor = torch.from_numpy(np.ascontiguousarray(image))  # a view may run backwards
        tensor = tensor.movedim(-1, 0) if tensor.dim() == 3 else tensor
    elif hasattr(image, "convert"):  # PIL, without importing it
        mode = "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB"
        if image.mode.startswith("I;16"):  # 16 bits, which convert would cut off at 255
            tensor = torch.from_numpy(np.array(image).astype(np.float32) / 65535)
        else:
            tensor = torch.from_numpy(np.array(image.convert(mode)))
        tensor = tensor.movedim(-1, 0) if tensor.dim() == 3 else tensor
    else:
        raise TypeError(f"image of type {type(image).__name__}: expected a PIL image, an array or a tensor")
    tensor = tensor[None] if tensor.dim() == 2 else tensor
    if tensor.dim() != 3 or tensor.shape[0] not in (1, 3, 4) or 0 in tensor.shape:
        expected = "(H, W), (H, W, C)" if isinstance(image, np.ndarray) else "(H, W), (C, H, W)"
        raise ValueError(f"image of shape {tuple(image.shape)}: expected {expected} with 1, 3 or 4 channels")
    if tensor.is_floating_point():
        low, high = float(tensor.min()), float(tensor.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # so for NaN too
            values = f"{low:.4g}..{high:.4g}"
            raise ValueError(f"image with values in {values}: expected floats in 0..1 (or integers 0..255)")
        tensor = tensor.float().clamp(0, 1)
    else:
        tensor = tensor.float() / (1 if tensor.dtype == torch.bool else 255)
        if float(tensor.min()) < 0 or float(tensor.max()) > 1:
            raise ValueError("image with integers outside 0..255: expected 0..255 (or floats in 0..1)")
    if tensor.shape[0] == 4:
        alpha = tensor[3:]
        tensor = tensor[:3] * alpha + (1 - alpha)
    channels, height, width = shape
    if tensor.shape[0] == 1 and channels == 3:
        tensor = tensor.expand(3, -1, -1)
    elif tensor.shape[0] == 3 and channels == 1:
        tensor = (tensor * tensor.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    tensor = tensor[None].to(device)
    if tensor.shape[2:] != (height, width):
        tensor = F.interpolate(tensor, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return tensor
