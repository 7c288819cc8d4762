"""Augmentation of batches: torchvision's distributions and pixels, an independent draw for every sample."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from datamodules.parts import augment
from datamodules.parts.augment import Augmentation, Parameters

EVERYTHING = Augmentation(24, flip=0.5, blur=0.5, solarize=0.3, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.4)
ORDERS = list(itertools.permutations(range(4)))


def draws_of(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, Augmentation.num_draws, generator=torch.Generator().manual_seed(seed))


def images_of(count: int, channels: int = 3, height: int = 40, width: int = 40, seed: int = 0) -> Tensor:
    """Smooth, and rough at every pixel; one is black, one is white, one is gray."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1) * 230
    images = (images + 25 * torch.rand(images.shape, generator=generator)).to(torch.uint8)
    for row, kept in enumerate((0, 255, images[2, :1] if count > 2 else 0)):
        if count > 3:
            images[row] = kept
    return images


def unchanged(count: int, rows: int, columns: int, **changes: Any) -> Parameters:
    """Parameters that do nothing, but for what is given: a value for all, or (B, …) for each."""
    none = Parameters(
        top=torch.zeros(count, dtype=torch.long),
        left=torch.zeros(count, dtype=torch.long),
        height=torch.full((count,), rows),
        width=torch.full((count,), columns),
        flip=torch.zeros(count, dtype=torch.bool),
        factors=torch.ones(count, 3),
        hue=torch.zeros(count),
        order=torch.arange(4).expand(count, 4),
        gray=torch.zeros(count, dtype=torch.bool),
        sigma=torch.zeros(count),
        solarize=torch.zeros(count, dtype=torch.bool),
    )
    given = {
        name: torch.as_tensor(value).expand_as(getattr(none, name)).to(getattr(none, name).dtype)
        for name, value in changes.items()
    }
    return none._replace(**given)


def one_by_one(images: Tensor, parameters: Parameters, size: int) -> Tensor:
    """By torchvision, in float, sample by sample."""
    made = []
    for image, *values in zip(images, *parameters, strict=True):
        p = Parameters(*values)
        x = image.float() / 255
        box = [int(value) for value in (p.top, p.left, p.height, p.width)]
        x = F.resized_crop(x, *box, [size, size], antialias=True)
        x = F.horizontal_flip(x) if p.flip else x
        for kind in p.order.tolist():
            if kind == 3:
                x = F.adjust_hue(x, float(p.hue))
            else:
                change = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)[kind]
                x = change(x, float(p.factors[kind]))
        x = F.rgb_to_grayscale(x, num_output_channels=3) if p.gray and len(x) == 3 else x
        kernel = 2 * max(1, size // 20) + 1
        x = F.gaussian_blur(x, [kernel, kernel], [float(p.sigma)] * 2) if p.sigma > 0 else x
        made.append(F.solarize(x, 0.5) if p.solarize else x)
    return torch.stack(made)


# Distributions.


def agree(ours: Tensor, theirs: list[float]) -> bool:
    """Two samples are of one distribution, by Kolmogorov and Smirnov."""
    return bool(stats.ks_2samp(ours.double().numpy(), np.array(theirs)).pvalue > 1e-3)


def rate_is(expected: float, happened: Tensor) -> bool:
    deviation = (expected * (1 - expected) / len(happened)) ** 0.5
    return abs(float(happened.double().mean()) - expected) <= 4 * deviation


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
        (32, 32, (0.9, 1.0), (3 / 4, 4 / 3)),  # most attempts do not fit
        (28, 64, (0.2, 1.0), (3 / 4, 4 / 3)),
        (20, 90, (0.5, 1.0), (3 / 4, 4 / 3)),  # none does, and the image is too wide
        (90, 20, (0.4, 1.0), (1 / 2, 1.0)),  # or too high
        (64, 64, (0.1, 0.5), (1.0, 1.0)),
        (40, 40, (1.0, 1.0), (1.2, 1.3)),  # none, and the image too narrow for the range
    ],
)
def test_crops_are_distributed_as_torchvisions(height: int, width: int, scale: Any, ratio: Any) -> None:
    count = 4000
    torch.manual_seed(1)
    crop = v2.RandomResizedCrop(32, scale, ratio)
    theirs = [crop.make_params([torch.empty(3, height, width)]) for _ in range(count)]
    ours = Augmentation(32, scale, ratio).parameters(draws_of(count), height, width)
    assert (ours.top >= 0).all()
    assert (ours.left >= 0).all()
    assert (ours.top + ours.height <= height).all()
    assert (ours.left + ours.width <= width).all()
    for name in ("top", "left", "height", "width"):
        assert agree(getattr(ours, name), [box[name] for box in theirs]), name
    assert agree(ours.height * ours.width, [box["height"] * box["width"] for box in theirs])
    assert agree(ours.width.double() / ours.height, [box["width"] / box["height"] for box in theirs])
    # Where it lies within what is free: apart from how large it is.
    free = height - ours.height
    if (free > 8).any():
        inner = [box["top"] / (height - box["height"]) for box in theirs if height - box["height"] > 8]
        assert agree((ours.top.double() / free)[free > 8], inner)


def test_colors_are_distributed_as_torchvisions() -> None:
    count = 4000
    torch.manual_seed(1)
    strengths = {"brightness": 0.4, "contrast": 0.8, "saturation": 1.5, "hue": 0.1}
    jitter = v2.ColorJitter(**strengths)
    theirs = [jitter.make_params([]) for _ in range(count)]
    ours = Augmentation(**strengths, jitter_probability=1.0).parameters(draws_of(count), 32, 32)
    for i, name in enumerate(("brightness", "contrast", "saturation")):
        assert agree(ours.factors[:, i], [values[f"{name}_factor"] for values in theirs]), name
    assert agree(ours.hue, [values["hue_factor"] for values in theirs])
    for orders in (ours.order.tolist(), [values["fn_idx"].tolist() for values in theirs]):
        counts = [orders.count(list(order)) for order in ORDERS]
        assert sum(counts) == count
        assert stats.chisquare(counts).pvalue > 1e-3


def test_a_strength_of_none_changes_nothing() -> None:
    still = Augmentation(brightness=0, contrast=0, saturation=0, hue=0).parameters(draws_of(500), 8, 8)
    assert (still.factors == 1).all()
    assert (still.hue == 0).all()


def test_rates_are_the_probabilities() -> None:
    count = 10_000
    given = Augmentation(flip=0.3, jitter_probability=0.7, grayscale=0.25, blur=0.6, solarize=0.1)
    p = given.parameters(draws_of(count), 32, 32)
    jittered = (p.factors != 1).any(1)
    assert torch.equal(jittered, p.hue != 0)  # all four, or none
    for expected, happened in ((0.3, p.flip), (0.7, jittered), (0.25, p.gray), (0.6, p.sigma > 0), (0.1, p.solarize)):
        assert rate_is(expected, happened)
    blur = v2.GaussianBlur(3, (0.1, 2.0))
    torch.manual_seed(1)
    assert agree(p.sigma[p.sigma > 0], [blur.make_params([])["sigma"][0] for _ in range(4000)])
    for probability in (0.0, 1.0):
        given = Augmentation(flip=probability, grayscale=probability, blur=probability, solarize=probability)
        p = given.parameters(draws_of(count), 32, 32)
        for happened in (p.flip, p.gray, p.sigma > 0, p.solarize):
            assert (happened == bool(probability)).all()


def test_every_parameter_has_a_draw_of_its_own() -> None:
    count = 20_000
    given = Augmentation(jitter_probability=1.0, blur=1.0, solarize=0.5, scale=(0.1, 0.3), grayscale=0.5)
    p = given.parameters(draws_of(count), 500, 500)
    columns = [
        *((p.height * p.width).sqrt(), (p.width / p.height).log(), p.top / (500 - p.height), p.left / (500 - p.width)),
        *(p.flip, *p.factors.T, p.hue, *p.order.T[:3], p.gray, p.sigma, p.solarize),
    ]
    table = torch.stack([column.double() for column in columns])
    correlation = torch.corrcoef(table) - torch.eye(len(table))
    correlation[9:12, 9:12] = 0  # what is first is not second
    assert correlation.abs().max() < 5 / count**0.5
    # Also whether there is jitter or blur has nothing to do with how much.
    given = Augmentation(jitter_probability=0.5, blur=0.5, grayscale=0.5, solarize=0.5)
    p = given.parameters(draws_of(count), 32, 32)
    table = torch.stack([p.hue != 0, p.gray, p.sigma > 0, p.solarize, p.flip]).double()
    assert (torch.corrcoef(table) - torch.eye(len(table))).abs().max() < 5 / count**0.5
    assert abs(float(p.factors[p.hue != 0].mean()) - 1) < 0.01
    assert abs(float(p.sigma[p.sigma > 0].mean()) - 1.05) < 0.03


# Pixels.


@pytest.mark.parametrize(("height", "width", "size"), [(40, 40, 32), (48, 36, 24), (16, 30, 32), (64, 64, 8)])
def test_crops_are_torchvisions(height: int, width: int, size: int) -> None:
    images = images_of(48, height=height, width=width)
    p = Augmentation(size).parameters(draws_of(48), height, width)
    boxes = {name: getattr(p, name) for name in ("top", "left", "height", "width", "flip")}
    boxes["height"][:4], boxes["width"][:4], boxes["top"][:4], boxes["left"][:4] = height, width, 0, 0
    boxes["height"][4:8] = boxes["width"][4:8] = 1
    given = unchanged(48, height, width, **boxes)
    made = Augmentation(size).apply(images, given)
    assert (made - one_by_one(images, given, size)).abs().max() < 2e-6
    for image, x, *box in zip(images, made, given.top, given.left, given.height, given.width, given.flip, strict=True):
        *box, flip = map(int, box)
        pil = F.resized_crop(Image.fromarray(image.permute(1, 2, 0).numpy()), *box, [size, size])
        pil = F.horizontal_flip(pil) if flip else pil
        assert (255 * x - F.pil_to_tensor(pil)).abs().mean() <= 1  # PIL rounds, twice


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.9, 1.4, 3.0])
@pytest.mark.parametrize("kind", range(3))
def test_colors_are_torchvisions(kind: int, factor: float) -> None:
    images = images_of(16, height=20, width=20)
    factors = torch.ones(3)
    factors[kind] = factor
    given = unchanged(16, 20, 20, factors=factors)
    assert (Augmentation(20).apply(images, given) - one_by_one(images, given, 20)).abs().max() < 3e-6


@pytest.mark.parametrize("shift", [-0.5, -0.31, -0.1, 0.03, 0.25, 0.5])
def test_hue_is_torchvisions(shift: float) -> None:
    # Every corner and edge of the color cube, where the cases of HSV meet.
    levels = torch.tensor([0, 1, 60, 128, 254, 255], dtype=torch.uint8)
    colors = torch.cartesian_prod(levels, levels, levels)[:196].T.reshape(3, 14, 14)
    images = torch.stack((colors, colors.flip(0), images_of(1, height=14, width=14)[0]))
    given = unchanged(3, 14, 14, hue=shift)
    assert (Augmentation(14).apply(images, given) - one_by_one(images, given, 14)).abs().max() < 1e-5


def test_colors_come_in_the_given_order() -> None:
    images = images_of(24, height=16, width=16)
    given = unchanged(24, 16, 16, factors=torch.tensor([1.5, 0.3, 2.0]), hue=0.2, order=torch.tensor(ORDERS))
    made = Augmentation(16).apply(images, given)
    assert (made - one_by_one(images, given, 16)).abs().max() < 1e-5
    other = Augmentation(16).apply(images, given._replace(order=given.order.flip(0)))
    assert ((made - other).abs().flatten(1).amax(1) > 0.01).sum() > 12


@pytest.mark.parametrize("size", [3, 8, 32, 64, 96])
def test_gray_blur_and_solarization_are_torchvisions(size: int) -> None:
    images = images_of(8, height=size, width=size)
    sigma = torch.linspace(0.1, 4, 8)
    for change in ({"gray": True}, {"sigma": sigma}, {"solarize": True}):
        given = unchanged(8, size, size, **change)
        made = Augmentation(size).apply(images, given)
        assert (made - one_by_one(images, given, size)).abs().max() < 5e-6
        assert (made - Augmentation(size).apply(images, unchanged(8, size, size))).abs().max() > 0.01
    some = unchanged(8, size, size, solarize=torch.arange(8) % 2 == 0)
    assert (Augmentation(size).apply(images, some) - one_by_one(images, some, size)).abs().max() < 5e-6


@pytest.mark.parametrize(("height", "width"), [(40, 40), (30, 50)])
def test_the_whole_is_torchvisions_one_after_the_other(height: int, width: int) -> None:
    images, draws = images_of(96, height=height, width=width), draws_of(96)
    expected = one_by_one(images, EVERYTHING.parameters(draws, height, width), 24)
    made = EVERYTHING(images, draws)
    # Where torchvision's rounding puts a pixel on the other side of ½ it is not inverted.
    assert ((made - expected).abs() < 1e-4).double().mean() > 0.9999


# Batches.


def test_no_two_samples_share_a_draw() -> None:
    images = images_of(5)[4:].repeat(200, 1, 1, 1)
    given = Augmentation(jitter_probability=1.0, blur=1.0)
    p = given.parameters(draws_of(200), 40, 40)
    for values in (*p.factors.T, p.hue, p.sigma):
        assert len(values.unique()) == 200
    assert len(torch.stack((p.top, p.left, p.height, p.width), 1).unique(dim=0)) > 195
    assert len(given(images, draws_of(200)).flatten(1).unique(dim=0)) == 200


def test_a_sample_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    images, draws = images_of(50), draws_of(50)
    whole = EVERYTHING(images, draws)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(EVERYTHING(images[order], draws[order]), whole[order], atol=1e-6)
    for rows in (slice(0, 50, 2), slice(1, 50, 2), slice(7, 8)):
        assert torch.allclose(EVERYTHING(images[rows], draws[rows]), whole[rows], atol=1e-6)
    one = 4 * (3 * (40 * 40 + 5 * 24 * 24) + 3 * 24 * 80)
    for most in (1, 3, 7):
        sizes: list[int] = []
        crop = augment._crop
        monkeypatch.setitem(augment.CHUNK_BYTES, "cpu", most * one)
        with monkeypatch.context() as patch:
            patch.setattr(
                augment, "_crop", lambda x, *args, crop=crop, sizes=sizes: (sizes.append(len(x)), crop(x, *args))[1]
            )
            assert torch.allclose(EVERYTHING(images, draws), whole, atol=1e-6)
        assert sum(sizes) == 50
        assert max(sizes) == most


def test_bytes_go_in_and_floats_come_out() -> None:
    images, draws = images_of(40), draws_of(40)
    before = images.clone()
    state = torch.get_rng_state()
    made = EVERYTHING(images, draws)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert made.shape == (40, 3, 24, 24)
    assert made.dtype == torch.float32
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= made.min() < 0.01
    assert 0.99 < made.max() <= 1
    assert torch.equal(EVERYTHING(images, draws), made)
    floats = (images.float() / 255).contiguous(memory_format=torch.channels_last)
    assert torch.allclose(EVERYTHING(floats, draws), made, atol=1e-4)
    assert EVERYTHING(images[:0], draws[:0]).shape == (0, 3, 24, 24)
    assert Augmentation()(images_of(4, height=12, width=20), draws[:4]).shape == (4, 3, 12, 12)


def test_precision_is_that_of_the_output_alone() -> None:
    images, draws = images_of(40), draws_of(40)
    made = EVERYTHING(images, draws)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        other = EVERYTHING(images, draws, dtype)
        assert other.dtype == dtype
        assert torch.equal(other, made.to(dtype))
        assert other.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(EVERYTHING(images, draws), made)
    for default in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(default)
        try:
            assert torch.equal(EVERYTHING(images, draws), made)
        finally:
            torch.set_default_dtype(torch.float32)


def test_one_channel_has_no_color() -> None:
    images, draws = images_of(40, channels=1), draws_of(40)
    p = EVERYTHING.parameters(draws, 40, 40)
    made = EVERYTHING.apply(images, p)
    assert made.shape == (40, 1, 24, 24)
    assert ((made - one_by_one(images, p, 24)).abs() < 1e-4).double().mean() > 0.9999
    colorless = p._replace(factors=p.factors * torch.tensor([1, 1, 5]), hue=p.hue + 0.1, gray=~p.gray)
    assert torch.allclose(EVERYTHING.apply(images, colorless), made, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size=0: expected at least 1, or null for the images' own"),
        ({"scale": (0.5, 0.2)}, "scale=(0.5, 0.2): expected 0 < low <= high <= 1"),
        ({"scale": (0.0, 1.0)}, "scale=(0.0, 1.0): expected 0 < low <= high <= 1"),
        ({"scale": (0.5, 1.2)}, "scale=(0.5, 1.2): expected 0 < low <= high <= 1"),
        ({"ratio": (2.0, 1.0)}, "ratio=(2.0, 1.0): expected 0 < low <= high"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma=(0.0, 1.0): expected 0 < low <= high"),
        ({"flip": 1.5}, "flip=1.5: expected a number in [0, 1]"),
        ({"jitter_probability": -0.1}, "jitter_probability=-0.1: expected a number in [0, 1]"),
        ({"grayscale": 2.0}, "grayscale=2.0: expected a number in [0, 1]"),
        ({"blur": 2.0}, "blur=2.0: expected a number in [0, 1]"),
        ({"solarize": float("nan")}, "solarize=nan: expected a number in [0, 1]"),
        ({"brightness": -0.4}, "brightness=-0.4: expected a number in [0, inf)"),
        ({"contrast": -0.4}, "contrast=-0.4: expected a number in [0, inf)"),
        ({"saturation": -0.4}, "saturation=-0.4: expected a number in [0, inf)"),
        ({"hue": 0.6}, "hue=0.6: expected a number in [0, 0.5]"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Augmentation(**options)
    assert str(caught.value) == message


def test_batches_of_another_form_are_refused() -> None:
    with pytest.raises(ValueError, match=r"draws of shape \(3, 33\): expected \(4, 33\)"):
        Augmentation()(images_of(4), draws_of(3))
    with pytest.raises(ValueError, match="images of 2 channels: expected 1 or 3"):
        Augmentation()(images_of(4, channels=2), draws_of(4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_makes_the_same_and_nothing_waits_for_it() -> None:
    images, draws = images_of(96), draws_of(96)
    expected = EVERYTHING(images, draws)
    there = images.cuda()
    EVERYTHING(there, draws)
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = EVERYTHING(there, draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ((made.cpu() - expected).abs() < 1e-4).double().mean() > 0.9999
