"""Runs the real lightning-bolts on fixed inputs, in a process of its own.

    python child.py FOLDER

With its overlay first in ``PYTHONPATH``. Writes ``theirs.pt``, tensors by item and name, inputs among them; and a
checkpoint of each module that it has trained for two steps. Double precision, except for the checkpoints.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pl_bolts.losses.self_supervised_learning import nt_xent_loss
from pl_bolts.models.autoencoders import AE, VAE
from pl_bolts.models.self_supervised.moco.moco2_module import Moco_v2
from pl_bolts.models.self_supervised.simclr.simclr_module import SimCLR
from pl_bolts.optimizers.lars import LARS
from pl_bolts.optimizers.lr_scheduler import LinearWarmupCosineAnnealingLR, linear_warmup_decay
from pl_bolts.transforms.dataset_normalizations import (
    cifar10_normalization,
    imagenet_normalization,
    stl10_normalization,
)
from pl_bolts.transforms.self_supervised.moco_transforms import MoCo2TrainCIFAR10Transforms
from pl_bolts.transforms.self_supervised.simclr_transforms import SimCLRTrainDataTransform
from torch import Tensor, nn

Item = dict[str, Tensor]
SIMCLR = {"gpus": 0, "num_samples": 16, "batch_size": 8, "dataset": "cifar10", "arch": "resnet18", "hidden_mlp": 512}
SIMCLR |= {"feat_dim": 16, "first_conv": False, "maxpool1": False, "temperature": 0.5}
MOCO = {"base_encoder": "resnet18", "emb_dim": 16, "num_negatives": 24, "encoder_momentum": 0.9, "use_mlp": True}
MOCO |= {"softmax_temperature": 0.2, "learning_rate": 0.05, "weight_decay": 1e-3}
AUTOENCODER = {"input_height": 32, "latent_dim": 8}


def silent(module: Any) -> Any:
    """A module that logs nowhere, and takes itself to be trained on one device."""

    class Trainer:
        strategy, datamodule, max_epochs = None, type("Data", (), {"name": "cifar10"}), 10

    module.log = module.log_dict = lambda *args, **kwargs: None
    module.kept = Trainer()  # Lightning has a weak reference only
    module.trainer = module.kept
    return module


def weights(module: nn.Module, prefix: str = "weights.") -> Item:
    """Its state, without a classifier that no step uses."""
    return {prefix + k: v.detach().clone() for k, v in module.state_dict().items() if not k.startswith("encoder.fc.")}


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape)


def contrastive_loss() -> Item:
    found: Item = {"z": nn.functional.normalize(torch.randn(2, 32, 16), dim=2)}
    model = SimCLR(**SIMCLR)
    for temperature in (0.5, 0.1, 0.05):
        for name, loss_of in (("function", nt_xent_loss), ("method", model.nt_xent_loss)):
            z = found["z"].clone().requires_grad_()
            loss = loss_of(z[0], z[1], temperature)
            loss.backward()
            found |= {f"{name}.loss.{temperature}": loss.detach(), f"{name}.gradient.{temperature}": z.grad}
    single = found["z"].float()
    for temperature in (0.1, 0.05, 0.01):
        found[f"function.single.{temperature}"] = nt_xent_loss(single[0], single[1], temperature)
        found[f"method.single.{temperature}"] = model.nt_xent_loss(single[0], single[1], temperature)
    return found


def lars() -> Item:
    """50 steps, for a weight decay that is next to none and one that counts, and with a rate that changes."""
    found: Item = {"inputs": torch.randn(64, 10), "targets": torch.randn(64, 3)}
    net = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3))
    found |= weights(net)
    for name, decay, drop in (("no decay", 1e-12, 1.0), ("decay", 1e-2, 1.0), ("drop", 1e-12, 0.1)):
        net.load_state_dict({key.removeprefix("weights."): found[key] for key in found if key.startswith("weights.")})
        matrices, vectors = [p for p in net.parameters() if p.dim() > 1], [p for p in net.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = LARS(groups, lr=0.5, momentum=0.9, trust_coefficient=0.02)
        for step in range(50):
            if step == 25:
                for group in optimizer.param_groups:
                    group["lr"] *= drop
            optimizer.zero_grad()
            nn.functional.mse_loss(net(found["inputs"]), found["targets"]).backward()
            optimizer.step()
        found |= weights(net, f"{name}.")
    # What has no weight decay is not scaled by it at all.
    lone = nn.Parameter(torch.full((2, 2), 3.0))
    optimizer = LARS([lone], lr=1.0, weight_decay=0.0)
    lone.grad = torch.ones(2, 2)
    optimizer.step()
    return {**found, "without decay": lone.detach()}


def schedule() -> Item:
    found = {}
    for name, warm in (("warm", 10), ("cold", 0)):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.3)
        following = LinearWarmupCosineAnnealingLR(optimizer, warm, 100)
        rates = []
        for _ in range(100):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            following.step()
        found[name] = torch.tensor(rates)
    factor = linear_warmup_decay(10, 100)
    return {**found, "function": torch.tensor([factor(step) for step in range(100)])}


def simclr_step() -> Item:
    """The training step, in training with the statistics of each view by itself, and in evaluation."""
    model = silent(SimCLR(**SIMCLR))
    found = {"views": uniform(2, 8, 3, 16, 16), **weights(model)}
    found["normalized"] = torch.stack([cifar10_normalization()(view) for view in found["views"]])
    for mode in ("eval", "train"):  # in this order, as training moves the running statistics
        getattr(model, mode)()
        model.zero_grad()
        loss = model.training_step(((*found["normalized"], None), None), 0)
        loss.backward()
        found |= {f"{mode}.loss": loss.detach(), f"{mode}.gradient": model.encoder.conv1.weight.grad.clone()}
    named = model.exclude_from_wt_decay(model.named_parameters(), 1e-6)
    decayed = {id(p) for p in named[0]["params"]}
    vectors = [p for p in model.parameters() if p.dim() < 2]
    found["vectors"] = torch.tensor(len(vectors))
    found["decayed vectors"] = torch.tensor(sum(id(p) in decayed for p in vectors))
    return found


def moco_steps(steps: int = 5) -> Item:
    """Training steps of 8 keys into a queue of 24, which wraps around."""
    model = silent(Moco_v2(**MOCO))
    (optimizer,), _ = model.configure_optimizers()
    views = uniform(steps, 2, 8, 3, 32, 32)
    found = {"views": views, "queue": model.queue.T.clone(), **weights(model.encoder_q)}  # encoder_k is a copy of it
    losses, queues = [], []
    for pair in views:
        normalized = tuple(cifar10_normalization()(view) for view in pair)
        loss = model.training_step((normalized, None), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        queues.append(model.queue.T.clone())
    found |= {"losses": torch.stack(losses), "queues": torch.stack(queues), "place": model.queue_ptr.clone()}
    try:
        model._dequeue_and_enqueue(torch.ones(7, 16), model.queue_ptr, model.queue)
        found["takes 7 keys"] = torch.tensor(True)
    except AssertionError:
        found["takes 7 keys"] = torch.tensor(False)
    for name, encoder in (("query", model.encoder_q), ("key", model.encoder_k)):
        after = {"conv1": encoder.conv1.weight, "head": encoder.fc[0].weight, "running_mean": encoder.bn1.running_mean}
        found |= {f"{name}.{part}": value.detach().clone() for part, value in after.items()}
    return found


def autoencoder_losses() -> Item:
    """Losses of the AE and of the VAE, with what they are of, and their gradient to the decoder's output."""
    found: Item = {"images": uniform(4, 3, 32, 32)}
    for name, kind in (("ae", AE), ("vae", VAE)):
        model = silent(kind(**AUTOENCODER))
        kept: Item = {}

        def keep(layer: nn.Module, _: Any, output: Tensor, kept: Item = kept, model: Any = model) -> None:
            of_model = {id(module): key for key, module in model.named_children()}
            kept[of_model[id(layer)]] = output
            if output.requires_grad:
                output.retain_grad()

        for layer in model.children():
            layer.register_forward_hook(keep)
        loss, logs = model.step((found["images"], None), 0)
        loss.backward()
        found |= {f"{name}.{key}": value.detach() for key, value in {**kept, **logs}.items()}
        found |= {f"{name}.{key}.gradient": value.grad for key, value in kept.items()}
    return found


def normalizations() -> Item:
    kinds = {"cifar10": cifar10_normalization(), "stl10": stl10_normalization(), "imagenet": imagenet_normalization()}
    found = {"images": uniform(4, 3, 8, 8)}
    return found | {name: transform(found["images"]) for name, transform in kinds.items()}


def transforms(count: int = 1500) -> Item:
    """Views of one picture, as uint8."""
    rows, columns = np.mgrid[0:32, 0:32] / 31
    slopes = np.stack([0.15 + 0.7 * rows, 0.9 - 0.6 * columns, 0.5 + 0.4 * np.sin(9 * rows * columns)], 2)
    # Edges, beside which PIL's rounding after each of its operations does not count.
    tiles = np.random.default_rng(0).random((8, 8, 3)).repeat(4, 0).repeat(4, 1)
    picture = (slopes + tiles) / 2
    picture = np.ascontiguousarray((255 * picture).astype(np.uint8))
    image = Image.fromarray(picture)
    mean, std = cifar10_normalization().mean, cifar10_normalization().std
    made = {
        "simclr": SimCLRTrainDataTransform(32, gaussian_blur=False, jitter_strength=0.5).train_transform,
        "simclr blur": SimCLRTrainDataTransform(32, gaussian_blur=True, jitter_strength=1.0).train_transform,
        "moco": MoCo2TrainCIFAR10Transforms().train_transform,
    }
    found = {"picture": torch.from_numpy(picture).permute(2, 0, 1).contiguous()}
    for name, transform in made.items():
        views = torch.stack([transform(image) for _ in range(count)])
        if name == "moco":
            views = views * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        found[name] = (255 * views).round().clamp(0, 255).to(torch.uint8)
    return found


def checkpoints(folder: Path) -> Item:
    """Trains each module for two steps by its own Trainer, and saves it as that does."""
    images = torch.rand(6, 3, 32, 32)
    found: Item = {"images": images}
    views = [((images, images.flip(3), images), torch.zeros(6)) for _ in range(2)]
    pairs = [((images, images.flip(3)), torch.zeros(6)) for _ in range(2)]
    plain = [(images, torch.zeros(6)) for _ in range(2)]
    cases = {
        "simclr": (SimCLR(**SIMCLR, max_epochs=2, warmup_epochs=1), views),
        "simclr_stl10": (SimCLR(**{**SIMCLR, "dataset": "stl10", "first_conv": True}), None),
        "moco": (Moco_v2(**MOCO), pairs),
        "ae": (AE(**AUTOENCODER), plain),
        "vae": (VAE(**AUTOENCODER), plain),
    }
    normalized = cifar10_normalization()(images)
    for name, (model, batches) in cases.items():
        off: Any = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        trainer = pl.Trainer(max_epochs=1, accelerator="cpu", **off)
        if batches is None:
            trainer.strategy.connect(model)
        else:
            data = pl.LightningDataModule()
            loader = torch.utils.data.DataLoader(batches, batch_size=None)
            data.name, data.train_dataloader = "cifar10", lambda loader=loader: loader
            trainer.fit(model, datamodule=data)
        trainer.save_checkpoint(folder / f"{name}.ckpt", weights_only=True)
        model.eval()
        with torch.no_grad():
            if name == "simclr":
                found |= {"simclr": model(normalized), "simclr.z": model.projection(model(normalized))}
            elif name == "moco":
                for part in ("q", "k"):
                    encoder = getattr(model, f"encoder_{part}")
                    found[f"moco.{part}"] = nn.functional.normalize(encoder(normalized), dim=1)
                head, model.encoder_q.fc = model.encoder_q.fc, nn.Identity()
                found |= {"moco": model.encoder_q(normalized), "moco.queue": model.queue.T.clone()}
                model.encoder_q.fc = head
            elif name == "ae":
                found["ae"] = model.fc(model.encoder(images))
            elif name == "vae":
                found |= {"vae": model.fc_mu(model.encoder(images)), "vae.log_var": model.fc_var(model.encoder(images))}
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, Item] = {}
    for make in (
        *(contrastive_loss, lars, schedule, simclr_step, moco_steps, autoencoder_losses, normalizations, transforms),
    ):
        single = make is transforms  # it makes images
        torch.set_default_dtype(torch.float32 if single else torch.float64)
        pl.seed_everything(0)
        found[make.__name__] = make()
    torch.set_default_dtype(torch.float32)
    pl.seed_everything(0)
    found["checkpoints"] = checkpoints(folder)
    torch.save(found, folder / "theirs.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
