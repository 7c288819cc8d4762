"""lightning-bolts' side of against_bolts.py, in a process of its own that its overlay comes first in.

python -m benchmarks.bolts_side TECHNIQUE STEPS WORKERS DATA    prints {"seconds": …, "megabytes": …, "worker": …}

Its modules, steps, optimizers, transforms, data modules and Lightning 1.9, as they are; the networks are ours, which
its classes allow by an override. It logs to CSV, and nothing is validated or saved.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pl_bolts.datamodules import MNISTDataModule
from pl_bolts.models.autoencoders import AE, VAE
from pl_bolts.models.self_supervised.moco.moco2_module import Moco_v2
from pl_bolts.models.self_supervised.simclr.simclr_module import SimCLR
from pl_bolts.transforms.self_supervised.moco_transforms import MoCo2TrainCIFAR10Transforms
from pl_bolts.transforms.self_supervised.simclr_transforms import SimCLRTrainDataTransform
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lit_models.networks.encoders import ResNet
from lit_models.networks.image_coders import conv_down, conv_up_double, mlp

BATCH, WIDTH, FEATURES = 256, 16, 128


class Listed(ResNet):
    """A list of features, as its ResNets give."""

    def forward(self, images: Tensor) -> Any:
        return [super().forward(images)]


class Classifier(ResNet):
    """With the layer that its MoCo takes for the projection."""

    def __init__(self) -> None:
        super().__init__("resnet18", width=WIDTH)
        self.fc = nn.Linear(FEATURES, FEATURES)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(super().forward(images))


class NarrowSimCLR(SimCLR):
    def init_model(self) -> nn.Module:
        return Listed("resnet18", width=WIDTH)


class NarrowMoCo(Moco_v2):
    def init_encoders(self, base_encoder: str) -> tuple[nn.Module, nn.Module]:
        return Classifier(), Classifier()


class SmallAE(AE):
    """With the network of configs/autoencoder/mnist.yaml, whose images are padded from 28 pixels to 32."""

    def __init__(self) -> None:
        pl.LightningModule.__init__(self)
        self.lr = 1e-4
        layers = [1, 16, 32, 64]
        pad = nn.ReplicationPad2d((0, 4, 0, 4))
        self.encoder = nn.Sequential(pad, conv_down(layers), nn.Conv2d(64, 32, 4))
        self.fc = nn.Identity()
        crop = nn.ZeroPad2d((0, -4, 0, -4))
        self.decoder = nn.Sequential(nn.ConvTranspose2d(32, 64, 4), nn.ReLU(), conv_up_double(layers), crop)


class SmallVAE(VAE):
    """With the network of configs/vae/mnist.yaml."""

    def __init__(self) -> None:
        pl.LightningModule.__init__(self)
        self.lr, self.kl_coeff = 1e-4, 0.1
        self.encoder = nn.Sequential(nn.Flatten(), mlp([784, 200, 200], "tanh"), nn.Tanh())
        self.fc_mu, self.fc_var = nn.Linear(200, 50), nn.Linear(200, 50)
        self.decoder = nn.Sequential(mlp([50, 200, 200, 784], "tanh"), nn.Unflatten(1, (1, 28, 28)))


class Pictures(Dataset):
    """As torchvision's CIFAR10, which has an array and makes a PIL image of a row."""

    def __init__(self, file: str, transform: Any) -> None:
        self.data, self.transform = np.load(file), transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.data[index])), 0


class Views(pl.LightningDataModule):
    name = "cifar10"

    def __init__(self, file: str, transform: Any, workers: int) -> None:
        super().__init__()
        self.loader = DataLoader(Pictures(file, transform), BATCH, shuffle=True, drop_last=True, num_workers=workers)

    def train_dataloader(self) -> DataLoader:
        return self.loader


class Clock(pl.Callback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.since = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds.append(time.perf_counter() - self.since)


def made(technique: str, workers: int, data: str) -> tuple[Any, Any]:
    """A module, and the data that it is trained on: a file of CIFAR-10's images, or MNIST's folder."""
    if technique == "simclr":
        said: Any = {"gpus": 0, "num_samples": 45_000, "batch_size": BATCH, "dataset": "cifar10", "temperature": 0.5}
        said |= {"hidden_mlp": FEATURES, "feat_dim": FEATURES, "first_conv": False, "maxpool1": False}
        # The encoder rescales by itself, so nothing is normalized here.
        transform: Any = SimCLRTrainDataTransform(32, gaussian_blur=False, jitter_strength=0.5)
        return NarrowSimCLR(**said), Views(data, transform, workers)
    if technique == "moco":
        transform = MoCo2TrainCIFAR10Transforms()
        return NarrowMoCo(emb_dim=FEATURES, num_negatives=4096, use_mlp=True), Views(data, transform, workers)
    module = SmallAE() if technique == "autoencoder" else SmallVAE()
    return module, MNISTDataModule(data, num_workers=workers, batch_size=BATCH, pin_memory=False)


def main(technique: str, steps: str, workers: str, data: str) -> None:
    module, source = made(technique, int(workers), data)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=2,
            limit_train_batches=int(steps),
            limit_val_batches=0,
            num_sanity_val_steps=0,
            accelerator="cpu" if not torch.cuda.is_available() else "gpu",
            devices=1,
            callbacks=[clock := Clock()],
            logger=CSVLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=source)
    own, worker = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"seconds": clock.seconds[-1], "megabytes": own, "worker": worker}))


if __name__ == "__main__":
    main(*sys.argv[1:])
