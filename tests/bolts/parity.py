"""Ours beside what lightning-bolts computed: each item gives pairs of what should be equal."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.stats import ks_2samp
from torch import Tensor, nn

from datamodules.contrastive_views import ViewBatch
from datamodules.parts.augment import Augmentation
from experiments.from_lightning_bolts import KINDS, NORMALIZATIONS, built
from lit_models.autoencoder import reconstruction_loss
from lit_models.moco import MoCo
from lit_models.networks.encoders import Rescale
from lit_models.parts.optim import LARS, WarmupCosine
from lit_models.simclr import SimCLR, nt_xent
from lit_models.vae import gaussian_kl, log_likelihood

Item = dict[str, Tensor]
Pairs = dict[str, tuple[Tensor, Tensor]]
"""what is compared: ours and theirs"""


class Difference(NamedTuple):
    most: float
    """largest absolute difference"""
    of: float
    """largest absolute value"""


def difference(ours: Tensor, theirs: Tensor) -> Difference:
    assert ours.shape == theirs.shape
    return Difference(float((ours - theirs).abs().max()), float(theirs.abs().max()))


@contextlib.contextmanager
def double() -> Iterator[None]:
    """Modules that are made inside have double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def scale_of(normalization: str) -> dict[str, Tensor]:
    mean, std = NORMALIZATIONS[normalization]
    return {"mean": torch.tensor(mean)[:, None, None], "std": torch.tensor(std)[:, None, None]}


def converted(kind: str, weights: Item, said: dict[str, Any], **options: Any) -> Any:
    """Our module with their weights, in double precision."""
    with double():
        made = KINDS[kind](weights, said, scale_of("cifar10"))
        return built(made._replace(arguments=made.arguments | options))


def weights_of(item: Item, prefix: str = "weights.") -> Item:
    return {key.removeprefix(prefix): value for key, value in item.items() if key.startswith(prefix)}


def views_of(views: Tensor) -> ViewBatch:
    nothing = views.new_zeros(0)
    return ViewBatch(images=nothing, labels=nothing, views=views, small=nothing)


# ---- losses, optimizer, schedule -------------------------------------------------------------------------------------


def nt_xent_pairs(item: Item) -> Pairs:
    pairs = {}
    for temperature in (0.5, 0.1, 0.05):
        z = item["z"].clone().requires_grad_()
        loss = nt_xent(z, temperature)
        loss.backward()
        assert z.grad is not None
        pairs[f"loss, τ {temperature}"] = loss.detach(), item[f"function.loss.{temperature}"]
        # They are given unit vectors, which ours makes itself: its gradient lies along the sphere.
        theirs = item[f"function.gradient.{temperature}"]
        along = theirs - (theirs * item["z"]).sum(2, keepdim=True) * item["z"]
        pairs[f"gradient, τ {temperature}"] = z.grad, along
    return pairs


def nt_xent_of_module_pairs(item: Item) -> Pairs:
    """The loss as its SimCLR has it, which adds 1e-6 and subtracts exp(1/τ) in single precision."""
    return {"loss, τ 0.5": (nt_xent(item["z"], 0.5), item["method.loss.0.5"])}


def small_net(item: Item) -> nn.Sequential:
    with double():
        net = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3))
    net.load_state_dict(weights_of(item))
    return net


def after_lars(item: Item, decay: float, drop: float = 1.0) -> Item:
    """The weights after 50 steps of ours, as child.py trains."""
    net = small_net(item)
    matrices, vectors = [p for p in net.parameters() if p.dim() > 1], [p for p in net.parameters() if p.dim() < 2]
    optimizer = LARS([{"params": matrices, "weight_decay": decay}, {"params": vectors}], lr=0.5, trust=0.02)
    for step in range(50):
        if step == 25:
            for group in optimizer.param_groups:
                group["lr"] *= drop
        optimizer.zero_grad()
        F.mse_loss(net(item["inputs"]), item["targets"]).backward()
        optimizer.step()
    return {key: value.detach() for key, value in net.state_dict().items()}


def lars_pairs(item: Item) -> Pairs:
    theirs = weights_of(item, "no decay.")
    return {key: (value, theirs[key]) for key, value in after_lars(item, 1e-12).items()}


def our_rates(warm: int, total: int = 100, base: float = 0.3) -> Tensor:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=base)
    schedule = WarmupCosine(optimizer, warm / total, total)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return torch.tensor(rates, dtype=torch.float64)


def schedule_pairs(item: Item) -> Pairs:
    ours = our_rates(10)
    return {
        "LinearWarmupCosineAnnealingLR from the warm-up's end": (ours[10:], item["warm"][10:]),
        "linear_warmup_decay from the warm-up's end": (ours[10:] / 0.3, item["function"][10:]),
    }


# ---- training steps --------------------------------------------------------------------------------------------------


def our_simclr(item: Item) -> SimCLR:
    said = {"size": 16, "arch": "resnet18", "first_conv": False, "maxpool1": False, "temperature": 0.5}
    return converted("SimCLR", weights_of(item), said)


def simclr_pairs(item: Item) -> Pairs:
    pairs, model, views = {}, our_simclr(item), views_of(item["views"])
    for mode in ("eval", "train"):
        getattr(model, mode)()
        model.zero_grad()
        if mode == "eval":
            loss = model.training_step(views, 0)["loss"]
        else:  # each view by itself, and a head that does not end in a normalization, as theirs
            z = torch.stack([model.head[:-1](model.encoder(view)) for view in item["views"]])
            loss = nt_xent(z, model.temperature)
        loss.backward()
        gradient = model.encoder.conv1.weight.grad
        pairs[f"loss, {mode}"] = loss.detach(), item[f"{mode}.loss"]
        pairs[f"gradient, {mode}"] = gradient.clone(), item[f"{mode}.gradient"]
    return pairs


def our_moco(item: Item) -> MoCo:
    theirs = {f"encoder_{part}.{key}": value for part in "qk" for key, value in weights_of(item).items()}
    theirs |= {"queue": item["queue"].T, "queue_ptr": torch.zeros(1, dtype=torch.long)}
    said = {"size": 32, "base_encoder": "resnet18", "encoder_momentum": 0.9, "softmax_temperature": 0.2}

    def sgd(params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=1e-3)

    return converted("MoCo", theirs, said, optimizer=sgd, scheduler=None)


def moco_pairs(item: Item) -> Pairs:
    """Losses and queue after each step, and the encoders at the end, where theirs has yet to follow."""
    model = our_moco(item).train()
    optimizer: Any = model.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
    losses, queues = [], []
    for step, views in enumerate(item["views"]):
        if step:
            model.follow(model.momentum)
        loss = model.training_step(views_of(views), step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        queues.append(model.queue.keys.clone())
    pairs = {
        "losses of 5 steps": (torch.stack(losses), item["losses"]),
        "the queue after each": (torch.stack(queues), item["queues"]),
        "its next place": (model.queue.enqueued % len(model.queue.keys), item["place"][0]),
    }
    for name in ("query", "key"):
        network: Any = getattr(model, name)
        after = {"conv1": network.encoder.conv1.weight, "head": network.head[0].weight}
        after["running_mean"] = network.encoder.bn1.running_mean
        pairs |= {f"{name} {part}": (value.detach(), item[f"{name}.{part}"]) for part, value in after.items()}
    return pairs


def autoencoder_pairs(item: Item) -> Pairs:
    output = item["ae.decoder"].clone().requires_grad_()
    loss = reconstruction_loss("mse", output, item["images"]).mean()
    loss.backward()
    assert output.grad is not None
    return {"loss": (loss.detach(), item["ae.loss"]), "gradient": (output.grad, item["ae.decoder.gradient"])}


def vae_pairs(item: Item) -> Pairs:
    """Ours of a Gaussian of variance ½ with β = kl_coeff · P/D is P times theirs, and a constant.

    P is the number of pixels and D that of dimensions.
    """
    output, mean, log_var = (item[f"vae.{name}"].clone() for name in ("decoder", "fc_mu", "fc_var"))
    output.requires_grad_()
    pixels, dims, kl_coeff = item["images"][0].numel(), mean.shape[1], 0.1
    log_scale = torch.tensor(0.5 * math.log(0.5), dtype=output.dtype)
    beta = kl_coeff * pixels / dims
    kl = beta * gaussian_kl(mean, log_var).sum(1)
    loss = (kl - log_likelihood("gaussian", output, item["images"], log_scale)).mean() / pixels
    loss.backward()
    assert output.grad is not None
    return {
        "loss": (loss.detach() - 0.5 * math.log(math.pi), item["vae.loss"]),
        "kl": (kl.mean() / pixels, item["vae.kl"]),
        "gradient": (output.grad, item["vae.decoder.gradient"]),
    }


# ---- data ------------------------------------------------------------------------------------------------------------


def normalization_pairs(item: Item) -> Pairs:
    names = ("cifar10", "stl10", "imagenet")
    with double():
        return {name: (Rescale(*NORMALIZATIONS[name])(item["images"]), item[name]) for name in names}


AUGMENTATIONS = {
    "simclr": Augmentation(),
    "simclr blur": Augmentation(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5),
    "moco": Augmentation(scale=(0.2, 1.0), blur=0.5),
}
"""ours for SimCLRTrainDataTransform(32, False, 0.5), (32, True, 1.0) and MoCo2TrainCIFAR10Transforms()"""


def statistics(views: Tensor) -> Item:
    """What can be seen of a view (N, 3, H, W) in 0..1, as one number each (N,)."""
    vertical, horizontal = views.diff(dim=2), views.diff(dim=3)
    return {
        **dict(zip(("red", "green", "blue"), views.mean((2, 3)).unbind(1), strict=True)),
        "contrast": views.mean(1).flatten(1).std(1),
        "saturation": (views.amax(1) - views.amin(1)).mean((1, 2)),
        "left to right": horizontal.mean((1, 2, 3)),
        "top to bottom": vertical.mean((1, 2, 3)),
        "sharpness": horizontal.diff(dim=3).abs().mean((1, 2, 3)),
    }


def distances(item: Item, name: str) -> dict[str, float]:
    """Kolmogorov and Smirnov's distance between our views of the picture and theirs, of each statistic."""
    theirs = item[name].float() / 255
    images = item["picture"].expand(len(theirs), -1, -1, -1)
    draws = torch.rand(len(theirs), Augmentation.num_draws, generator=torch.Generator().manual_seed(0))
    ours = (AUGMENTATIONS[name](images, draws) * 255).round() / 255  # as PIL's are
    pairs = zip(statistics(ours).items(), statistics(theirs).values(), strict=True)
    return {key: float(ks_2samp(a.numpy(), b.numpy()).statistic) for (key, a), b in pairs}


class Compared(NamedTuple):
    title: str
    item: str
    """of child.py"""
    pairs: Callable[[Item], Pairs]
    tolerance: float


ITEMS = (
    Compared("NT-Xent (`losses.self_supervised_learning.nt_xent_loss`)", "contrastive_loss", nt_xent_pairs, 1e-12),
    Compared("NT-Xent as in `SimCLR.nt_xent_loss`", "contrastive_loss", nt_xent_of_module_pairs, 1e-6),
    Compared("LARS, weights after 50 steps", "lars", lars_pairs, 1e-6),
    Compared("Learning rates of 90 steps", "schedule", schedule_pairs, 1e-12),
    Compared("SimCLR's training step, ResNet-18", "simclr_step", simclr_pairs, 1e-6),
    Compared("Moco_v2, 5 training steps, ResNet-18", "moco_steps", moco_pairs, 1e-6),
    Compared("AE's loss", "autoencoder_losses", autoencoder_pairs, 1e-12),
    Compared("VAE's loss", "autoencoder_losses", vae_pairs, 1e-12),
    Compared("Normalizations of CIFAR-10, STL-10, ImageNet", "normalizations", normalization_pairs, 1e-12),
)
