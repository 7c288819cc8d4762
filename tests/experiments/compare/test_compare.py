"""Comparing runs: groups, numbers by hand, and nothing dropped in silence."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.compare.command import main
from experiments.compare.finished_runs import read_run
from experiments.compare.picture import draw
from experiments.run_folder import RunFolder
from tests.conftest import REPOSITORY

FUSIONS = {"concat": [0.8, 0.9, 0.7], "product": [0.5, 0.6, 0.7]}
"""test accuracy of seeds 0, 1, 2: means 0.8 and 0.6, standard deviations 0.1 and 0.1"""


def make_run(path: Path, accuracy: float, seed: int = 0, **init_args: Any) -> Path:
    """The folder of a finished run of four validations, made up."""
    path.mkdir(parents=True)
    config = {
        "seed_everything": seed,
        "trainer": {"max_epochs": 4, "callbacks": None},
        "model": {
            "class_path": "lit_models.vqa.VQA",
            "init_args": {"fusion": "concat", "channels": [8, 16]} | init_args,
        },
        "data": {"class_path": "datamodules.easy_vqa.EasyVQA", "init_args": {"root": str(path)}},
        "run": {"name": "vqa/easy_vqa", "id": None, "root": None, "tags": [path.name]},
        "test_after_fit": True,
        "best": {"monitor": "val/accuracy", "mode": "max"},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "manifest.json").write_text(json.dumps({"starts": [{"git": {"commit": "a" * 40, "dirty": False}}]}))
    summary = {
        "best": {"step": 30, "epoch": 2, "val/accuracy": accuracy + 0.05},
        "last": {"step": 40, "epoch": 3, "val/accuracy": accuracy - 0.05},
        "test": {"test/accuracy": accuracy, "test/loss": 1.0},
        "wall_seconds": 100.0 + 10 * seed,
        "samples_per_second": 1000.0,
    }
    (path / "summary.json").write_text(json.dumps(summary))
    rows = ["step,epoch,train/loss,val/accuracy", "5,0,2.5,"]
    rows += [f"{step},{i},,{accuracy * (i + 1) / 4}" for i, step in enumerate((10, 20, 30, 40))]
    (path / "metrics.csv").write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two fusions of three seeds."""
    root = tmp_path / "runs" / "vqa" / "easy_vqa"
    for fusion, accuracies in FUSIONS.items():
        for seed, accuracy in enumerate(accuracies):
            make_run(root / f"{fusion}-{seed}", accuracy, seed, fusion=fusion)
    return root


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """``compare(*args)`` is what ``train.py compare … --format json`` prints, without a picture unless asked for."""

    def run(*args: object) -> dict[str, Any]:
        picture = () if "--picture" in args else ("--picture", "")
        assert main([*map(str, args), *picture, "--format", "json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


def edit(file: Path, change: Callable[[Any], None]) -> None:
    content = yaml.safe_load(file.read_text())
    change(content)
    file.write_text(json.dumps(content))  # which is YAML, too


def test_groups_differ_in_more_than_the_seed(runs: Path, compare: Callable[..., dict[str, Any]]) -> None:
    found = compare(runs)
    assert [group["config"] for group in found["groups"]] == [
        {"model.init_args.fusion": "concat"},
        {"model.init_args.fusion": "product"},
    ], "seeds, tags and data folders tell no groups apart, and no key that is the same everywhere is shown"
    for group, mean in zip(found["groups"], (0.8, 0.6), strict=True):
        assert group["n"] == 3
        assert group["seeds"] == [0, 1, 2]
        assert group["metrics"]["test/accuracy"] == pytest.approx({"mean": mean, "std": 0.1})
        assert group["metrics"]["wall_seconds"] == pytest.approx({"mean": 110.0, "std": 10.0})
        assert group["metrics"]["samples_per_second"] == pytest.approx({"mean": 1000.0, "std": 0.0})
    assert found["left_out"] == {}
    assert found["notes"] == []


def test_further_columns_are_beside_the_metric(runs: Path, compare: Callable[..., Any]) -> None:
    metrics = compare(runs, "--columns", "test/loss", "best/val/accuracy")["groups"][0]["metrics"]
    assert list(metrics) == ["test/accuracy", "test/loss", "best/val/accuracy", "wall_seconds", "samples_per_second"]
    assert metrics["test/loss"] == {"mean": 1.0, "std": 0.0}


def test_a_validation_metric_is_shown_at_its_best_and_last(runs: Path, compare: Callable[..., dict[str, Any]]) -> None:
    metrics = compare(runs, "--metric", "val/accuracy")["groups"][0]["metrics"]
    assert "test/accuracy" not in metrics
    assert metrics["best/val/accuracy"] == pytest.approx({"mean": 0.85, "std": 0.1})
    assert metrics["last/val/accuracy"] == pytest.approx({"mean": 0.75, "std": 0.1})


def test_one_run_has_no_standard_deviation(runs: Path, compare: Callable[..., dict[str, Any]]) -> None:
    found = compare(runs / "concat-1")
    assert found["groups"][0]["metrics"]["test/accuracy"] == {"mean": 0.9, "std": None}


def test_places(runs: Path, compare: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    inner = runs / "concat-0" / "wandb" / "files"  # W&B keeps a config.yaml of its own there
    inner.mkdir(parents=True)
    (inner / "config.yaml").write_text("{}")
    for places in ([runs.parents[1]], [runs / "*"], [runs / "concat-*", runs / "product-*", runs / "concat-0"]):
        found = compare(*places)
        assert [group["n"] for group in found["groups"]] == [3, 3], places
        assert found["left_out"] == {}
    monkeypatch.chdir(runs)
    assert [group["n"] for group in compare(".")["groups"]] == [3, 3]


def test_by_keys(runs: Path, compare: Callable[..., dict[str, Any]]) -> None:
    by_name = compare(runs, "--by", "model.fusion")
    assert by_name["groups"] == compare(runs, "--by", "model.init_args.fusion")["groups"]
    assert [group["n"] for group in by_name["groups"]] == [3, 3]
    both = compare(runs, "--by", "model.fusion", "seed_everything")
    assert [group["n"] for group in both["groups"]] == [1] * 6
    mixed = compare(runs, "--by", "best.mode")
    assert [group["n"] for group in mixed["groups"]] == [6]
    assert any("differ in model.fusion" in note for note in mixed["notes"]), "a mixed group is called one"


def test_other_classes_hide_their_own_arguments(runs: Path, compare: Callable[..., dict[str, Any]]) -> None:
    other = make_run(runs / "other", 0.5, temperature=0.1)

    def change(config: dict[str, Any]) -> None:
        config["model"] = {"class_path": "lit_models.simclr.SimCLR", "init_args": {"temperature": 0.1, "channels": [8]}}

    edit(other / "config.yaml", change)
    found = compare(runs / "concat-*", other)
    assert [sorted(group["config"]) for group in found["groups"]] == [
        ["model.class_path", "model.init_args.channels"]
    ] * 2


def test_what_is_broken_or_unfinished_is_listed(runs: Path, compare: Callable[..., dict[str, Any]]) -> None:
    broken: dict[str, tuple[Callable[[Path], object], str]] = {
        "begun": (lambda run: [path.unlink() for path in run.iterdir()] and (run / ".lock").touch(), "no config.yaml"),
        "no manifest": (lambda run: (run / "manifest.json").unlink(), "no manifest.json"),
        "no summary": (lambda run: (run / "summary.json").unlink(), "no summary.json"),
        "torn": (lambda run: (run / "summary.json").write_text('{"best": {'), "summary.json: not valid JSON"),
        "list": (lambda run: (run / "summary.json").write_text("[]"), "does not contain a mapping"),
        "no yaml": (lambda run: (run / "config.yaml").write_text("a: [1"), "config.yaml is not valid YAML"),
        "untested": (lambda run: edit(run / "summary.json", lambda s: s.update(test={})), "no test in summary.json"),
        "nan": (lambda run: edit(run / "summary.json", lambda s: s["test"].update({"test/accuracy": None})), "is –"),
        "other": (lambda run: edit(run / "summary.json", lambda s: s["test"].pop("test/accuracy")), "is missing"),
    }
    for name, (breaks, _) in broken.items():
        breaks(make_run(runs / name, 0.1))
    (runs / "empty").mkdir()
    found = compare(runs / "*", "--metric", "test/accuracy")
    assert [group["n"] for group in found["groups"]] == [3, 3]
    assert set(found["left_out"]) == {str(runs / name) for name in (*broken, "empty")}
    for name, (_, reason) in broken.items():
        assert reason in found["left_out"][str(runs / name)]
    assert "step of the last validation: 40" in found["left_out"][str(runs / "untested")]


def test_only_broken_runs_are_no_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (make_run(tmp_path / "a", 0.1) / "summary.json").unlink()
    for form in ("table", "markdown", "csv", "json"):
        assert main([str(tmp_path / "a"), "--format", form]) == 0
        assert "unfinished: no summary.json" in "".join(capsys.readouterr())


def test_runs_that_are_never_tested_are_compared_by_validation(
    runs: Path, compare: Callable[..., dict[str, Any]]
) -> None:
    for run in runs.iterdir():
        edit(run / "config.yaml", lambda config: config.update(test_after_fit=False))
        edit(run / "summary.json", lambda summary: summary.update(test={}))
    assert set(compare(runs)["groups"][0]["metrics"]) >= {"best/val/accuracy", "last/val/accuracy"}


def test_remarks(runs: Path, compare: Callable[..., dict[str, Any]]) -> None:
    make_run(runs / "again", 0.8, seed=2, fusion="concat")
    edit(runs / "product-0" / "summary.json", lambda summary: summary["last"].update(step=20))
    edit(runs / "product-1" / "manifest.json", lambda manifest: manifest["starts"][0]["git"].update(dirty=True))
    notes = compare(runs)["notes"]
    assert "model.fusion=concat (n = 4): more than one run of seed 2" in notes
    assert "model.fusion=product (n = 3): the last validations were at different steps: 20, 40" in notes
    assert "the runs are of different commits: aaaaaaaaaa, aaaaaaaaaa with changes" in notes
    assert len(notes) == 3


def test_formats(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (make_run(runs / "torn", 0.1) / "summary.json").write_text("{")

    def printed(form: str) -> tuple[str, str]:
        main([str(runs), "--picture", "", "--format", form])
        captured = capsys.readouterr()
        return captured.out, captured.err

    out, err = printed("csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["model.init_args.fusion"] for row in rows] == ["concat", "product"]
    assert [float(row["test/accuracy"]) for row in rows] == pytest.approx([0.8, 0.6])
    assert [float(row["test/accuracy_std"]) for row in rows] == pytest.approx([0.1, 0.1])
    assert "torn" in err

    lines = printed("markdown")[0].splitlines()
    assert lines[0] == "| model.fusion | n | test/accuracy | wall_seconds | samples_per_second |"
    assert set(lines[1]) <= set("|-: ")
    assert lines[2] == "| concat | 3 | 0.8000 ± 0.1000 | 110.0 ± 10.0 | 1000 ± 0 |"
    assert any(str(runs / "torn") in line for line in lines)

    table = printed("table")[0]
    assert "0.6000 ± 0.1000" in table
    assert table.index("product") < table.index("not in the table") < table.index(str(runs / "torn"))


def test_the_curves_are_means_with_bands(
    runs: Path, compare: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *args, **kwargs: figures.append(figure))
    compare(runs, "--picture", "x.png")
    axes = figures[0].axes[0]
    assert axes.get_ylabel() == "val/accuracy", "the curve that goes with test/accuracy"
    line = axes.lines[0]
    assert list(line.get_xdata()) == [10, 20, 30, 40]
    assert list(line.get_ydata()) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    band = axes.collections[0].get_paths()[0].vertices
    last = band[band[:, 0] == 40, 1]
    assert (last.min(), last.max()) == pytest.approx((0.7, 0.9))
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == [
        "model.fusion=concat (n = 3)",
        "model.fusion=product (n = 3)",
    ]


def test_runs_that_were_validated_once_are_bars(
    runs: Path, compare: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in runs.glob("*/metrics.csv"):
        file.write_text("step,epoch,train/loss,val/accuracy\n10,0,,0.1\n")
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *args, **kwargs: figures.append(figure))
    compare(runs, "--picture", "x.png")
    axes = figures[0].axes[0]
    assert axes.get_xlabel() == "test/accuracy", "as in the table"
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.6, 0.8])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["product (3)", "concat (3)"]


def test_the_picture_is_written_where_it_is_said_to_be(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(runs)])
    assert "picture: compare_test_accuracy.png" in capsys.readouterr().out
    assert Path("compare_test_accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert Path("compare_test_accuracy.png").stat().st_size > 5000


def test_a_run_without_a_curve_is_named(runs: Path, compare: Callable[..., dict[str, Any]]) -> None:
    (runs / "concat-0" / "metrics.csv").unlink()
    (runs / "concat-1" / "metrics.csv").write_text("step,epoch,train/loss\n5,0,1.0\n")
    (runs / "product-0" / "metrics.csv").write_text("step,epoch,val/accuracy\n10,0,x\n")
    found = compare(runs, "--picture", "x.png")
    for name in ("concat-0", "concat-1", "product-0"):
        assert any(name in note and "no curve" in note for note in found["notes"])
    assert [group["n"] for group in found["groups"]] == [3, 3], "its numbers count all the same"
    assert Path("x.png").is_file()


def test_a_row_that_was_written_twice_counts_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 0.4)
    with (run / "metrics.csv").open("a") as file:
        file.write("40,3,,0.9\n50,4,,nan\n")
    assert read_run(RunFolder(run)).curve("val/accuracy") == pytest.approx({10: 0.1, 20: 0.2, 30: 0.3, 40: 0.9})


def test_no_picture_of_nothing(tmp_path: Path) -> None:
    assert draw([], "val/loss", tmp_path / "x.png", []) is None
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--by", "model.fusoin"], ["--by model.fusoin", "did you mean 'model.fusion'"]),
        (["--metric", "test/acuracy"], ["--metric test/acuracy", "did you mean 'test/accuracy'"]),
        (["--format", "cvs"], ["cvs", "table, csv, json, markdown", "did you mean 'csv'"]),
        (["--columns", "test/los"], ["--columns test/los: no run has it", "did you mean 'test/loss'"]),
        (["--metrics", "x"], ["--metrics: no such option", "did you mean '--metric'"]),
        (["--picture", "x.gif"], ["--picture x.gif", ".png"]),
        (["--picture", "nowhere/x.png"], ["no such folder: 'nowhere'"]),
    ],
)
def test_mistakes(options: list[str], expected: list[str], runs: Path, mistake: Callable[..., str]) -> None:
    line = mistake("compare", runs, *options)
    for part in expected:
        assert part in line


def test_a_place_that_is_none(runs: Path, mistake: Callable[..., str]) -> None:
    assert f"did you mean '{runs}'" in mistake("compare", runs.with_name("easy_vqua"))
    assert "runs" in mistake("compare", runs / "x*")
    assert "RUN_OR_GLOB" in mistake("compare")
    assert "did you mean 'compare'" in mistake("comapre", runs)


def test_different_monitors_need_a_choice(runs: Path, mistake: Callable[..., str]) -> None:
    edit(runs / "concat-0" / "config.yaml", lambda config: config["best"].update(monitor="val/loss"))
    assert "val/accuracy, val/loss" in mistake("compare", runs)


def test_it_starts_without_lightning(runs: Path) -> None:
    script = "import sys; from experiments.arguments import run_command; assert run_command(sys.argv[1:]); "
    script += "assert not {'torch', 'lightning', 'wandb'} & set(sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", script, "compare", str(runs)], check=True, env=environment)
    command = [sys.executable, str(REPOSITORY / "train.py"), "compare", str(runs), "--by", "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: --by x")
