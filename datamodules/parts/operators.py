"""Linear operators by which images are measured, with their exact adjoints."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kernel = Literal["lanczos3", "lanczos2", "bicubic"]
SUPPORT = {"lanczos3": 3.0, "lanczos2": 2.0, "bicubic": 2.0}


class Operator(Protocol):
    """A linear map of images (…, C, H, W) to measurements (…, C, h, w), with ⟨A x, y⟩ = ⟨x, Aᵀ y⟩."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def adjoint(self, y: Tensor) -> Tensor: ...


class Identity(nn.Module):
    """A x = x."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y


class Downsample(nn.Module):
    """An image that is ``factor`` times smaller, by an antialiased filter over rows and columns.

    A is a matrix for each axis, so its adjoint is exact, and the operator that makes the data is also the one in the
    loss. It agrees with Pillow's filter of the same name (``lanczos3`` is Pillow's LANCZOS).

    Raises:
        ValueError: the sides are not multiples of the factor.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, height: int, width: int, factor: int, kernel: Kernel = "lanczos3") -> None:
        super().__init__()
        if height % factor or width % factor:
            raise ValueError(f"an image of {width}×{height}: expected sides that are multiples of factor={factor}")
        # Not in the checkpoint: they follow from the task.
        self.register_buffer("rows", resampling_matrix(height, factor, kernel), persistent=False)
        self.register_buffer("columns", resampling_matrix(width, factor, kernel), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows.to(x.dtype) @ x @ self.columns.to(x.dtype).T

    def adjoint(self, y: Tensor) -> Tensor:
        return self.rows.to(y.dtype).T @ y @ self.columns.to(y.dtype)


def resampling_matrix(size: int, factor: int, kernel: Kernel) -> Tensor:
    """(size / factor, size): each row holds the filter, ``factor`` times as wide, around one of the smaller pixels.

    The filter is cut off at the border, and each row sums to one.
    """
    centers = (torch.arange(size // factor, dtype=torch.double) + 0.5) * factor
    distance = (torch.arange(size, dtype=torch.double) + 0.5 - centers[:, None]).abs() / factor
    if kernel == "bicubic":  # Keys 1981, with a = −1/2
        near = (1.5 * distance - 2.5) * distance.square() + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, far)
    else:
        weights = torch.sinc(distance) * torch.sinc(distance / SUPPORT[kernel])
    weights = weights * (distance < SUPPORT[kernel])
    return (weights / weights.sum(1, keepdim=True)).float()


class Blur(nn.Module):
    """A convolution: each point of the image becomes the kernel. Beyond the border, the outermost pixels go on.

    Args:
        kernel: (h, w), what becomes of a point of light; it is brought to a sum of one. Its middle pixel, or of an even
            number the one after the middle, stays where the point was.

    Raises:
        ValueError: it has a negative number, or none that is positive.
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        if not (float(kernel.min()) >= 0 and float(kernel.max()) > 0):
            raise ValueError("kernel: expected numbers of 0 or more, some of them positive")
        # Sides are odd, so that there is a middle; and turned, since what PyTorch calls a convolution is a correlation.
        odd = F.pad(kernel.double(), (0, 1 - kernel.shape[1] % 2, 0, 1 - kernel.shape[0] % 2))
        turned = (odd / odd.sum()).flip(0, 1).float()
        self.register_buffer("kernel", turned[None, None], persistent=False)
        self.pad = (odd.shape[0] // 2, odd.shape[1] // 2)

    def forward(self, x: Tensor) -> Tensor:
        images, (rows, columns) = x.reshape(-1, 1, *x.shape[-2:]), self.pad
        wider = F.pad(images, (columns, columns, rows, rows), mode="replicate")
        return F.conv2d(wider, self.kernel.to(x.dtype)).view_as(x)

    def adjoint(self, y: Tensor) -> Tensor:
        wider = F.conv_transpose2d(y.reshape(-1, 1, *y.shape[-2:]), self.kernel.to(y.dtype))
        return folded(folded(wider, self.pad[0], 2), self.pad[1], 3).view_as(y)


def folded(wider: Tensor, pad: int, dim: int) -> Tensor:
    """The adjoint of replicating the ends of a dimension ``pad`` times: what lies beyond them is added to them."""
    size = wider.shape[dim] - 2 * pad
    inner = wider.narrow(dim, pad, size).clone()
    inner.narrow(dim, 0, 1).add_(wider.narrow(dim, 0, pad).sum(dim, keepdim=True))
    inner.narrow(dim, size - 1, 1).add_(wider.narrow(dim, pad + size, pad).sum(dim, keepdim=True))
    return inner
