"""Damage: operators and their adjoints, tasks, what is read from files, and the batch that is repeated."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio

from datamodules.degradations import (
    Deblur,
    Denoise,
    Downsample,
    Identity,
    Inpaint,
    Jpeg,
    Operator,
    SuperResolve,
    Task,
    estimated_noise,
    nearest_fill,
    psnr,
    task_asked_for,
)
from datamodules.parts.operators import Blur, folded, resampling_matrix
from datamodules.restoration import Repeated, Restoration, RestorationBatch, read_image
from tests.conftest import DATA

KERNELS = {
    "lanczos3": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
}


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def save(folder: Path, name: str, array: Any, mode: str | None = None) -> str:
    path = folder / name
    image = Image.fromarray(np.asarray(array))
    (image if mode is None else image.convert(mode)).save(path)
    return str(path)


def photograph(height: int = 24, width: int = 32) -> np.ndarray:
    return (255 * noise(height, width, 3)).byte().numpy()


# ---- operators -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operator",
    [Identity(), *(Downsample(24, 32, factor, kernel) for factor in (2, 4, 8) for kernel in ("lanczos3", "bicubic"))],
)
def test_adjoints_are_exact(operator: Operator) -> None:
    operator.double()  # type: ignore[attr-defined]
    x = noise(2, 3, 24, 32).double()
    measured = operator(x)
    y = torch.rand(measured.shape, dtype=torch.double)
    assert float((measured * y).sum()) == pytest.approx(float((x * operator.adjoint(y)).sum()), rel=1e-12)


@pytest.mark.parametrize("kernel", ["lanczos3", "bicubic"])
@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_downsampling_is_pillows(kernel: Any, factor: int) -> None:
    x = noise(1, 48, 72)
    expected = Image.fromarray(x[0].numpy()).resize((72 // factor, 48 // factor), KERNELS[kernel])
    found = Downsample(48, 72, factor, kernel)(x)[0]
    assert np.allclose(found.numpy(), np.asarray(expected), atol=1e-5)


def test_a_blur_is_a_convolution_and_its_adjoint_is_autograds(tmp_path: Path) -> None:
    kernel = noise(4, 3)
    blur = Blur(kernel)
    x = noise(2, 3, 9, 8).requires_grad_()
    y = noise(2, 3, 9, 8)
    (expected,) = torch.autograd.grad((blur(x) * y).sum(), x)
    torch.testing.assert_close(blur.adjoint(y), expected)
    assert torch.equal(folded(torch.ones(1, 1, 1, 7), 2, 3), torch.tensor([[[[3.0, 1, 3]]]]))
    point = torch.zeros(1, 1, 9, 9)
    point[..., 4, 4] = 1
    torch.testing.assert_close(blur(point)[0, 0, 2:6, 3:6], kernel / kernel.sum(), msg="a point becomes the kernel")
    torch.testing.assert_close(blur(torch.ones(1, 1, 9, 9)), torch.ones(1, 1, 9, 9))


def test_a_constant_image_stays_constant() -> None:
    for kernel in ("lanczos3", "lanczos2", "bicubic"):
        assert torch.allclose(resampling_matrix(32, 4, kernel).sum(1), torch.ones(8))  # type: ignore[arg-type]


def test_the_model_is_held_against_the_operator_that_made_the_data() -> None:
    truth = noise(3, 32, 32) * 0.5 + 0.25
    task = SuperResolve(4)
    degraded, _ = task.damage(truth, torch.Generator())
    assert torch.equal(task.operator(truth.shape)(truth), degraded)


# ---- tasks ---------------------------------------------------------------------------------------------------------


def test_noise_has_the_deviation_that_was_asked_for_and_is_clipped() -> None:
    gray = torch.full((3, 128, 128), 0.5)
    noisy, mask = Denoise(25).damage(gray, torch.Generator().manual_seed(0))
    assert float((noisy - gray).std()) == pytest.approx(25 / 255, rel=0.02)
    assert mask.shape == (1, 1, 1)
    dark, _ = Denoise(50).damage(torch.zeros(3, 32, 32), torch.Generator().manual_seed(0))
    assert float(dark.min()) == 0


def test_poisson_noise_grows_with_brightness() -> None:
    generator = torch.Generator().manual_seed(0)
    task = Denoise(poisson_peak=100)
    for level in (0.04, 0.5):
        flat = torch.full((1, 200, 200), level)
        noisy, mask = task.damage(flat, generator)
        assert float(noisy.mean()) == pytest.approx(level, rel=0.02)
        assert float(noisy.std()) == pytest.approx(math.sqrt(level / 100), rel=0.03)
        assert float(task.noise_level(noisy[None], mask[None])) == pytest.approx(math.sqrt(level / 100), rel=0.02)


def test_an_unknown_noise_is_estimated() -> None:
    steps = torch.linspace(0.2, 0.8, 128).expand(1, 3, 128, 128)
    for sigma in (5, 25):
        noisy = steps + sigma / 255 * torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
        level = Denoise(sigma=None).noise_level(noisy, torch.ones(1, 1, 1, 1))
        assert float(level) == pytest.approx(sigma / 255, rel=0.05)
    everywhere = torch.ones(1, 1, 1, 1)
    assert float(estimated_noise(steps, everywhere)) == pytest.approx(0, abs=1e-3)
    assert estimated_noise(steps[..., :1], everywhere).isnan(), "of one column there is no coefficient"


def test_noise_is_estimated_where_pixels_are_known() -> None:
    truth = torch.linspace(0.2, 0.8, 128).expand(3, 128, 128)
    task = Inpaint(missing=0.5, sigma=20)
    degraded, mask = (tensor[None] for tensor in task.damage(truth, torch.Generator().manual_seed(0)))
    assert float(estimated_noise(degraded, mask)) == pytest.approx(20 / 255, rel=0.1)
    task.sigma = None
    assert float(task.noise_level(degraded, mask)) == pytest.approx(20 / 255, rel=0.1)
    assert float(task.noise_level(degraded, torch.zeros_like(mask))) == 0


def test_clipped_noise_is_less_than_what_was_added() -> None:
    everywhere = torch.ones(1, 1, 1, 1)
    dark = torch.zeros(3, 128, 128)
    for sigma in (25, 50):
        task = Denoise(sigma)
        noisy, _ = task.damage(dark, torch.Generator().manual_seed(0))
        assert float(task.noise_level(noisy[None], everywhere)) < 0.8 * sigma / 255
        rough = noise(1, 3, 128, 128)  # whose own detail is no noise
        assert float(task.noise_level(rough, everywhere)) == pytest.approx(sigma / 255)


def test_inpainting_keeps_what_is_known(tmp_path: Path) -> None:
    truth = noise(3, 40, 40)
    for task in (Inpaint(missing=0.5), Inpaint(text="prior")):
        degraded, mask = task.damage(truth, torch.Generator().manual_seed(0))
        assert mask.shape == (1, 40, 40)
        assert set(mask.unique().tolist()) == {0, 1}
        assert torch.equal(degraded, truth * mask), "all channels of a pixel are missing, or none"
    assert float(Inpaint(missing=0.9).mask((3, 99, 99), torch.Generator(), False).mean()) == pytest.approx(
        0.1, abs=0.01
    )

    known = np.zeros((40, 40), np.uint8)
    known[:10] = 255
    task = Inpaint(mask=save(tmp_path, "mask.png", known))
    _, mask = task.damage(truth, torch.Generator())
    assert mask[0, :10].all()
    assert not mask[0, 10:].any()


def test_what_is_known_without_noise_is_put_back(tmp_path: Path) -> None:
    restored, measured = noise(1, 3, 8, 8), noise(1, 3, 8, 8) / 2
    mask = (noise(1, 1, 8, 8) > 0.5).float()
    found = Inpaint(missing=0.5).put_back(restored, measured, mask)
    assert torch.equal(found * mask, measured * mask)
    assert torch.equal(found * (1 - mask), restored * (1 - mask))
    assert torch.equal(Inpaint(missing=0.5, sigma=5).put_back(restored, measured, mask), restored)
    assert torch.equal(Denoise(0).put_back(restored, measured, torch.ones(1, 1, 1, 1)), restored)


def test_masks_of_any_kind_and_what_is_said_of_them(tmp_path: Path) -> None:
    unknown = np.zeros((16, 16), np.uint8)
    unknown[:3] = 1
    file = save(tmp_path, "mask.png", unknown)
    upside = Inpaint(mask=file)
    assert upside.mask((3, 16, 16), torch.Generator(), True).mean() == 3 / 16, "numbers 0 and 1"
    line = upside.remark(upside.mask((3, 16, 16), torch.Generator(), True))
    assert line.startswith(f"mask={file}: 81.2 % of the pixels are unknown; if black and white are the other way round")
    assert line.endswith("invert_mask=true")
    task = Inpaint(mask=file, invert_mask=True)
    known = task.mask((3, 16, 16), torch.Generator(), True)
    assert not known[0, :3].any()
    assert known[0, 3:].all()
    assert task.remark(known) == f"mask={file}: 18.8 % of the pixels are unknown"
    with pytest.raises(ValueError, match=r"white\.png: all white"):
        Restoration("china", Inpaint(mask=save(tmp_path, "white.png", np.full((16, 16), 255, np.uint8))), size=16)


def test_jpeg_is_the_damage_of_a_file(tmp_path: Path) -> None:
    truth = torch.from_numpy(photograph(16, 16)).movedim(-1, 0) / 255
    task = Jpeg(quality=30)
    degraded, _ = task.damage(truth, torch.Generator())
    Image.fromarray(photograph(16, 16)).save(tmp_path / "a.jpg", quality=30)
    assert torch.equal(degraded, Restoration(str(tmp_path / "a.jpg"), task, degraded=True).source.degraded[0])
    assert task.sigma is None


def test_a_task_by_its_name_or_by_what_is_given() -> None:
    assert task_asked_for(None) == (Denoise, {"sigma": None})
    assert task_asked_for(None, sigma=25, mask=None) == (Denoise, {"sigma": 25})
    assert task_asked_for(None, factor=4) == (SuperResolve, {"factor": 4})
    assert task_asked_for(None, mask="m.png") == (Inpaint, {"mask": "m.png"})
    assert task_asked_for("deblur", kernel="k.png") == (Deblur, {"kernel": "k.png"})
    assert task_asked_for(Jpeg) == (Jpeg, {})
    for task, options, message in (
        ("denoize", {}, "task=denoize: expected denoise, .*; did you mean 'denoise'"),
        ("denoise", {"mask": "m.png"}, "mask=m.png: Denoise has no such option; expected sigma, poisson_peak"),
        (None, {"mask": "m.png", "factor": 4}, "factor=4: Inpaint has no such option"),
        ("inpaint", {}, "Inpaint without mask: expected mask=FILE"),
    ):
        with pytest.raises(ValueError, match=message):
            task_asked_for(task, **options)  # type: ignore[arg-type]


def test_trivial_restorations() -> None:
    image = noise(1, 3, 16, 16)
    everywhere = torch.ones(1, 1, 1, 1)
    assert torch.equal(Denoise(25).trivial(image, everywhere), image)
    assert SuperResolve(4).trivial(image, everywhere).shape == (1, 3, 64, 64)
    mask = torch.ones(1, 1, 16, 16)
    mask[:, :, 4, 5:] = 0
    filled = nearest_fill(image * mask, mask)
    assert torch.equal(filled[0, :, 5], image[0, :, 5])
    assert torch.equal(filled[0, :, 4, 4], image[0, :, 4, 4])
    hole = filled[0, :, 4, 8]
    assert torch.equal(hole, image[0, :, 3, 8]) or torch.equal(hole, image[0, :, 5, 8]), "its nearest neighbors"


class Shift(nn.Module):
    """Somebody's own operator: the mean of a pixel and the one at its right."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4, "several images, also when the data are made"
        return (x + x.roll(-1, -1)) / 2

    def adjoint(self, y: Tensor) -> Tensor:
        return (y + y.roll(1, -1)) / 2


class Shifted(Task):
    def operator(self, shape: Any) -> Operator:
        return Shift()


def test_a_task_of_ones_own() -> None:
    data = Restoration("flower", Shifted(sigma=2.0), size=32)
    batch = next(iter(data.train_dataloader()))
    assert float((batch.degraded - Shift()(batch.truth)).std()) == pytest.approx(2 / 255, rel=0.1)


# ---- what is measured ----------------------------------------------------------------------------------------------


def test_psnr_is_torchmetrics() -> None:
    a, b = noise(2, 3, 20, 20), noise(2, 3, 20, 20).flip(0)
    expected = [float(peak_signal_noise_ratio(x, y, data_range=1.0)) for x, y in zip(a, b, strict=True)]
    assert psnr(a, b).tolist() == pytest.approx(expected)


def test_the_protocol_of_super_resolution() -> None:
    """Only the brightness, as MATLAB's rgb2ycbcr scales it, and not the four pixels at each side."""
    a = noise(1, 3, 20, 20)
    inside = a.clone()
    inside[..., 4:-4, 4:-4] += 0.1
    expected = -20 * math.log10(0.1 * (65.481 + 128.553 + 24.966) / 255)
    assert float(psnr(inside, a, luma=True, border=4)) == pytest.approx(expected, abs=1e-3)
    outside = a.clone()
    outside[..., :4, :] += 0.3
    assert float(psnr(outside, a, luma=True, border=4)) > 100
    assert SuperResolve.luma
    assert SuperResolve.border == 4
    assert not Denoise.luma


def test_what_is_trivial_is_bicubic_as_in_the_papers() -> None:
    small = torch.rand(1, 1, 12, 9, generator=torch.Generator().manual_seed(0))
    theirs = Image.fromarray(small[0, 0].numpy()).resize((36, 48), Image.Resampling.BICUBIC)
    found = SuperResolve(4).trivial(small, torch.ones(1, 1, 1, 1))
    assert torch.allclose(found[0, 0, :, :36], torch.from_numpy(np.array(theirs)).clamp(0, 1), atol=1e-6)


@pytest.mark.skipif(not (DATA / "restoration").is_dir(), reason="needs the papers' images")
def test_the_papers_noisy_and_bicubic_figures() -> None:
    data = Restoration(str(DATA / "restoration" / "F16_GT.png"), Denoise(25))
    batch = data.source
    assert float(psnr(batch.degraded, batch.truth)) == pytest.approx(20.37, abs=0.2)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_images_of_many_kinds(tmp_path: Path) -> None:
    color = photograph()
    gray = color[..., 0]
    assert Restoration(save(tmp_path, "rgb.png", color)).image_shape == [3, 24, 32]
    assert Restoration(save(tmp_path, "gray.png", gray)).image_shape == [1, 24, 32]
    truth = torch.from_numpy(gray)[None] / 255
    assert torch.allclose(Restoration(str(tmp_path / "gray.png")).source.truth[0], truth)

    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    assert torch.allclose(Restoration(str(tmp_path / "sixteen.png")).source.truth[0], truth)

    half = np.dstack([color, np.where(np.arange(32) < 16, 255, 0)[None].repeat(24, 0)]).astype(np.uint8)
    read = Restoration(save(tmp_path, "rgba.png", half)).source.truth[0]
    assert torch.allclose(read[:, :, :16], torch.from_numpy(color[:, :16]).movedim(-1, 0) / 255)
    assert (read[:, :, 16:] == 1).all(), "what is transparent lies over white"


def test_embedded_photographs_and_sizes() -> None:
    for name in ("china", "flower", "grace_hopper"):
        data = Restoration(name, size=40)
        assert data.image_shape == [3, 40, 40]
        assert data.names == [name]
    assert Restoration("china", SuperResolve(8)).image_shape == [3, 424, 640], "sides that 8 divides"
    assert Restoration("china", multiple_of=32).image_shape == [3, 416, 640]


def test_several_images_and_folders(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path, f"{i}.png", photograph())
    data = Restoration(str(tmp_path))
    assert data.names == ["0", "1", "2"]
    assert data.num_images == data.batch_size == 3
    assert not torch.equal(data.source.degraded[0], data.source.degraded[1]), "each has noise of its own"


def test_an_image_that_is_degraded_already_has_no_truth(tmp_path: Path) -> None:
    path = save(tmp_path, "small.png", photograph())
    data = Restoration(path, SuperResolve(4), degraded=True)
    assert data.image_shape == [3, 96, 128]
    assert data.source.degraded.shape == (1, 3, 24, 32)
    assert data.source.truth.shape == (1, 0, 96, 128)
    assert torch.allclose(data.source.degraded[0], torch.from_numpy(photograph()).movedim(-1, 0) / 255)


def test_all_bits_are_measured(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8), np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    measured = Restoration(str(tmp_path / "deep.png"), degraded=True).source.degraded
    assert torch.equal((measured[0, 0] * 65535).round(), torch.from_numpy(deep.astype(np.float32)))


def test_pictures_of_any_kind_are_taken(tmp_path: Path) -> None:
    color = photograph()
    path = Path(save(tmp_path, "a.png", color))
    kinds = [path, Image.fromarray(color), color, torch.from_numpy(color).movedim(-1, 0)]
    expected = Restoration(str(path), degraded=True).source.degraded
    for kind in (*kinds, kinds[3][None] / 255):
        assert torch.equal(Restoration(kind, degraded=True).source.degraded, expected)
    assert Restoration(kinds, degraded=True).num_images == 4


def test_a_region_is_a_part_of_the_image_and_of_its_mask(tmp_path: Path) -> None:
    known = np.full((24, 32), 255, np.uint8)
    known[10, 12] = 0
    mask, image = save(tmp_path, "mask.png", known), save(tmp_path, "a.png", photograph())
    data = Restoration(image, Inpaint(mask=mask), degraded=True, region=[8, 6, 16, 12])
    assert data.image_shape == [3, 12, 16]
    whole = Restoration(image, Inpaint(mask=mask), degraded=True).source
    assert torch.equal(data.source.degraded, whole.degraded[..., 6:18, 8:24])
    assert (data.source.mask == 0).nonzero().tolist() == [[0, 0, 4, 4]]
    assert Restoration(image, SuperResolve(2), degraded=True, region=[0, 0, 8, 4]).image_shape == [3, 8, 16]
    for region, message in (([0, 0, 33, 4], "within 32×24"), ([1, 2], r"region=\[1, 2\]: expected left, top")):
        with pytest.raises(ValueError, match=message):
            Restoration(image, degraded=True, region=region)
    with pytest.raises(ValueError, match="with degraded=false"):
        Restoration(image, region=[0, 0, 4, 4])


def test_a_folder_is_not_poisoned_by_its_own_results(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "a_restored", "a_restored-2", "a_restored_2", "b_restored"):
        save(tmp_path, f"{name}.png", photograph())
    with caplog.at_level("INFO"):
        assert Restoration(str(tmp_path), degraded=True).names == ["a", "b_restored"], "of which there is no b"
    assert "3 restored images are left out, such as a_restored" in caplog.text
    assert Restoration(str(tmp_path / "a_restored.png"), degraded=True).names == ["a_restored"], "asked for"


def test_what_becomes_of_ones_own_file_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path, "scan.png", photograph())
    with caplog.at_level("INFO"):
        Restoration(path, degraded=True)
        Restoration("china", size=16)
        assert not caplog.records
        Restoration(path, size=16)
    said = [record.getMessage() for record in caplog.records]
    assert "the middle of its 32×24 becomes 16×16; size=null keeps it" in said[0]
    assert "counts as undamaged, and Denoise damages it; degraded=true" in said[1]


def test_the_digest_is_of_what_was_measured(tmp_path: Path) -> None:
    path = save(tmp_path, "a.png", photograph())
    first = Restoration(path, degraded=True).digest()
    assert Restoration(save(tmp_path, "b.png", photograph()), degraded=True).digest() == first
    assert Restoration(path, degraded=True, region=[0, 0, 32, 23]).digest() != first


def gif(folder: Path) -> str:
    frames = [Image.fromarray(photograph()) for _ in range(3)]
    frames[1].putpixel((0, 0), (1, 2, 3))
    frames[0].save(folder / "moves.gif", save_all=True, append_images=frames[1:])
    return str(folder / "moves.gif")


def nan_pixels(folder: Path) -> str:
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(folder / "nan.tiff")
    return str(folder / "nan.tiff")


def text_file(folder: Path) -> str:
    (folder / "no.png").write_text("no image")
    return str(folder / "no.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (gif, r"moves\.gif: [23] frames, expected a still image"),
        (nan_pixels, r"nan\.tiff: cannot be decoded: image with values in nan"),
        (text_file, r"no\.png: cannot be decoded: not an image in JPEG"),
        (lambda folder: str(folder / "chinas.png"), r"chinas\.png: no such file or folder"),
        (lambda folder: "chin", "image=chin: no such file or folder; did you mean 'china'"),
        (str, "no image in this folder"),
        (lambda folder: [], "expected at least one"),
        (lambda folder: torch.full((1, 3, 8, 8), torch.nan), "values in nan"),
        (lambda folder: torch.zeros(7, 8, 8), r"image of shape \(7, 8, 8\): expected"),
    ],
)
def test_unsuitable_images_are_one_clear_line(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        Restoration(make(tmp_path))
    assert "\n" not in str(error.value)


def test_images_of_several_sizes_need_one(tmp_path: Path) -> None:
    paths = [save(tmp_path, "a.png", photograph()), save(tmp_path, "b.png", photograph(30, 30))]
    with pytest.raises(ValueError, match=r"several sizes.*a \(3, 24, 32\), b \(3, 30, 30\)"):
        Restoration(paths)
    assert Restoration(paths, size=16).num_images == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Denoise(-1), "sigma=-1"),
        (lambda: Denoise(poisson_peak=0), "poisson_peak=0"),
        (lambda: SuperResolve(9), "factor=9: expected 2, 3, 4, 5, 6, 7 or 8"),
        (lambda: SuperResolve(1), "factor=1"),
        (lambda: SuperResolve(2, "box"), "kernel='box'"),  # type: ignore[arg-type]
        (lambda: Inpaint(), "nothing is missing: expected one of missing, mask and text"),
        (lambda: Inpaint(missing=0.5, text="a"), "missing=0.5, text=a: expected one of"),
        (lambda: Inpaint(missing=1.0), "missing=1.0"),
        (lambda: Inpaint(text=" "), "text=' '"),
        (lambda: Inpaint(mask="nowhere.png"), "mask=nowhere.png: no such file"),
        (lambda: Inpaint(missing=0.5, invert_mask=True), "invert_mask=true with missing=0.5"),
        (lambda: Deblur("nowhere.png"), "kernel=nowhere.png: no such file"),
        (lambda: Jpeg(0), "quality=0"),
        (lambda: Restoration("china", Denoise(None), size=16), "sigma=null"),
        (lambda: Restoration("china", Inpaint(missing=0.5), degraded=True, size=16), "expected mask=FILE"),
        (lambda: Restoration("china", size=0), "size=0"),
        (lambda: Restoration("china", size=16, copies=0), "copies=0: expected at least 1"),
        (lambda: Restoration("china", iterations_per_epoch=0), "iterations_per_epoch=0"),
        (lambda: Restoration("china", SuperResolve(8), size=4), "china: 4×4 pixels, expected at least 8×8"),
    ],
)
def test_arguments_out_of_range(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make()


def test_a_mask_is_found_below_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = np.full((16, 16), 255, np.uint8)
    known[3, 4] = 0
    (tmp_path / "data").mkdir()
    save(tmp_path / "data", "mask.png", known)
    monkeypatch.setenv("LIT_DATA", str(tmp_path / "data"))
    mask = Restoration("china", Inpaint(mask="mask.png"), size=16).source.mask
    assert mask.sum() == 255
    assert mask[0, 0, 3, 4] == 0


def test_masks_that_leave_nothing_of_an_image(tmp_path: Path) -> None:
    task = Inpaint(missing=0.999)
    with pytest.raises(ValueError, match="china: no pixel is known, expected a mask that leaves some"):
        Restoration("china", task, size=2)


def test_unsuitable_masks(tmp_path: Path) -> None:
    small = save(tmp_path, "small.png", np.full((8, 9), 255, np.uint8))
    with pytest.raises(ValueError, match=r"small\.png: 9×8 pixels, expected the image's 16×16"):
        Restoration("china", Inpaint(mask=small), size=16)
    black = save(tmp_path, "black.png", np.zeros((16, 16), np.uint8))
    with pytest.raises(ValueError, match=r"black\.png: all black"):
        Restoration("china", Inpaint(mask=black), size=16)


# ---- the batch -----------------------------------------------------------------------------------------------------


def test_an_epoch_repeats_one_batch_without_copying_it() -> None:
    data = Restoration("china", size=16, iterations_per_epoch=7)
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 7
    assert all(batch.degraded.data_ptr() == data.source.degraded.data_ptr() for batch in batches)
    moved = [data.transfer_batch_to_device(batch, torch.device("cpu"), 0) for batch in batches]
    assert all(a is moved[0] for a in moved)
    assert len(list(data.val_dataloader())) == 1


def test_a_resumed_epoch_goes_on_where_it_was() -> None:
    loader = Restoration("china", size=16, iterations_per_epoch=5).train_dataloader()
    loader.load_state_dict({"position": 3})
    assert len(list(loader)) == 2
    assert len(list(loader)) == 5


def test_the_damage_is_the_same_in_every_run_and_another_for_another_seed() -> None:
    torch.manual_seed(1)
    a = Restoration("china", size=16).source.degraded
    torch.manual_seed(2)
    assert torch.equal(Restoration("china", size=16).source.degraded, a)
    assert not torch.equal(Restoration("china", size=16, damage_seed=1).source.degraded, a)


def test_ranks_share_the_images_or_are_refused(be_rank: Callable[[int, int], None]) -> None:
    data = Restoration(["china", "flower"], size=16, batch_size=1)
    with pytest.raises(ValueError, match="batch_size=1 on 1 ranks: expected 2"):
        data.train_dataloader()
    names = []
    for rank in range(2):
        be_rank(rank, 2)
        batch: RestorationBatch = next(iter(data.train_dataloader()))
        assert len(batch.degraded) == 1
        names.append(next(i for i in range(2) if torch.equal(batch.truth[0], data.source.truth[i])))
    assert names == [0, 1]
    be_rank(0, 3)
    with pytest.raises(ValueError, match="on 3 ranks: expected at most 2 ranks"):
        data.train_dataloader()


def test_copies_are_of_one_measured_image(be_rank: Callable[[int, int], None]) -> None:
    for task in (Denoise(25), Inpaint(missing=0.5)):
        data, plain = (Restoration(["china", "flower"], task, size=16, copies=copies) for copies in (3, 1))
        assert (data.num_images, data.copies, data.batch_size) == (2, 3, 6)
        assert data.names == plain.names
        for copied, single in zip(data.source, plain.source, strict=True):
            assert torch.equal(copied, single[[0, 0, 0, 1, 1, 1]]), "their noise and their missing pixels are the same"
    message = r"expected 6, since each of the 6 images \(copies=3 of each\) has its own network on one rank"
    with pytest.raises(ValueError, match=message):
        Restoration(["china", "flower"], size=16, copies=3, batch_size=2).train_dataloader()
    be_rank(1, 2)
    data = Restoration("china", size=16, copies=2, batch_size=1)
    assert len(next(iter(data.train_dataloader())).degraded) == 1, "a rank may have a copy of an image"


def test_the_data_have_a_fingerprint() -> None:
    a, b = (Restoration("china", size=16, damage_seed=seed).train_dataloader() for seed in (0, 1))
    assert isinstance(a, Repeated)
    assert a.fingerprint() != b.fingerprint()


def test_read_image_names_the_file() -> None:
    with pytest.raises(ValueError, match="it: cannot be decoded: not an image"):
        read_image(b"nothing", "it")
