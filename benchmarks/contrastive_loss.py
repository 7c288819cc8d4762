"""NT-Xent against peers', and a step of LARS against SGD's.

    python -m benchmarks.contrastive_loss

Needs: pip install lightly pytorch-metric-learning
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.floor import device, now
from benchmarks.harness import interleaved, options, ratios, report, verdict
from lit_models.networks.encoders import image_encoder
from lit_models.parts.optim import LARS
from lit_models.simclr import nt_xent

TEMPERATURE = 0.5
MOST_BYTES = 2**32


def seconds_of_loss(loss: Callable[[Tensor], Tensor], z: Tensor, times: int = 3) -> float:
    """Of forward and backward, for projections (2, B, D)."""
    start = now()
    for _ in range(times):
        loss(z.detach().requires_grad_()).backward()
    return (now() - start) / times


def losses(images: int) -> dict[str, Callable[[Tensor], Tensor]]:
    from lightly.loss import NTXentLoss as Lightly
    from pytorch_metric_learning.losses import NTXentLoss as MetricLearning

    lightly, metric_learning = Lightly(TEMPERATURE), MetricLearning(TEMPERATURE)

    def of_pairs(z: Tensor) -> Tensor:
        labels = torch.arange(z.shape[1], device=z.device).repeat(2)
        return metric_learning(z.flatten(0, 1), labels)

    cases = {"ours": lambda z: nt_xent(z, TEMPERATURE), "lightly": lambda z: lightly(*z)}
    if (needed := (2 * images) ** 3) > MOST_BYTES:  # it compares every positive pair with every negative one
        print(f"pytorch-metric-learning is left out: it would need {needed / 2**30:.0f} GiB; try --images 512")
        return cases
    return {**cases, "metric-learning": of_pairs}


def seconds_of_step(network: nn.Module, optimizer: torch.optim.Optimizer, times: int = 5) -> float:
    start = now()
    for _ in range(times):
        optimizer.step()
    return (now() - start) / times


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=2048, help="of which each has two views (default: 2048)")
    args = parser.parse_args()
    z = torch.randn(2, args.images, 128, generator=torch.Generator().manual_seed(0)).to(device())
    cases = losses(args.images)
    values = {name: float(loss(z)) for name, loss in cases.items()}
    print("loss:", ", ".join(f"{name} {value:.5f}" for name, value in values.items()))
    times = interleaved({name: partial(seconds_of_loss, loss, z) for name, loss in cases.items()}, args.repeats)
    report(f"NT-Xent, {2 * args.images}×128, forward and backward", times, "ours")
    slowest = [1 / min(pair) for pair in zip(*(ratios(times, "ours")[name] for name in list(cases)[1:]), strict=True)]

    network = image_encoder("resnet50", [3, 224, 224]).to(device())
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    sgd = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-6, foreach=True)
    lars = LARS(network.parameters(), lr=1e-4)
    steps = {"SGD, foreach": partial(seconds_of_step, network, sgd), "LARS": partial(seconds_of_step, network, lars)}
    print()
    report("a step of ResNet-50's optimizer", interleaved(steps, args.repeats), "SGD, foreach")
    return verdict(slowest, args.check)


if __name__ == "__main__":
    raise SystemExit(main())
