"""Batch norm over all ranks: that of one process, and on two ranks that of the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.distributed import world_size
from lit_models.networks.batch_norm import GlobalBatchNorm2d
from tests.two_ranks import on_two_ranks


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


def normalized_on_a_rank() -> dict[str, Any]:
    """Everything that two ranks compute together."""
    rank = dist.get_rank()
    results: dict[str, Any] = {"world size": world_size()}
    for split, members in SPLITS.items():
        for name, options in NORMS.items():
            results[f"{name} {split}"] = normalize(GlobalBatchNorm2d(3, **options), members[rank])
    results["constant"] = GlobalBatchNorm2d(3)(CONSTANTS.expand(4, 3, 8, 8)).detach()
    results["half"] = GlobalBatchNorm2d(3)(norm_input()[0][0][SPLITS["equal"][rank]].bfloat16()).dtype
    norm = GlobalBatchNorm2d(3)
    norm(norm_input()[0][rank])
    results["evaluation"] = norm.eval()(norm_input()[0][0]).detach()
    results["statistics"] = norm.state_dict()
    return results


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    """What each of two ranks computed."""
    return on_two_ranks(normalized_on_a_rank)


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


def test_batch_norm_on_two_ranks_evaluates_by_its_statistics_and_keeps_the_type(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        assert results["half"] == torch.bfloat16
        norm = nn.BatchNorm2d(3)
        norm.load_state_dict(results["statistics"])
        expected = norm.eval()(norm_input()[0][0])
        assert torch.equal(results["evaluation"], expected.detach())
