"""What is stacked with a second `-c`, and the environments that start the processes of one run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.strategies import FSDPStrategy

from experiments.callbacks.figures import Figures
from experiments.cli import CLI, build, locate
from experiments.run_folder import RunFolder, new_run_id
from tests.conftest import QUIET, REPOSITORY
from tests.slurm.conftest import free_port

OVERLAYS = sorted((REPOSITORY / "configs" / "overlays").glob("*.yaml"))
CONFIG = REPOSITORY / "configs" / "vqa" / "sort_of_clevr.yaml"
SHRINK = REPOSITORY / "tests" / "contracts" / "shrink" / "vqa" / "sort_of_clevr.yaml"
TINY = [
    *("-c", CONFIG, "-c", SHRINK, "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2"),
    *("--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1", "--figures.every_n_epochs", "null"),
]


def leaves(settings: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; lists sorted."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, list):
            value = sorted(value, key=str)  # a set, where the argument is one, and then printed in any order
        inner = leaves(value) if isinstance(value, dict) else {"": value}
        flat |= {f"{key}.{name}".rstrip("."): leaf for name, leaf in inner.items()}
    return flat


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_parses_on_a_configuration(overlay: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        build(["fit", "-c", str(CONFIG), "-c", str(overlay), "--print_config"])
    assert exit_status.value.code in (0, None)
    printed = leaves(yaml.safe_load(capsys.readouterr().out))
    settings = leaves(yaml.safe_load(overlay.read_text()))
    assert {name: printed[name] for name in settings} == settings


def test_fsdp_wraps_the_blocks_of_an_encoder() -> None:
    """The strategy is made as the command line makes it; only to train with it takes GPUs."""
    from jsonargparse import ArgumentParser
    from torchvision.models.resnet import BasicBlock, Bottleneck, resnet18

    parser = ArgumentParser()
    parser.add_argument("--strategy", type=FSDPStrategy)
    overlay = yaml.safe_load((REPOSITORY / "configs/overlays/fsdp.yaml").read_text())
    parsed = parser.parse_object({"strategy": overlay["trainer"]["strategy"]})
    strategy = parser.instantiate_classes(parsed).strategy
    policy = strategy.kwargs["auto_wrap_policy"]
    assert policy._module_classes == {BasicBlock, Bottleneck}
    assert any(policy(module=module, recurse=False, nonwrapped_numel=0) for module in resnet18().modules())
    assert strategy._state_dict_type == "full", "one file a checkpoint"


def test_no_figures_where_the_weights_are_spread(tmp_path: Path) -> None:
    figures = Figures()
    figures.folder = tmp_path / "figures"
    trainer: Any = SimpleNamespace(strategy=FSDPStrategy(), loggers=[])

    def illustrate(batch: Any) -> None:
        raise AssertionError("the first rank alone would wait for the others")

    module: Any = SimpleNamespace(illustrate=illustrate)
    with pytest.warns(UserWarning, match="no figures for test"):
        figures.write(trainer, module, "test")
    assert not figures.folder.exists()


@pytest.mark.slow
def test_matmul_precision_is_of_the_run(fit: Callable[..., CLI]) -> None:
    fit(*TINY, "--matmul_precision", "high")
    assert torch.get_float32_matmul_precision() == "high"
    fit(*TINY)
    assert torch.get_float32_matmul_precision() == "highest"


def options_of(run_id: str | None = None, ckpt_path: str | None = None) -> Any:
    run = SimpleNamespace(name="vqa/easy_vqa", id=run_id, root=None)
    return SimpleNamespace(run=run, ckpt_path=ckpt_path)


def finished(run_id: str) -> Path:
    """A run with a state to go on from, as far as `last` looks."""
    folder = RunFolder(Path(os.environ["LIT_RUNS"]) / "vqa" / "easy_vqa" / run_id)
    folder.checkpoints.mkdir(parents=True)
    folder.manifest.write_text("{}")
    torch.save({"state_dict": {}}, folder.checkpoints / "step=00000001.ckpt")
    return folder.path


def test_torchrun_names_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    finished("other")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "my_run")
    assert locate("fit", options_of())[0].id == "torchrun-my_run"
    folder, checkpoint = locate("fit", options_of(ckpt_path="last"))
    assert (folder.id, checkpoint) == ("torchrun-my_run", None), "a first start, whatever ran before"
    mine = finished("torchrun-my_run")
    finished("newer")
    assert locate("fit", options_of(ckpt_path="last"))[1] == mine / "checkpoints" / "step=00000001.ckpt"
    assert locate("fit", options_of("chosen"))[0].id == "chosen"


def test_torchrun_standalone_goes_on_with_the_newest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    newest = finished("newest")
    made_up = "3f2b1c9e-0a4d-4c55-9d0a-6a7f1d2e3b4c"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", made_up)
    assert locate("fit", options_of())[0].id == f"torchrun-{made_up}"
    assert locate("fit", options_of(ckpt_path="last"))[0].path == newest


def test_processes_without_a_common_id_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "LIGHTNING_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ValueError, match="--rdzv-id"):
        new_run_id()


@pytest.mark.slow
def test_two_torchrun_make_one_run(tmp_path: Path) -> None:
    """Two machines on one, each with its own torchrun, meet and write one folder."""
    torchrun = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1, "--rdzv-id", "both"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--local-addr", "127.0.0.1"),
    ]
    program = [REPOSITORY / "train.py", "fit", *TINY, "-c", REPOSITORY / "configs/overlays/multinode.yaml"]
    more = [*QUIET, "--trainer.devices", 1, "--ckpt_path", "last"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    command = [*torchrun, *program, *more]
    machines = [
        subprocess.Popen(
            [str(part) for part in command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for _ in range(2)
    ]
    try:
        outputs = [machine.communicate(timeout=240)[0] for machine in machines]
    finally:
        for machine in machines:
            if machine.poll() is None:
                os.killpg(machine.pid, signal.SIGKILL)
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(outputs)
    lines = [line for output in outputs for line in output.splitlines() if line.startswith("batch:")]
    assert lines == ["batch: 4 per device x 2 devices x accumulation 1 = 8 global"], "said once"
    (folder,) = map(RunFolder, (tmp_path / "runs" / "vqa" / "sort_of_clevr").iterdir())
    assert folder.id == "torchrun-both"
    assert len(json.loads(folder.manifest.read_text())["starts"]) == 1
    assert json.loads(folder.summary.read_text())["last"]["step"] == 4
    assert json.loads(folder.summary.read_text())["test"]
