"""What techniques share: schedules, encoders, pictures from anywhere, and two ranks that make one batch."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from common.distributed import global_mean, world_size
from datamodules.parts.loader import TensorLoader
from lit_models.networks.batch_norm import GlobalBatchNorm2d
from lit_models.networks.encoders import Backbone, ConvEncoder, Rescale
from lit_models.parts.images import to_image_batch
from lit_models.parts.optim import WarmupCosine, configure_optimizers
from lit_models.scores.vqa import VQAScores

# Schedules.


def rates(schedule: WarmupCosine, steps: int) -> list[list[float]]:
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in schedule.optimizer.param_groups])
        schedule.optimizer.step()
        schedule.step()
    return seen


def sgd(*base: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in base])


@pytest.mark.parametrize(("warmup", "total"), [(0.1, 25), (0.0, 7), (0.5, 10), (0.01, 3)])
def test_warmup_cosine_is_its_formula(warmup: float, total: int) -> None:
    warm = math.ceil(warmup * total)
    for step, lrs in enumerate(rates(WarmupCosine(sgd(0.3, 2.0), warmup, total), total)):
        if step < warm:
            factor = (step + 1) / (warm + 1)
        else:
            factor = (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2
        assert lrs == pytest.approx([0.3 * factor, 2.0 * factor])


def test_warmup_cosine_by_hand() -> None:
    seen = [lr for (lr,) in rates(WarmupCosine(sgd(1.0), 0.25, 8), 10)]
    assert seen[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert seen[5] == pytest.approx(0.5)  # halfway between steps 2 and 8
    assert seen == [*seen[:3], *sorted(seen[3:], reverse=True)]
    assert seen[8:] == pytest.approx([0, 0])  # at its end and after it


def test_total_steps_that_were_said_are_kept() -> None:
    told, untold = WarmupCosine(sgd(1.0), 0.5, 4), WarmupCosine(sgd(1.0), 0.5)
    for schedule in (told, untold):
        schedule.set_total_steps(10)
    assert (told.total_steps, untold.total_steps) == (4, 10)
    assert rates(untold, 10) == rates(WarmupCosine(sgd(1.0), 0.5, 10), 10)  # also at step 0


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 10])
def test_warmup_is_a_share(warmup: float) -> None:
    with pytest.raises(ValueError, match=f"warmup={warmup}"):
        WarmupCosine(sgd(1.0), warmup)


class Watched(LightningModule):
    """Notes the learning rate of each optimizer step."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.fixed = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.scheduler = scheduler
        self.seen: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.seen.append(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return self.weight * 1

    def configure_optimizers(self) -> Any:
        return configure_optimizers(self, lambda params: torch.optim.SGD(params, lr=0.5), self.scheduler)


def train(module: Watched, tmp_path: Path, **options: Any) -> Watched:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )
    trainer.fit(module, TensorLoader((torch.zeros(12),), 2))
    return module


@pytest.mark.parametrize(
    ("options", "total"),
    [({"max_epochs": 2}, 12), ({"max_steps": 9}, 9), ({"max_epochs": 2, "accumulate_grad_batches": 3}, 4)],
)
def test_the_schedule_is_as_long_as_the_trainers_run(options: Any, total: int, tmp_path: Path) -> None:
    module = train(Watched(lambda optimizer: WarmupCosine(optimizer, 0.2)), tmp_path, **options)
    expected = [lr for (lr,) in rates(WarmupCosine(sgd(0.5), 0.2, total), total)]
    assert module.seen == pytest.approx(expected)


def test_other_schedules_go_by_epochs(tmp_path: Path) -> None:
    module = train(Watched(lambda optimizer: StepLR(optimizer, 1, 0.1)), tmp_path, max_epochs=2)
    assert module.seen == pytest.approx([0.5] * 6 + [0.05] * 6)
    assert train(Watched(None), tmp_path, max_epochs=1).seen == [0.5] * 6


def test_only_what_needs_a_gradient_is_optimized() -> None:
    made = Watched(None).configure_optimizers()["optimizer"]
    assert [len(group["params"]) for group in made.param_groups] == [1]
    plateau = Watched(lambda optimizer: ReduceLROnPlateau(optimizer)).configure_optimizers()
    assert plateau["lr_scheduler"]["monitor"] == "val/loss"


# One process.


def test_in_one_process_it_is_batch_norm() -> None:
    torch.manual_seed(0)
    ours, torchs = GlobalBatchNorm2d(3), nn.BatchNorm2d(3)
    for _ in range(3):
        x = torch.randn(4, 3, 5, 5)
        assert torch.equal(ours(x), torchs(x))
    for name, value in torchs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    x = torch.randn(1, 3, 2, 2)
    assert torch.equal(ours.eval()(x), torchs.eval()(x))
    assert isinstance(ours, nn.BatchNorm2d)  # which Lightning's sync_batchnorm looks for


def test_in_one_process_the_global_mean_is_the_mean() -> None:
    values = torch.randn(7, requires_grad=True)
    assert world_size() == 1
    assert float(global_mean(values.detach())) == pytest.approx(float(values.detach().mean()))
    global_mean(values).backward()
    torch.testing.assert_close(values.grad, torch.full((7,), 1 / 7))


# Two ranks.

SPLITS = {"equal": [[0, 2, 4, 6], [1, 3, 5, 7]], "unequal": [[0, 1, 2, 3, 4], [5, 6, 7]]}
"""which of eight samples each of two ranks has"""
NORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "cumulative": {"momentum": None},
    "plain": {"affine": False},
    "stateless": {"track_running_stats": False},
}
CONSTANTS = torch.tensor([0.3, 30.1, 100.3])[:, None, None]  # channels that are the same everywhere


def norm_input() -> tuple[Tensor, Tensor]:
    """Two steps of eight samples (2, 8, 3, 4, 4), and what the gradient is of."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 3, 4, 4, generator=generator) * torch.tensor([0.5, 1, 3])[:, None, None] + 1
    return x, torch.randn(2, 8, 3, 4, 4, generator=generator)


def normalize(norm: nn.BatchNorm2d, members: list[int]) -> dict[str, Tensor]:
    """Two training steps on the members: outputs, the input's and the parameters' gradients, the statistics."""
    with torch.no_grad():
        if norm.affine:
            norm.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.2, -0.3]))
    xs, directions = norm_input()
    result: dict[str, Tensor] = {}
    for step in range(2):
        x = xs[step][members].requires_grad_()
        y = norm(x)
        (y * directions[step][members]).sum().backward()
        assert x.grad is not None
        result |= {f"output {step}": y.detach(), f"input gradient {step}": x.grad}
    result |= {f"gradient of {name}": p.grad for name, p in norm.named_parameters() if p.grad is not None}
    return result | {name: buffer.clone() for name, buffer in norm.named_buffers()}


def weighted(weight: Tensor) -> Tensor:
    """A loss (8,) of each sample."""
    return (weight * torch.arange(1.0, 9.0) - 3).square() * torch.arange(8)


def score_input() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    fields = [torch.randint(high, (8,), generator=generator) for high in (3, 3, 2, 2, 3, 2)]
    return [*fields[:5], fields[5].bool()]


def be_a_rank(rank: int, folder: str) -> None:
    """One of two processes: everything that they compute together, saved."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    results: dict[str, Any] = {"world size": world_size()}
    for split, members in SPLITS.items():
        for name, options in NORMS.items():
            results[f"{name} {split}"] = normalize(GlobalBatchNorm2d(3, **options), members[rank])
        weight = torch.tensor(0.7, requires_grad=True)
        global_mean(weighted(weight)[members[rank]]).backward()
        results[f"global mean {split}"] = weight.grad
        scores = VQAScores(["a", "b"], 3)
        scores.update(*[field[members[rank]] for field in score_input()])
        results[f"scores {split}"] = scores.compute()
    norm = GlobalBatchNorm2d(3)
    results["constant"] = norm(CONSTANTS.expand(4, 3, 8, 8)).detach()
    results["half"] = GlobalBatchNorm2d(3)(norm_input()[0][0][SPLITS["equal"][rank]].bfloat16()).dtype
    norm = GlobalBatchNorm2d(3)
    norm(norm_input()[0][rank])
    results["evaluation"] = norm.eval()(norm_input()[0][0]).detach()
    results["statistics"] = norm.state_dict()
    loader = TensorLoader((torch.arange(10),), 2, shuffle=True)
    results["batches"] = [batch[0].tolist() for batch in loader]
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes computed."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(be_a_rank, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_on_two_ranks_is_that_of_the_whole_batch(name: str, split: str, ranks: list[dict[str, Any]]) -> None:
    assert [results["world size"] for results in ranks] == [2, 2]
    whole = normalize(nn.BatchNorm2d(3, **NORMS[name]), list(range(8)))
    parts = [results[f"{name} {split}"] for results in ranks]
    assert set(parts[0]) == set(parts[1]) == set(whole)
    for key, expected in whole.items():
        if key.startswith(("output", "input gradient")):
            for part, members in zip(parts, SPLITS[split], strict=True):
                torch.testing.assert_close(part[key], expected[members], rtol=1e-5, atol=1e-5)
        elif key.startswith("gradient of"):
            torch.testing.assert_close(parts[0][key] + parts[1][key], expected, rtol=1e-5, atol=2e-5)
        else:
            for part in parts:
                torch.testing.assert_close(part[key], expected, rtol=1e-5, atol=1e-5)


def test_a_channel_that_is_the_same_everywhere_becomes_zero_on_two_ranks(ranks: list[dict[str, Any]]) -> None:
    # Σx²/n - (Σx/n)² of 30.1 would be rounded to less than -eps, and its root be NaN.
    for results in ranks:
        torch.testing.assert_close(results["constant"], torch.zeros(4, 3, 8, 8), rtol=0, atol=1e-2)


def test_batch_norm_evaluates_by_its_statistics_and_keeps_the_type(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        assert results["half"] == torch.bfloat16
        norm = nn.BatchNorm2d(3)
        norm.load_state_dict(results["statistics"])
        expected = norm.eval()(norm_input()[0][0])
        assert torch.equal(results["evaluation"], expected.detach())


@pytest.mark.parametrize("split", SPLITS)
def test_averaged_gradients_of_the_global_mean_are_those_of_the_mean_over_all(
    split: str, ranks: list[dict[str, Any]]
) -> None:
    weight = torch.tensor(0.7, requires_grad=True)
    weighted(weight).mean().backward()
    average = sum(results[f"global mean {split}"] for results in ranks) / 2
    torch.testing.assert_close(average, weight.grad)


@pytest.mark.parametrize("split", SPLITS)
def test_scores_on_two_ranks_are_those_of_all_answers(split: str, ranks: list[dict[str, Any]]) -> None:
    whole = VQAScores(["a", "b"], 3)
    whole.update(*score_input())
    expected = {name: float(value) for name, value in whole.compute().items()}
    assert "harmonic_mean" in expected
    for results in ranks:
        found = {name: float(value) for name, value in results[f"scores {split}"].items()}
        assert found == pytest.approx(expected, nan_ok=True)


def test_real_ranks_share_each_global_batch(ranks: list[dict[str, Any]]) -> None:
    whole = [batch[0].tolist() for batch in TensorLoader((torch.arange(10),), 4, shuffle=True)]
    for rank, results in enumerate(ranks):
        assert results["batches"] == [batch[rank::2] for batch in whole]


# Encoders.


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
    assert not Rescale().state_dict()


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


# Pictures.


@pytest.fixture
def pixels() -> np.ndarray:
    """(4, 6, 3) uint8"""
    return np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)


def test_a_picture_becomes_one_image_of_floats(pixels: np.ndarray) -> None:
    expected = torch.tensor(pixels).movedim(2, 0)[None] / 255
    for image in (pixels, Image.fromarray(pixels), expected, expected[0], pixels / 255, expected[0].double()):
        made = to_image_batch(image, (3, 4, 6))
        assert made.dtype == torch.float32
        torch.testing.assert_close(made, expected)


def test_channels_are_repeated_averaged_and_laid_over_white(pixels: np.ndarray) -> None:
    gray = to_image_batch(pixels, (1, 4, 6))
    luminance = (pixels * np.array([0.299, 0.587, 0.114])).sum(2) / 255
    torch.testing.assert_close(gray[0, 0], torch.tensor(luminance).float())
    assert to_image_batch(pixels[:, :, 0], (3, 4, 6)).shape == (1, 3, 4, 6)
    assert torch.equal(to_image_batch(pixels[:, :, 0], (3, 4, 6))[0, 2], torch.tensor(pixels[:, :, 0]) / 255)
    alpha = np.full((4, 6, 1), 51, np.uint8)  # a fifth
    over_white = to_image_batch(np.concatenate([pixels, alpha], 2), (3, 4, 6))
    torch.testing.assert_close(over_white[0].movedim(0, 2), torch.tensor(pixels / 255 * 0.2 + 0.8).float())


def test_every_kind_of_pillow_image_is_read(pixels: np.ndarray) -> None:
    gray = Image.fromarray(pixels[:, :, 0])
    expected = to_image_batch(pixels[:, :, 0], (1, 4, 6))
    torch.testing.assert_close(to_image_batch(gray, (1, 4, 6)), expected)
    bits = np.asarray(gray.point(lambda v: 255 * (v > 127)))
    torch.testing.assert_close(
        to_image_batch(Image.fromarray(bits).convert("1"), (1, 4, 6))[0, 0] * 255, 1.0 * torch.tensor(bits)
    )
    half = Image.merge("LA", [gray, Image.new("L", gray.size, 0)])
    assert (to_image_batch(half, (1, 4, 6)) == 1).all()
    palette = Image.fromarray(pixels).quantize(4)
    palette.info["transparency"] = 0
    made = to_image_batch(palette, (3, 4, 6))[0].movedim(0, 2)
    assert (made[torch.tensor(np.array(palette)) == 0] == 1).all()
    for mode in ("RGBA", "CMYK", "YCbCr", "I", "F"):
        converted = Image.fromarray(pixels).convert(mode) if mode not in "IF" else gray.convert(mode)
        rgb = torch.tensor(np.array(converted.convert("RGB"))).movedim(2, 0)[None] / 255
        torch.testing.assert_close(to_image_batch(converted, (3, 4, 6)), rgb)


def test_sixteen_bit_pictures_are_not_saturated(pixels: np.ndarray) -> None:
    deep = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    torch.testing.assert_close(to_image_batch(deep, (1, 4, 6)), to_image_batch(pixels[:, :, 0], (1, 4, 6)))


def test_a_reversed_view_of_an_array_is_an_image(pixels: np.ndarray) -> None:
    for view in (pixels[..., ::-1], pixels[::-1]):
        assert torch.equal(to_image_batch(view, (3, 4, 6)), to_image_batch(view.copy(), (3, 4, 6)))


def test_resizing_antialiases() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::4] = 255
    made = to_image_batch(stripes, (1, 8, 8))
    assert made.shape == (1, 1, 8, 8)
    torch.testing.assert_close(made, torch.full_like(made, 0.25), rtol=0, atol=0.05)
    assert to_image_batch(stripes[:4, :5], (3, 16, 32)).shape == (1, 3, 16, 32)


def test_floats_a_hair_outside_of_the_range_are_clipped() -> None:
    made = to_image_batch(torch.tensor([[-1e-4, 1 + 1e-4]]), (1, 1, 2))
    assert made.flatten().tolist() == [0, 1]
    assert to_image_batch(np.array([[True, False]]), (1, 1, 2)).flatten().tolist() == [1, 0]


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        ("cat.png", TypeError, "image of type str"),
        ([[0.0, 1.0]], TypeError, "image of type list"),
        (np.full((2, 2), np.nan), ValueError, "nan"),
        (np.array([[0.0, np.nan], [0.0, 0.0]]), ValueError, "nan"),
        (np.full((2, 2), np.inf), ValueError, "inf"),
        (np.array([[-0.5, 0.5]]), ValueError, r"-0\.5\.\.0\.5"),
        (np.array([[0.0, 255.0]]), ValueError, r"0\.\.255"),
        (np.array([[-1, 5]]), ValueError, r"integers outside of 0\.\.255"),
        (np.array([[0, 256]]), ValueError, r"integers outside of 0\.\.255"),
        (np.zeros((3, 4, 4, 3)), ValueError, r"shape \(3, 4, 4, 3\): expected \(H, W\), \(H, W, C\)"),
        (np.zeros((3, 9, 9)), ValueError, r"shape \(3, 9, 9\)"),
        (torch.zeros(9, 9, 3), ValueError, r"shape \(9, 9, 3\): expected \(H, W\), \(C, H, W\)"),
        (torch.zeros(2, 3, 9, 9), ValueError, r"shape \(2, 3, 9, 9\)"),
        (torch.zeros(0, 9), ValueError, r"shape \(0, 9\)"),
        (torch.zeros(()), ValueError, r"shape \(\)"),
    ],
)
def test_what_is_not_an_image_is_said(image: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        to_image_batch(image, (3, 8, 8))
