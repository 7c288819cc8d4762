"""The deep image prior's iterations against their floor, and what its stop costs.

    python -m benchmarks.deep_image_prior

At 128×128 with the narrow network of the defaults, and at 256×256 with the paper's. The loop by hand fits the same
network to the same image from the same noisy input and averages its outputs. It has no stop, no curves and no step
back, so what they cost counts as ours. The stop alone is measured at 512×512, against an iteration of the paper's
network by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.floor import against_floor, command_line, device, now, training_seconds
from benchmarks.harness import Times, interleaved, options, ratios, report, verdict
from experiments.run_folder import REPOSITORY
from lit_models.scores.moving_variance import MovingVariance

CONFIGS = REPOSITORY / "configs" / "deep_image_prior"
NARROW = ["-c", str(CONFIGS / "denoise.yaml")]
PAPER = ["-c", str(CONFIGS / "f16.yaml"), "--data.image", "china"]  # a photograph that is at hand
UPDATES = 100
"""of the stop in each round"""


def train_by_hand(initial: Any, degraded: Tensor, steps: int, epochs: int) -> float:
    """Seconds of ``steps`` iterations: the median of ``epochs``, with one more before.

    Args:
        initial: the model to start from; it is not changed.
        degraded: (1, C, H, W), the noisy image.
    """
    on = device()
    network, z, degraded = deepcopy(initial.network).to(on), initial.z.to(on), degraded.to(on)
    optimizer = initial.optimizer(network.parameters())
    average = torch.zeros_like(degraded)
    seconds = []
    for _ in range(epochs + 1):
        start = now()
        for _ in range(steps):
            output = network(z + initial.input_noise * torch.randn_like(z))
            loss = (output - degraded).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.lerp_(output.detach(), 1 - initial.averaging)
        seconds.append(now() - start)
    return median(seconds[1:])


def loop_by_hand(config: list[str], steps: int, epochs: int) -> Callable[[], float]:
    """The case that fits the configuration's network to its image by hand."""
    with command_line(config) as cli:
        model, degraded = cli.model, cli.datamodule.source.degraded
    return lambda: train_by_hand(model, degraded, steps, epochs)


def iterations(config: list[str], steps: int, epochs: int, repeats: int) -> Times:
    """``train.py`` against its floor."""
    hand = loop_by_hand(config, steps, epochs)
    return against_floor(lambda: training_seconds(config, epochs, steps), hand, steps, repeats)


def stop_against_an_iteration(size: int, repeats: int) -> Times:
    """One update of the stop, as the mean of :data:`UPDATES`, and one iteration by hand, at ``size`` × ``size``."""
    shape = [3, size, size]
    stop = MovingVariance(1, shape).to(device())
    outputs = torch.rand(2, 1, *shape, device=device())

    def updates() -> float:
        start = now()
        for step in range(UPDATES):
            stop.update(step, outputs[step % 2])
        return (now() - start) / UPDATES

    hand = loop_by_hand([*PAPER, "--data.size", str(size)], steps=1, epochs=1)
    return interleaved({"the stop": updates, "an iteration": hand}, repeats)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--epochs", type=int, default=1, help="timed in each round (default: 1)")
    parser.add_argument("--iterations", type=int, default=50, help="of an epoch at 128×128 (default: 50)")
    parser.add_argument("--paper-iterations", type=int, default=5, help="of one at 256×256 (default: 5)")
    parser.add_argument("--stop-size", type=int, default=512, help="pixels of a side for the stop (default: 512)")
    parser.add_argument("--check-stop", type=float, metavar="LIMIT", help="the same for the stop's share")
    args = parser.parse_args()
    status = 0
    for name, config, steps in (
        ("128×128, narrow network", NARROW, args.iterations),
        ("256×256, the paper's network", [*PAPER, "--data.size", "256"], args.paper_iterations),
    ):
        times = iterations(config, steps, args.epochs, args.repeats)
        report(f"deep image prior, {name}: {steps} iterations", times, "floor")
        status = max(status, verdict(ratios(times, "floor")["train.py"], args.check))
        print()
    times = stop_against_an_iteration(args.stop_size, args.repeats)
    report(
        f"deep image prior: the stop's share of an iteration at {args.stop_size}×{args.stop_size}",
        times,
        "an iteration",
    )
    return max(status, verdict(ratios(times, "an iteration")["the stop"], args.check_stop))


if __name__ == "__main__":
    raise SystemExit(main())
