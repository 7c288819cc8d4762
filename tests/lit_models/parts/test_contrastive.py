"""What SimCLR and MoCo share, and their losses against naive loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_models.networks.batch_norm import GlobalBatchNorm2d, SplitBatchNorm2d, split_batch_norm
from lit_models.networks.heads import projection_head
from lit_models.parts.contrastive import cross_entropy_of_positives, similarities, spread
from lit_models.parts.optim import LARS
from lit_models.simclr import nt_xent, pairwise_logits


def naive_nt_xent(z: Tensor, temperature: float) -> Tensor:
    """Equation 1, pair by pair."""
    views, count, _ = z.shape
    flat = F.normalize(z, dim=2).flatten(0, 1)
    terms = []
    for i in range(views * count):
        for j in range(views * count):
            if i == j or i % count != j % count:
                continue
            numerator = torch.exp(flat[i] @ flat[j] / temperature)
            denominator = sum(torch.exp(flat[i] @ flat[k] / temperature) for k in range(views * count) if k != i)
            terms.append(-torch.log(numerator / denominator))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("views", [2, 3])
def test_nt_xent_is_equation_1(views: int) -> None:
    torch.manual_seed(0)
    z = torch.randn(views, 5, 4, dtype=torch.double, requires_grad=True)
    loss, expected = nt_xent(z.float(), 0.5), naive_nt_xent(z, 0.5)
    assert float(loss) == pytest.approx(float(expected), abs=1e-6)
    (ours,) = torch.autograd.grad(loss, z)
    (theirs,) = torch.autograd.grad(expected, z)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_nt_xent_of_known_similarities() -> None:
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    z = torch.stack([one, other]).expand(2, 2, 2)  # both views equal, the images at right angles
    expected = -math.log(math.exp(1 / 0.1) / (math.exp(1 / 0.1) + 2))
    assert float(nt_xent(3 * z, 0.1)) == pytest.approx(expected, abs=1e-6), "of any length"
    assert float(nt_xent(torch.ones(2, 4, 3), 0.1)) == pytest.approx(math.log(7)), "a point: chance among 2N − 1"


def test_no_view_is_its_own_candidate_and_the_positives_are_the_other_views() -> None:
    z = F.normalize(torch.randn(3, 4, 8), dim=2)
    logits, positives = pairwise_logits(z, 1.0)
    assert logits.shape == (12, 12)
    assert torch.equal(logits.isinf(), torch.eye(12, dtype=torch.bool))
    for row in range(12):
        expected = {c for c in range(12) if c % 4 == row % 4 and c != row}
        assert set(positives[row].tolist()) == expected


def test_nt_xent_is_finite_in_half_precision_at_a_low_temperature() -> None:
    z = torch.randn(2, 16, 8).bfloat16().requires_grad_()
    loss = nt_xent(z, 0.005)
    loss.backward()
    assert bool(loss.isfinite())
    assert loss.dtype == torch.float
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())


def test_similarities_of_a_case_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 1.0]])
    found = similarities(logits, torch.tensor([[0], [2]]), temperature=0.5)
    assert float(found["positive_similarity"]) == pytest.approx((2 + 1) / 2 * 0.5)
    assert float(found["negative_similarity"]) == pytest.approx((1 + 3) / 2 * 0.5)
    assert float(found["contrastive_accuracy"]) == 0.5
    alone = similarities(torch.tensor([[2.0, -torch.inf]]), torch.tensor([[0]]), 0.5)
    assert float(alone["negative_similarity"]) == -1, "no negative yet"


def test_several_positives_are_averaged() -> None:
    logits = torch.randn(3, 6)
    positives = torch.tensor([[0, 1], [2, 3], [4, 5]])
    log_p = logits.log_softmax(1)
    expected = -torch.stack([log_p[i, j] for i in range(3) for j in positives[i].tolist()]).mean()
    torch.testing.assert_close(cross_entropy_of_positives(logits, positives), expected)


def test_spread_is_one_on_a_sphere_and_none_in_a_point() -> None:
    torch.manual_seed(0)
    assert float(spread(F.normalize(torch.randn(5000, 64), dim=1))) == pytest.approx(1, abs=0.02)
    assert float(spread(F.normalize(torch.ones(50, 64), dim=1))) == pytest.approx(0, abs=1e-6)


# Heads.


@pytest.mark.parametrize(("layers", "linear"), [(1, [(6, 3)]), (2, [(6, 5), (5, 3)]), (3, [(6, 5), (5, 5), (5, 3)])])
@pytest.mark.parametrize("norm", [False, True])
def test_projection_heads(layers: int, linear: list[tuple[int, int]], norm: bool) -> None:
    head = projection_head(6, 5, 3, layers, norm)
    assert [(m.in_features, m.out_features) for m in head if isinstance(m, nn.Linear)] == linear
    assert not isinstance(head[-1], nn.ReLU)
    assert sum(isinstance(m, nn.BatchNorm1d) for m in head) == layers * norm
    assert sum(isinstance(m, nn.ReLU) for m in head) == layers - 1
    assert head(torch.randn(4, 6)).shape == (4, 3)


def test_a_head_of_no_layers_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="head_layers=0: expected 1, 2 or 3"):
        projection_head(6, 5, 3, 0)


# Batch normalization in groups.


def test_split_batch_norm_normalizes_each_group_by_itself() -> None:
    torch.manual_seed(0)
    split, groups = SplitBatchNorm2d(3), [nn.BatchNorm2d(3) for _ in range(4)]
    split.splits = 4
    for norm in (split, *groups):
        nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        x = torch.randn(8, 3, 5, 5) * 3 + 1
        output = split(x)
        for g, norm in enumerate(groups):
            torch.testing.assert_close(output[g::4], norm(x[g::4]))
    torch.testing.assert_close(split.running_mean, torch.stack([n.running_mean for n in groups]).mean(0))
    torch.testing.assert_close(split.running_var, torch.stack([n.running_var for n in groups]).mean(0))
    reference = nn.BatchNorm2d(3)
    reference.load_state_dict(split.state_dict())
    torch.testing.assert_close(split.eval()(x), reference.eval()(x))


def test_split_batch_norm_keeps_the_layout() -> None:
    norm = SplitBatchNorm2d(3)
    norm.splits = 2
    x = torch.randn(4, 3, 5, 5)
    last = norm(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, norm(x))


def test_groups_of_unequal_size_are_refused() -> None:
    norm = SplitBatchNorm2d(3)
    norm.splits = 4
    with pytest.raises(
        ValueError, match="bn_splits=4 with 6 samples on each of 1 ranks: expected groups of equal size"
    ):
        norm(torch.randn(6, 3, 2, 2))


def test_every_batch_norm_of_a_network_is_split() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), GlobalBatchNorm2d(4), nn.Sequential(GlobalBatchNorm2d(4)))
    split_batch_norm(network, 2)
    assert [type(m).__name__ for m in network.modules()].count("SplitBatchNorm2d") == 2


# LARS.


def naive_lars(weights: list[Tensor], gradients: list[list[Tensor]], lr: float, decay: float, trust: float) -> None:
    buffers = [torch.zeros_like(w) for w in weights]
    for step in gradients:
        for w, g, v in zip(weights, step, buffers, strict=True):
            direction, ratio = g, 1.0
            if w.dim() > 1:
                direction = g + decay * w
                lengths = float(w.norm()), float(direction.norm())
                ratio = trust * lengths[0] / lengths[1] if min(lengths) > 0 else 1.0
            v.mul_(0.9).add_(direction, alpha=lr * ratio)
            w.sub_(v)


def test_lars_is_its_formula() -> None:
    torch.manual_seed(0)
    initial = [torch.randn(4, 3), torch.randn(4), torch.zeros(2, 2), torch.randn(2, 3, 3, 3), torch.randn(())]
    gradients = [[torch.randn_like(w) for w in initial] for _ in range(5)]
    gradients[2][0].zero_()
    expected = [w.clone() for w in initial]
    naive_lars(expected, gradients, lr=0.7, decay=0.01, trust=0.02)
    params = [nn.Parameter(w.clone()) for w in initial]
    optimizer = LARS(params, lr=0.7, weight_decay=0.01, trust=0.02)
    for step in gradients:
        for p, g in zip(params, step, strict=True):
            p.grad = g.clone()
        optimizer.step()
    for p, w in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), w)


def test_lars_exempts_by_shape_also_inside_a_head_and_a_shortcut() -> None:
    from lit_models.networks.encoders import image_encoder

    network = nn.Sequential(image_encoder("resnet18", [3, 8, 8], width=4), projection_head(32, 8, 4, 3, norm=True))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = LARS(network.parameters(), lr=1.0, momentum=0.0, weight_decay=1.0)
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in network.named_parameters():
        decayed = not torch.equal(p.detach(), before[name])
        assert decayed == (p.dim() > 1), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0: expected at least 0"),
        ({"momentum": 1.0}, r"momentum=1.0: expected a number in \[0, 1\)"),
    ],
)
def test_mistakes_with_lars_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LARS([nn.Parameter(torch.zeros(2))], **options)
