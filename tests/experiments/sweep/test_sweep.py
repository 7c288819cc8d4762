"""Sweeps without a server: what is run, what becomes of it, and that W&B would run the same."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.cli import build
from experiments.sweep.command import main
from experiments.sweep.sweep_file import DEFAULT_COMMAND, expand, fill, make_trials, read_sweep
from tests.conftest import DATA, QUIET, REPOSITORY

SWEEPS = sorted((REPOSITORY / "configs" / "sweeps").glob("*.yaml"))

STUB = """
import json, os, sys, time
from pathlib import Path

options = dict(word.lstrip("-").split("=", 1) for word in sys.argv[2:])
folder = Path(os.environ["LIT_RUNS"], "stub", "data", options["run.id"])
folder.mkdir(parents=True, exist_ok=True)
with (folder / "starts").open("a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
print("" if "STUB_SILENT" in os.environ else "working on it")
sleep = float(os.environ.get("STUB_SLEEP", "0"))
with Path(os.environ["LIT_RUNS"], "times").open("a") as file:
    print(time.time(), 1, file=file, flush=True)
    time.sleep(sleep)
    print(time.time(), -1, file=file)
if options["x"] == os.environ.get("STUB_FAILS"):
    print("error: x is wrong", file=sys.stderr)
    sys.exit(3)
test = {} if options["x"] == os.environ.get("STUB_UNTESTED") else {"test/accuracy": float(options["x"])}
(folder / "summary.json").write_text(json.dumps({"best": {"val/accuracy": 0.25}, "last": {}, "test": test}))
"""
"""a program that leaves what a run leaves, and every command line it was called with"""


def sweep_of(parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    base = {"name": "s", "method": "grid", "program": "stub.py", "command": DEFAULT_COMMAND, "seed": 0, "run_cap": None}
    return base | {"parameters": parameters} | more


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A sweep of x = 1, 2, 3 over the stub; returns its file."""
    (tmp_path / "stub.py").write_text(STUB)
    command = ["${interpreter}", "${program}", "fit", "${args}"]
    content = sweep_of({"x": {"values": [1, 2, 3]}, "y.z": {"value": "a"}}, command=command, name="my sweep")
    del content["seed"], content["run_cap"]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "s.yaml"


def record() -> dict[int, dict[str, Any]]:
    """The record's trials by x."""
    content = json.loads(Path("runs/sweeps/my-sweep/sweep.json").read_text())
    return {trial["parameters"]["x"]: trial for trial in content["trials"]}


def starts(trial: dict[str, Any]) -> list[list[str]]:
    """The command lines that a trial's stub saw."""
    return [json.loads(line) for line in (Path(trial["run"]) / "starts").read_text().splitlines()]


def test_a_grid_is_every_combination() -> None:
    parameters = {
        "a": {"values": [1, 2]},
        "b": {"min": 3, "max": 5},
        "c": {"value": "x"},
        "d": {"values": [True, True]},
    }
    found = expand(sweep_of(parameters))
    assert found == [{"a": a, "b": b, "c": "x", "d": True} for a in (1, 2) for b in (3, 4, 5)]
    assert expand(sweep_of(parameters, run_cap=4)) == found[:4]


def test_random_draws_follow_their_distributions() -> None:
    parameters = {
        "n": {"min": 1, "max": 4},
        "p": {"min": 0.0, "max": 0.5},
        "lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
        "kind": {"values": ["a", "b"], "probabilities": [0.9, 0.1]},
        "fixed": {"value": 7},
    }
    sweep = sweep_of(parameters, method="random", run_cap=2000)
    found = expand(sweep)
    assert len(found) == 2000
    counts = [sum(trial["n"] == n for trial in found) for n in (1, 2, 3, 4)]
    assert sum(counts) == 2000
    assert all(400 < count < 600 for count in counts)
    assert all(0 <= trial["p"] <= 0.5 for trial in found)
    assert sum(trial["p"] for trial in found) / 2000 == pytest.approx(0.25, abs=0.02)
    assert all(1e-4 <= trial["lr"] <= 1e-2 for trial in found)
    assert sum(math.log10(trial["lr"]) for trial in found) / 2000 == pytest.approx(-3, abs=0.05)
    assert sum(trial["kind"] == "a" for trial in found) / 2000 == pytest.approx(0.9, abs=0.03)
    assert {trial["fixed"] for trial in found} == {7}

    assert expand(sweep | {"run_cap": 5}) == found[:5], "more trials come after the same first ones"
    assert expand(sweep | {"run_cap": 5, "seed": 1}) != found[:5]


def test_random_trials_differ_and_end() -> None:
    found = expand(sweep_of({"a": {"values": [1, 2]}, "b": {"values": [1, 2]}}, method="random", run_cap=9))
    assert sorted((trial["a"], trial["b"]) for trial in found) == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_ids_follow_from_name_and_parameters() -> None:
    parameters = {"a": {"values": [1, 2]}, "b": {"value": 3}}
    ids = [trial.id for trial in make_trials(sweep_of(parameters))]
    assert len(set(ids)) == 2
    assert ids == [trial.id for trial in make_trials(sweep_of(dict(reversed(parameters.items()))))]
    assert not set(ids) & {trial.id for trial in make_trials(sweep_of(parameters, name="t"))}
    assert make_trials(sweep_of(parameters))[0].command[-1] == f"--run.id={ids[0]}"


MACROS = [
    "env",
    "program",
    "args",
    "args_no_hyphens",
    "args_no_equals",
    "args_no_boolean_flags",
    "args_json",
    "args_append_hydra",
    "args_override_hydra",
]


@pytest.mark.parametrize("macro", MACROS)
def test_commands_are_filled_in_as_wandb_does(macro: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.sdk.launch.sweeps import utils as wandb_sweeps  # which takes seconds

    monkeypatch.setenv("SOMETHING", "here")
    parameters = {"model.fusion": "concat", "lr": 1e-05, "on": True, "off": False, "sizes": [8, 16], "none": None}
    command = ["run", f"${{{macro}}}", "--path=${envvar:SOMETHING}/x", "${envvar:NOTHING}"]
    values = wandb_sweeps.create_sweep_command_args({"args": {k: {"value": v} for k, v in parameters.items()}})
    values |= {"env": ["/usr/bin/env"], "program": ["train.py"]}
    expected = []
    for word in wandb_sweeps.create_sweep_command(list(command)):
        expected += values[word[2:-1]] if word.startswith("${") else [word]
    assert fill(command, "train.py", parameters) == expected
    assert wandb_sweeps.DEFAULT_SWEEP_COMMAND == DEFAULT_COMMAND


@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: path.stem)
def test_a_shipped_sweep_runs_here_and_at_wandb(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    content = yaml.safe_load(file.read_text())
    assert set(content) <= {"name", "program", "method", "metric", "parameters", "command", "run_cap", "description"}
    assert content["program"] == "train.py"
    assert content["command"][:4] == ["${env}", "${interpreter}", "${program}", "fit"]
    assert content["command"][4] == "-c"
    assert "${args}" in content["command"]
    sweep = read_sweep(file)
    for parameters in expand(sweep)[:: max(1, len(expand(sweep)) - 1)]:  # the first and the last
        _, _, _, *args = fill(sweep["command"], "train.py", parameters)
        with pytest.raises(SystemExit) as status:
            build([*args, "--print_config"])
        assert status.value.code in (0, None)
        printed = yaml.safe_load(capsys.readouterr().out)
        for name, value in parameters.items():
            if name == "config":  # a file, whose values are in what is printed
                asked = yaml.safe_load(Path(value).read_text())
                assert printed["model"]["class_path"] == asked["model"]["class_path"]
                assert printed["run"]["name"] == asked["run"]["name"]
                continue
            part, _, rest = name.partition(".")
            found = printed[part].get("init_args", printed[part])[rest] if rest else printed[part]
            assert found == value


def test_a_finished_sweep_is_recorded_and_not_run_again(stub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(stub)]) == 0
    trials = record()
    assert [trial["state"] for trial in trials.values()] == ["finished"] * 3
    for x, trial in trials.items():
        (args,) = starts(trial)
        assert args == ["fit", f"--x={x}", "--y.z=a", f"--run.id={trial['id']}"]
        assert "working on it" in Path(trial["log"]).read_text()
        assert trial["exit_status"] == 0
    assert "finished" in capsys.readouterr().out
    seconds = {x: trial["seconds"] for x, trial in trials.items()}

    assert main([str(stub)]) == 0
    assert all(len(starts(trial)) == 1 for trial in record().values())
    assert {x: trial["seconds"] for x, trial in record().items()} == seconds


def test_a_failed_trial_is_recorded_and_the_rest_goes_on(
    stub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STUB_FAILS", "2")
    monkeypatch.setenv("STUB_UNTESTED", "3")
    assert main([str(stub)]) == 1
    trials = record()
    assert [trial["state"] for trial in trials.values()] == ["finished", "failed", "failed"]
    assert (trials[2]["exit_status"], trials[2]["last_line"]) == (3, "error: x is wrong")
    assert "without a test" in trials[3]["last_line"]
    assert "exit status 3: error: x is wrong" in capsys.readouterr().out

    monkeypatch.delenv("STUB_FAILS")
    monkeypatch.delenv("STUB_UNTESTED")
    monkeypatch.setenv("STUB_SILENT", "1")
    assert main([str(stub)]) == 0, "a repeated call takes up what is not finished"
    trials = record()
    assert [len(starts(trial)) for trial in trials.values()] == [1, 2, 2]
    assert starts(trials[2])[1] == [*starts(trials[2])[0], "--ckpt_path=last"]
    assert trials[2]["state"] == "finished"
    assert trials[2]["last_line"] == "", "neither the complaint of the call before nor the command"


def test_a_program_that_cannot_be_started(stub: Path) -> None:
    content = yaml.safe_load(stub.read_text())
    content["command"][0] = "./no_such_interpreter"
    stub.write_text(yaml.safe_dump(content))
    assert main([str(stub)]) == 1
    assert all(trial["state"] == "failed" and trial["exit_status"] == 127 for trial in record().values())
    assert "no_such_interpreter" in record()[1]["last_line"]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_so_many_at_a_time(jobs: int, stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_SLEEP", "0.7")
    assert main([str(stub), "--jobs", str(jobs)]) == 0
    times = sorted(tuple(map(float, line.split())) for line in Path("runs/times").read_text().splitlines())
    at_once = [sum(change for _, change in times[: i + 1]) for i in range(len(times))]
    assert max(at_once) == jobs


def test_a_dry_run_shows_and_does_nothing(stub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(stub), "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [f"--x={x} " in line for x, line in enumerate(lines, start=1)] == [True] * 3
    assert not Path("runs").exists()


def test_an_interrupted_sweep_ends_its_trials_and_goes_on_later(stub: Path) -> None:
    environment = os.environ | {"STUB_SLEEP": "60", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(REPOSITORY / "train.py"), "sweep", str(stub), "--jobs", "2"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    times = Path("runs/times")
    for _ in range(300):
        if times.is_file() and len(times.read_text().splitlines()) == 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 130
    assert [trial["state"] for trial in record().values()] == ["stopped", "stopped", "waiting"]
    assert main([str(stub)]) == 0
    assert [len(starts(trial)) for trial in record().values()] == [2, 2, 1]


def test_where_the_runs_are(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("run:\n  root: elsewhere\n")
    parameters = {"x": {"value": 1}}
    roots = {
        ("${program}",): tmp_path / "runs",
        ("${program}", "-c", "c.yaml"): Path("elsewhere"),
        ("${program}", "--config=c.yaml", "--run.root", "there"): Path("there"),
    }
    for command, root in roots.items():
        assert make_trials(sweep_of(parameters, command=list(command)))[0].root == root


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"method": "bayes"}, ["method=bayes", "grid or random"]),
        ({"method": "random"}, ["run_cap"]),
        ({"method": "random", "run_cap": "ten"}, ["run_cap=ten"]),
        ({"program": "trian.py"}, ["program=trian.py", "no such file"]),
        ({"parameters": {}}, ["not a sweep"]),
        ({"command": ["${program}", "${arg}"]}, ["${arg} is unknown", "did you mean 'args'"]),
        ({"parameters": {"x": 3}}, ["parameters.x", "value, values, or min and max"]),
        ({"parameters": {"x": {"values": 3}}}, ["values=3", "expected a list"]),
        ({"parameters": {"x": {"min": 0.1, "max": 1.0}}}, ["parameters.x", "no grid over uniform"]),
        ({"parameters": {"x": {"min": "1e-3", "max": 1.0}}}, ["min=1e-3", "1.0e-3"]),
        ({"parameters": {"x": {"min": 2, "max": 1}}}, ["min=2, max=1"]),
        (
            {"parameters": {"x": {"min": 1, "max": 2, "distribution": "unifrom"}}},
            ["distribution=unifrom", "did you mean 'uniform'"],
        ),
        ({"parameters": {"x": {"min": 0, "max": 2, "distribution": "log_uniform_values"}}}, ["above 0"]),
        ({"parameters": {"x": {"values": [1], "probabilities": [0.5, 0.5]}}}, ["probabilities=[0.5, 0.5]"]),
        ({"parameters": {"model": {"parameters": {"x": {"value": 1}}}}}, ["names with dots"]),
    ],
    ids=str,
)
def test_mistakes(change: dict[str, Any], expected: list[str], stub: Path, mistake: Callable[..., str]) -> None:
    stub.write_text(yaml.safe_dump(yaml.safe_load(stub.read_text()) | change))
    line = mistake("sweep", stub)
    for part in expected:
        assert part in line
    assert not Path("runs").exists()


def test_mistakes_in_the_arguments(stub: Path, mistake: Callable[..., str]) -> None:
    assert "did you mean" in mistake("sweep", stub.with_name("ss.yaml"))
    assert "--jobs=0" in mistake("sweep", stub, "--jobs", "0")
    assert "did you mean '--jobs'" in mistake("sweep", stub, "--job", "2")
    stub.write_text("a: [1")
    assert "not valid YAML" in mistake("sweep", stub)


def test_another_command_needs_another_name(stub: Path, mistake: Callable[..., str]) -> None:
    assert main([str(stub)]) == 0
    content = yaml.safe_load(stub.read_text())
    stub.write_text(yaml.safe_dump(content | {"command": [*content["command"], "--z=1"]}))
    assert "had a different command" in mistake("sweep", stub)
    Path("runs/sweeps/my-sweep/sweep.json").write_text("{")
    assert "not valid JSON" in mistake("sweep", stub)


@pytest.mark.slow
def test_real_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two short trainings, then the comparison of what they left."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("LIT_DATA", str(DATA))
    small = REPOSITORY / "tests" / "contracts" / "shrink" / "vqa" / "easy_vqa.yaml"
    content = yaml.safe_load((REPOSITORY / "configs" / "sweeps" / "vqa.yaml").read_text())
    content["parameters"]["seed_everything"]["values"] = [0]
    limits = ("max_epochs=1", "limit_train_batches=2", "limit_val_batches=1", "limit_test_batches=1")
    content["command"][6:6] = ["-c", str(small), *(f"--trainer.{limit}" for limit in limits)]
    content["command"] += [f"{name}={value}" for name, value in zip(QUIET[::2], QUIET[1::2], strict=True)]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    assert main([str(tmp_path / "s.yaml"), "--jobs", "2"]) == 0
    capsys.readouterr()

    command = [sys.executable, "train.py", "compare", str(tmp_path / "runs"), "--picture", "", "--format", "json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert [group["config"] for group in found["groups"]] == [
        {"model.init_args.fusion": fusion} for fusion in ("concat", "product")
    ]
    assert found["left_out"] == {}
