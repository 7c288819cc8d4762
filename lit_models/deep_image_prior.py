"""The deep image prior: a network that has never seen another image restores this one.

Ulyanov, Vedaldi & Lempitsky, "Deep Image Prior" (2018). Restoring an image x from measurements y, which an operator A
and noise have made from it, means finding a likely image that explains y:

    x* = argmin_x  E(x; y) + R(x)        E(x; y) = mean of m ⊙ (A x − y)² over the measurements, m the known ones

Instead of a prior R, such as the total variation, the image is the output of a randomly initialized network f for a
fixed random input z, and the search is over the network's weights:

    θ* = argmin_θ  E(f_θ(z); y)        x* = f_θ*(z)

Natural content is easier to encode than noise, which has to be memorized, so the network learns the undamaged part
first. If fitted for too long it also learns the damage, so it is stopped before that. The stop is found without a
ground truth, from the variance of the last outputs (after Wang et al. 2021:
:class:`~lit_models.scores.moving_variance.MovingVariance`).

The total variation is the prior to beat: its solution under the same operator is computed in the same run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from common.checks import at_least, more_than, one_of
from common.distributed import gather_rows, rows_of_this_rank, world_size
from common.files import data_root, existing
from common.pictures import are_several
from common.progress import Meter
from common.randomness import keyed_generator, normal_of_samples
from common.trainer import datamodule_of
from datamodules.degradations import TASK_OPTIONS, Task, compared, made_task, psnr
from datamodules.restoration import Restoration, open_images
from lit_models.networks.skip_network import SkipNetwork, Upsample
from lit_models.parts.optim import configure_optimizers
from lit_models.parts.precision import full_precision
from lit_models.parts.restoring import Fitted, Plan, Region, Watch, carry_out, ending, plan_for, quiet_lightning, save
from lit_models.parts.total_variation import total_variation, tv_restore_noisy
from lit_models.scores.moving_variance import MovingVariance, from_windowed

if TYPE_CHECKING:
    from datamodules.restoration import RestorationBatch

TRACE = ("misfit", "variance", "psnr_raw_db", "psnr_average_db")
"""what is recorded in every iteration, for the curves"""
FRAMES = (10, 30, 100, 300, 1000, 3000)
"""iterations whose outputs are kept for the figures"""


def misfit(measured: Tensor, degraded: Tensor, mask: Tensor) -> Tensor:
    """E (B,): the sum of squared errors at the known measurements, divided by the number of all measurements."""
    return (mask * (measured - degraded)).square().flatten(1).mean(1)


def random_input(count: int, channels: int, size: Sequence[int], seed: int) -> Tensor:
    """z (N, channels, H, W) ~ U(0, 0.1), a function of the seed."""
    return 0.1 * torch.rand(count, channels, *size, generator=keyed_generator(seed, "input"))


def mesh_grid(count: int, size: Sequence[int]) -> Tensor:
    """z (N, 2, H, W): the coordinates of each pixel in 0..1, from left to right and from top to bottom."""
    down, right = (torch.linspace(0, 1, side) for side in size)
    rows, columns = torch.meshgrid(down, right, indexing="ij")
    return torch.stack([columns, rows]).expand(count, -1, -1, -1).clone()


Input = Literal["noise", "meshgrid"]


class DeepImagePrior(LightningModule):
    """A network prior for each of N images; they are fitted side by side, independently of each other.

    With K ``copies`` each image has K networks with separate weights and inputs; the restored image is the mean of
    their outputs. The paper's best denoising result uses two.

    Args:
        image_shape: (C, H, W) of a restored image.
        num_images: N.
        copies: K. Network n · K + k is the k-th of image n.
        down, up, skip, kernel_down, kernel_up, upsample, pointwise_up: of
            :class:`~lit_models.networks.skip_network.SkipNetwork`.
        input: z: ``noise``, or a ``meshgrid`` of the pixel coordinates.
        input_channels: of the noise.
        input_noise: deviation of the noise added to z in each iteration.
        averaging: weight of the past in the running average of outputs, and in their variance; 0 means the newest
            output.
        patience: of the stop; ``null`` continues to the Trainer's end.
        backtrack_db: if the fit has become worse by this much since the last epoch, the weights and the optimizer are
            reset to that epoch's; ``null`` never resets them.
        tv_weight: weight of the output's total variation, in addition to the network prior.
        optimizer: callable, as Lightning's CLI makes it.

    Raises:
        ValueError: an argument is out of range; an image is too small for the number of levels; accumulated gradients.
    """

    not_transferred: ClassVar = ("frames",)
    """buffers that a run which starts from another's weights leaves out; the stop says the same of all of its own"""

    z: Tensor
    frames: Tensor

    def __init__(
        self,
        image_shape: Sequence[int],
        num_images: int = 1,
        copies: int = 1,
        down: Sequence[int] = (128,) * 5,
        up: Sequence[int] = (128,) * 5,
        skip: Sequence[int] = (4,) * 5,
        kernel_down: int = 3,
        kernel_up: int = 3,
        upsample: Upsample = "bilinear",
        pointwise_up: bool = True,
        input: Input = "noise",
        input_channels: int = 32,
        input_noise: float = 1 / 30,
        averaging: float = 0.99,
        patience: int | None = 1000,
        backtrack_db: float | None = 5.0,
        tv_weight: float = 0.0,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=0.01),
    ) -> None:
        super().__init__()
        one_of(Input, input=input)
        at_least(1, num_images=num_images, copies=copies, input_channels=input_channels)
        at_least(0, input_noise=input_noise, tv_weight=tv_weight)
        more_than(0, "or null to never go back", backtrack_db=backtrack_db)
        self.save_hyperparameters(ignore=["optimizer"], logger=False)
        self.image_shape, self.num_images, self.copies = list(image_shape), num_images, copies
        self.num_networks = num_images * copies
        self.input_noise, self.tv_weight = input_noise, tv_weight
        self.backtrack_db, self.optimizer = backtrack_db, optimizer
        self.seed = torch.initial_seed()  # of seed_everything

        channels, *size = self.image_shape
        z_channels = 2 if input == "meshgrid" else input_channels
        levels = (down, up, skip, kernel_down, kernel_up, upsample, pointwise_up)
        self.network = SkipNetwork(self.num_networks, z_channels, channels, *levels)
        if min(size) < (least := self.network.least_side()):
            raise ValueError(
                f"an image of {size[1]}×{size[0]}: expected at least {least}×{least} for the {len(down)} levels of "
                f"down={list(down)}"
            )
        made = (
            mesh_grid(self.num_networks, size)
            if input == "meshgrid"
            else random_input(self.num_networks, z_channels, size, self.seed)
        )
        self.register_buffer("z", made)
        self.register_buffer("frames", torch.zeros(len(FRAMES), *self.image_shape))  # of the first image
        self.stop = MovingVariance(self.num_networks, self.image_shape, averaging, patience)
        # They are the same on every rank, so DDP need not send them in each step.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

        self._names: list[str] = []  # of the images that a loaded checkpoint has restored
        self._digest = ""  # of what was measured of them
        self._trace: list[Tensor] = []  # (N, len(TRACE)) of each iteration
        self._good: dict[str, Any] = {}  # the state to go back to
        self._references: dict[str, Tensor] = {}  # what the network has to beat

    def on_fit_start(self) -> None:
        if (count := self.trainer.accumulate_grad_batches) != 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches={count}: expected 1, because every batch holds the same images"
            )

    # ---- the model -----------------------------------------------------------------------------------------------

    @property
    def data(self) -> Restoration:
        found: Restoration = datamodule_of(self.trainer)
        return found

    def forward(self, step: int | None = None) -> Tensor:
        """x = f(z) (B, C, H, W) for this rank's images; the noise of iteration ``step`` is added to z."""
        z = rows_of_this_rank(self.z)
        if step is not None and self.input_noise:
            noise = normal_of_samples(len(z), z[0].numel(), self.seed, "perturb", step, device=z.device)
            z = z + self.input_noise * noise.view_as(z).to(z.dtype)
        output: Tensor = self.network(z)
        return output

    def training_step(self, batch: RestorationBatch, batch_idx: int) -> dict[str, Tensor]:
        step = self.trainer.global_step
        output = self(step)
        fit = self.misfit(output, batch)
        if batch_idx == 0 and self._went_back(gather_rows(fit)):
            output = self(step)
            fit = self.misfit(output, batch)
        self._observe(step, output.detach(), fit.detach(), batch)
        loss = fit
        if self.tv_weight:
            loss = fit + self.tv_weight * total_variation(output)
        # A sum, so that each network is trained as if it were alone; DDP averages over the ranks.
        return {"loss": loss.sum() * world_size()}

    def misfit(self, images: Tensor, batch: RestorationBatch) -> Tensor:
        """:func:`misfit` of images (B, C, H, W) to the measurements."""
        with full_precision(images):
            return misfit(self.data.operator(images), batch.degraded, batch.mask)

    @torch.no_grad()
    def _observe(self, step: int, output: Tensor, fit: Tensor, batch: RestorationBatch) -> None:
        """Adds an output to the average and the stop. Every rank holds those of all images."""
        outputs = gather_rows(output)
        self.stop.update(step, outputs)
        own = [fit, self.scored(output, batch), self.scored(rows_of_this_rank(self.average), batch)]
        fit, raw, average = gather_rows(torch.stack(own, 1)).unbind(1)
        self._trace.append(torch.stack([fit, self.stop.variance, raw, average], 1))
        if step + 1 in FRAMES:
            self.frames[FRAMES.index(step + 1)] = outputs[0]

    def scored(self, images: Tensor, batch: RestorationBatch) -> Tensor:
        """PSNR (B,) in dB, as the task's papers report it; NaN where there is no ground truth."""
        if batch.truth.shape[1] == 0:
            return images.new_full((len(images),), torch.nan)
        return psnr(images, batch.truth, self.data.task.luma, self.data.task.border)

    @property
    def average(self) -> Tensor:
        """(N · K, C, H, W): the running average of each network's outputs."""
        return self.stop.mean

    # ---- taking a step back ----------------------------------------------------------------------------------------

    def _state(self) -> list[Tensor]:
        """Everything in the networks that a step changes (not copies)."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        own = list(self.network.parameters())
        moments = [value for p in own for value in optimizer.state.get(p, {}).values() if isinstance(value, Tensor)]
        return [*(p.detach() for p in own), *moments, self.stop.mean, self.stop.spread]

    @torch.no_grad()
    def _went_back(self, fit: Tensor) -> bool:
        """Resets networks whose misfit (N · K,) has risen, and remembers the state of the others.

        The gradient of a fit that has gone astray is never applied. The host reads this once per epoch.
        """
        if self.backtrack_db is None:
            return False
        live = self._state()
        fell = torch.zeros_like(fit, dtype=torch.bool)
        if self._good and len(self._good["state"]) == len(live):  # the optimizer has no state before its first step
            good_fit = self._good["misfit"].to(fit)
            fell = ~(10 * (fit / good_fit).log10() <= self.backtrack_db)  # so where it is no number too
            fit = torch.where(fell, good_fit, fit)
        any_fell = bool(fell.any())
        for now, good in zip(live, self._good["state"], strict=True) if any_fell else ():
            if now.dim():
                now.unflatten(0, (len(fell), -1))[fell] = good.to(now).unflatten(0, (len(fell), -1))[fell]
            elif fell.all():  # Adam counts the steps of all images together
                now.copy_(good)
        self._good = {"misfit": fit.clone(), "state": [tensor.clone() for tensor in live]}
        return any_fell

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def on_train_epoch_end(self) -> None:
        if bool(self.stop.stopped().all()):
            self.trainer.should_stop = True

    def validation_step(self, batch: RestorationBatch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: RestorationBatch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    @property
    def restored(self) -> Tensor:
        """(N, C, H, W): each network's averaged outputs at its stop, or so far; the mean over copies."""
        return self.of_each_image(self.stop.kept).mean(1)

    def of_each_image(self, networks: Tensor) -> Tensor:
        """(N · K, …) → (N, K, …)."""
        output: Tensor = networks.unflatten(0, (self.num_images, self.copies))
        return output

    @property
    def trace(self) -> Tensor:
        """(iterations, N · K, len(TRACE))."""
        if not self._trace:
            return self.average.new_zeros(0, self.num_networks, len(TRACE))
        return torch.stack([row.to(self.device) for row in self._trace])

    def _evaluate(self, batch: RestorationBatch, stage: str) -> None:
        images = {"": self.stop.kept, "_average": self.average, "_raw": self.stop.newest}
        if self.copies > 1:
            images["_mean_of_copies"] = self.restored.repeat_interleave(self.copies, 0)
        images = {name: rows_of_this_rank(all_of_them) for name, all_of_them in images.items()}
        if batch.truth.shape[1]:
            images |= {f"_{name}": image for name, image in self.references(batch).items()}
        lowest = self.stop.lowest.mean()
        scores = {
            "loss": self.misfit(images["_raw"], batch).mean(),
            "iteration": self.stop.steps.to(self.dtype),
            "stop_iteration": self.stop.kept_step.to(self.dtype).mean(),
            "variance": torch.where(lowest.isinf(), torch.nan, lowest),
        }
        if batch.truth.shape[1]:
            scores |= {f"psnr{name}_db": self.scored(image, batch).mean() for name, image in images.items()}
            if self.copies > 1:
                each = gather_rows(self.scored(images[""], batch))
                scores["psnr_std_db"] = self.of_each_image(each).std(1).mean()
            # Of all iterations, which only the ground truth knows.
            peak = self.trace[:, :, TRACE.index("psnr_average_db")]
            scores["psnr_peak_db"] = peak.amax(0).mean() if len(peak) else scores["psnr_db"]
            scores |= {f"ssim{name}": self._ssim(image, batch) for name, image in images.items()}
        named = {f"{stage}/{name}": value for name, value in scores.items()}
        self.log_dict(named, batch_size=len(batch.degraded), sync_dist=world_size() > 1)

    def _ssim(self, images: Tensor, batch: RestorationBatch) -> Tensor:
        found, truth = (compared(x, self.data.task.luma, self.data.task.border) for x in (images, batch.truth))
        with full_precision(found):
            return ssim(found, truth, data_range=1.0)  # type: ignore[return-value]

    def references(self, batch: RestorationBatch) -> dict[str, Tensor]:
        """The trivial restoration and that of least total variation, each (B, C, H, W), computed once."""
        if not self._references:
            task, operator = self.data.task, self.data.operator
            with full_precision(batch.degraded):
                trivial = task.trivial(batch.degraded, batch.mask)
                tv = tv_restore_noisy(
                    batch.degraded,
                    batch.mask,
                    lambda x: batch.mask * operator(x),
                    lambda y: operator.adjoint(batch.mask * y),
                    task.noise_level(batch.degraded, batch.mask),
                    trivial,
                )
            self._references = {"trivial": trivial, "tv": tv}
        return self._references

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizers(self, self.optimizer, None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        names = list(getattr(self.data, "names", []))
        digest = self.data.digest() if hasattr(self.data, "digest") else ""
        checkpoint["restoration"] = {"trace": self.trace.cpu(), "good": self._good, "names": names, "digest": digest}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        from_windowed(checkpoint["state_dict"])
        saved = checkpoint["restoration"]
        self._trace, self._good, self._names = list(saved["trace"]), saved["good"], saved.get("names", [])
        self._digest = saved.get("digest", "")

    def _refuse_other_images(self) -> None:
        """Raises ValueError for other images than the checkpoint's, about which its networks know nothing."""
        if self._names and self._names != (names := list(self.data.names)):
            raise ValueError(f"image={names}: expected {self._names}, the images that the checkpoint has restored")
        if self._digest and self._digest != self.data.digest():
            raise ValueError(
                f"image={self._names}: has these names, but is not what the checkpoint has restored; expected the same "
                "image, with the same damage"
            )

    on_validation_start = on_test_start = on_predict_start = _refuse_other_images

    # ---- use -------------------------------------------------------------------------------------------------------

    def with_known(self, batch: RestorationBatch) -> Tensor:
        """:attr:`restored`, with the pixels that are known without noise as they were measured."""
        degraded, mask = (tensor[:: self.copies].to(self.device) for tensor in (batch.degraded, batch.mask))
        return self.data.task.put_back(self.restored, degraded, mask)

    def predict_step(self, batch: RestorationBatch, batch_idx: int) -> dict[str, list[str]]:
        """Writes each restored image beside its file; into the current folder, if it has none or is a data set's."""
        if not int(self.stop.steps):
            raise ValueError("nothing is restored yet: expected --ckpt_path with the checkpoint of a run")
        data, written = self.data, []
        rows = zip(self.with_known(batch), data.names, data.files, data.originals, strict=True)
        for image, name, file, original in rows:
            here = Path() if file is None or data_root() in file.parents else file.parent
            written.append(str(save(image, original, name, file, here, data.task.leaves_known)))
        rank_zero_info(f"restored: {', '.join(written)}")
        return {"image": list(data.names), "restored": written}


def restore(
    image: Any,
    task: Task | type[Task] | str | None = None,
    iterations: int = 3000,
    seed: int = 0,
    *,
    out: str | Path | None = None,
    tile: int | None = None,
    network: str | None = None,
    **options: Any,
) -> Any:
    """Restores damaged images, for scripts: ``restore("scan.png", out="restored.png")``.

    Args:
        image: whatever :func:`common.pictures.opened` takes: a file, an image of Pillow, an array, a tensor; or several
            of these, or a folder. Each has its own network, and they may have different sizes.
        task: what was done to it: a task, or its name or class with its arguments among the ``options``, such as
            ``"denoise"``, where the noise is unknown unless ``sigma`` says it. By default what the options say: with a
            ``mask`` it is to be inpainted, with a ``factor`` enlarged, with a ``kernel`` deblurred, and else denoised.
        iterations: the maximum; it stops earlier, unless ``patience=None``.
        out: a file or a folder to write to, in the likeness of the image; by default nothing is written.
        tile: side of the parts in which it is restored; by default only what does not fit into memory has parts.
        network: "narrow" or "paper", by default as the size suggests: see :mod:`lit_models.parts.restoring`.
        options: arguments of the task; ``size``, to which the image is brought; ``lr``, ``precision``, ``max_time`` (as
            Lightning's Trainer takes it), and ``accelerator``, by default the best available; ``copies``, the number of
            networks per image, whose mean is returned; and further arguments of :class:`DeepImagePrior`.

    Returns:
        (C, H, W) in 0..1; of several images as many in a list, or (N, C, H, W) of a tensor (N, C, H, W).

    Raises:
        FileNotFoundError, TypeError, ValueError: something can't be restored that way; it says what.
    """
    arguments = {name: options.pop(name, None) for name in TASK_OPTIONS}
    made = task if isinstance(task, Task) else made_task(task, **arguments)
    if made is task and (given := [name for name, value in arguments.items() if value is not None]):
        raise ValueError(f"{given[0]} beside a task that has its own: expected the name or the class of one")
    opened = open_images(image, options.pop("size", None))
    plans = [plan_for(each, made, options, tile, network) for each in opened]
    restored = []

    def fit(plan: Plan, region: Region | None) -> Fitted:
        callbacks = [Watch(meter)]
        model = fitted(plan.opened.image, made, iterations, seed, region=region, callbacks=callbacks, **plan.settings)
        return Fitted(model.with_known(model.data.source)[0].float().cpu(), ending(model.stop, iterations))

    with Meter(iterations * sum(len(plan.regions) for plan in plans), "restoring") as meter:
        for plan in plans:
            whole, _ = carry_out(plan, fit, iterations, meter)
            if out is not None:
                save(whole, plan.opened.original, plan.opened.name, plan.opened.file, out, made.leaves_known)
            restored.append(whole)
    if isinstance(image, Tensor) and image.dim() == 4:
        return torch.stack(restored)
    several = are_several(image) or (isinstance(image, (str, Path)) and existing(str(image)).is_dir())
    return restored if several else restored[0]


def fitted(
    image: Any,
    task: Task,
    iterations: int,
    seed: int = 0,
    accelerator: str = "auto",
    copies: int = 1,
    region: list[int] | None = None,
    lr: float | None = None,
    precision: Any = "32-true",
    max_time: Any = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> DeepImagePrior:
    """The fitted model of :func:`restore`, for an image as :class:`~datamodules.restoration.Restoration` takes it."""
    if lr is not None:
        options["optimizer"] = lambda params: torch.optim.Adam(params, lr=lr)
    with torch.random.fork_rng(), quiet_lightning():
        torch.manual_seed(seed)
        per_epoch = min(100, iterations)
        data = Restoration(image, task, degraded=True, copies=copies, iterations_per_epoch=per_epoch, region=region)
        model = DeepImagePrior(data.image_shape, data.num_images, data.copies, **options)
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            precision=precision,
            max_epochs=math.ceil(iterations / per_epoch),
            max_steps=iterations,
            max_time=max_time,
            callbacks=[*callbacks],
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, datamodule=data)
    return model
