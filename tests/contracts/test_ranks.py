"""Two ranks with half of the batch each compute what one rank with all of it does.

In double precision, so that what is compared is the mathematics: the gradient of a convolution before a batch norm is a
small difference of large numbers, of which single precision leaves three digits.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import QUIET
from tests.contracts.ranks import watched
from tests.two_ranks import on_two_ranks

OPTIONS = [
    *("--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1, "--trainer.log_every_n_steps", 1),
    *("--trainer.precision", "64-true", "--test_after_fit", "false"),
]


def one_and_two_ranks(config: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What one rank with the whole batch and two with half of it each have seen."""
    files = [Path(value) for option, value in pairwise(config) if option == "-c"]
    settings = [yaml.safe_load(file.read_text()) for file in files]
    batch_size = next(s["data"]["init_args"]["batch_size"] for s in settings[::-1] if "data" in s)
    half = max(1, batch_size // 2)

    def command(ranks: int, strategy: str) -> list[str]:
        more = [*("--data.batch_size", 2 * half // ranks, "--trainer.devices", ranks, "--trainer.strategy", strategy)]
        return ["fit", *config, *map(str, [*OPTIONS, *more, "--run.id", f"{ranks}-ranks"]), *QUIET]

    return watched(command(1, "auto")), on_two_ranks(watched, command(2, "ddp"))[0]


def test_two_ranks_equal_one(bare: list[str]) -> None:
    one, two = one_and_two_ranks(bare)
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["gradients"].keys() == one["gradients"].keys()
    for name, expected in one["gradients"].items():
        difference = (two["gradients"][name] - expected).abs().max()
        assert difference <= 1e-5 * float(expected.abs().max()) + 1e-12, name
    evaluated = {name: value for name, value in one["metrics"].items() if name.startswith("val/")}
    found = {name: two["metrics"][name] for name in evaluated}
    assert found == pytest.approx(evaluated, rel=1e-5, abs=1e-5, nan_ok=True)
