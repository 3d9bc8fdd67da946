import json
import shutil
import sys

import numpy as np
import pytest
from conftest import mentions, refuses

from evaluate import Predictions
from experiments import run_table
from reporting.charts import save_figure
from reporting.predictions import read_predictions, write_predictions
from reporting.report import write_report


def test_a_run_becomes_a_row_and_a_json_that_says_how_it_was_made(trained_run, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(trained_run, tmp_path / "run", ignore=shutil.ignore_patterns("*.pt"))
    provenance = json.loads((run / "config.json").read_text(encoding="utf-8"))
    provenance["argv"] = [f"{run}/main.py", "--preset", "demo", f"--img_dir={run}", "--run_dir", str(run), "--test",
                          f"{run}/last.pt", "--backbone_weights", f"{run}/weights.pth", "--epochs", "3"]  # fmt: skip
    provenance["settings"]["backbone_weights"] = f"{run}/weights.pth"
    (run / "config.json").write_text(json.dumps(provenance), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["run_table", str(run), "--out", str(tmp_path / "out" / "one.json")])
    assert run_table.main() == 0
    summary = json.loads((trained_run / "test" / "summary.json").read_text(encoding="utf-8"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| run | MRE, mm") and "SDR 2.5 / 3 / 4 mm" in lines[0] and len(lines) == 3
    assert f"| {summary['headline']['MRE']:.2f} |" in lines[2]
    (result,) = json.loads((tmp_path / "out" / "one.json").read_text(encoding="utf-8"))
    assert result["headline"] == summary["headline"] and result["settings"]["num_landmarks"] == 4
    assert result["command"] == (
        "python main.py --preset demo --img_dir=IMG_DIR --run_dir RUN_DIR --test TEST "
        "--backbone_weights BACKBONE_WEIGHTS --epochs 3"
    )
    assert str(tmp_path) not in json.dumps(result)
    assert {"commit", "hardware", "versions"} <= result.keys()


def test_the_time_of_a_cross_validation_is_that_of_all_folds_and_a_test_has_none(trained_run, tmp_path):
    pooled = shutil.copytree(trained_run, tmp_path / "folds", ignore=shutil.ignore_patterns("*.pt", "metrics.csv"))
    (pooled / "test").rename(pooled / "pooled")
    assert "| – |" in run_table.table_row(run_table.read_run(pooled, "pooled"))
    for fold in ("fold1", "fold2"):
        (pooled / fold).mkdir()
        (pooled / fold / "metrics.csv").write_text("epoch,seconds\n1,60\n2,30.5\n", encoding="utf-8")
    assert run_table.read_run(pooled, "pooled")["training_minutes"] == 3.0


def test_the_mean_of_several_checkpoints_took_the_time_of_all_and_is_drawn_with_them(
    trained_run, tmp_path, monkeypatch, capsys
):
    runs = [shutil.copytree(trained_run, tmp_path / name, ignore=shutil.ignore_patterns("*.pt")) for name in "ab"]
    for run, seconds in zip(runs, (60, 120), strict=True):
        (run / "metrics.csv").write_text(f"epoch,seconds\n1,{seconds}\n", encoding="utf-8")
    mean = shutil.copytree(trained_run, tmp_path / "mean", ignore=shutil.ignore_patterns("*.pt", "metrics.csv"))
    provenance = json.loads((mean / "config.json").read_text(encoding="utf-8"))
    provenance["argv"] = ["main.py", "--test", *(str(run / "best.pt") for run in runs), "--views", "3"]
    (mean / "config.json").write_text(json.dumps(provenance), encoding="utf-8")
    words = [*map(str, (*runs, mean)), "--picture", str(tmp_path / "times.png"), "--line", "one reader=1.18"]
    monkeypatch.setattr(sys, "argv", ["run_table", *words, "--out", str(tmp_path / "runs.json")])
    drawn = []
    monkeypatch.setattr(
        run_table, "save_figure", lambda figure, path: drawn.append((figure, save_figure(figure, path)))
    )
    assert run_table.main() == 0 and (tmp_path / "times.png").stat().st_size > 5000
    results = json.loads((tmp_path / "runs.json").read_text(encoding="utf-8"))
    assert [result["training_minutes"] for result in results] == [1.0, 2.0, 3.0]
    assert results[2]["command"] == "python main.py --test TEST TEST --views 3"
    (axis,) = drawn[0][0].axes
    points = [container[0].get_xydata()[0].tolist() for container in axis.containers]
    assert points == [[result["training_minutes"], result["headline"]["MRE"]] for result in results]
    assert "one reader" in [text.get_text() for text in axis.texts]
    monkeypatch.setattr(sys, "argv", ["run_table", str(mean), "--line", "1.18"])
    with pytest.raises(SystemExit):
        run_table.main()
    assert "NAME=MRE" in capsys.readouterr().err


def test_a_run_is_compared_with_another_on_the_same_images_only(trained_run, tmp_path):
    other = shutil.copytree(trained_run, tmp_path / "other", ignore=shutil.ignore_patterns("*.pt"))
    row = run_table.read_run(trained_run, "test", against=other)
    assert row["against"] == {"run": "other", "difference": 0, "low": 0, "high": 0}
    assert run_table.table_row(row).endswith("| +0.00 (+0.00 to +0.00) |")
    path = other / "test" / "predictions.csv"
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([header, *(f"other {line}" for line in lines)]), encoding="utf-8")
    assert run_table.table_row(run_table.read_run(trained_run, "test", against=other)).endswith("| other images |")


@pytest.mark.parametrize("name", ["no run", ""])
def test_a_folder_without_that_report_is_refused(trained_run, name, monkeypatch, capsys):
    folder = trained_run / name
    monkeypatch.setattr(sys, "argv", ["run_table", str(folder), "--set", "test7"])
    assert run_table.main() == 2
    assert mentions(capsys.readouterr().err, folder, "test7" if not name else "")


def test_a_part_of_the_report_is_compared_over_its_own_landmarks(trained_run, tmp_path):
    runs = [shutil.copytree(trained_run, tmp_path / name, ignore=shutil.ignore_patterns("*.pt")) for name in "ab"]
    names, abbreviations, columns, unit = read_predictions(runs[0] / "test" / "predictions.csv")
    points = [np.stack([columns[x], columns[y]], -1) for x, y in (("x", "y"), ("x_true", "y_true"))]
    hidden = np.zeros(points[0].shape[:2], bool)
    hidden[:, 2] = True
    for run, shift in zip(runs, (1.0, 3.0), strict=True):  # landmark A, hidden, is off by 1 and by 3 px of 0.5 mm
        found = np.where(hidden[..., None], points[1] + (shift, 0), points[0])
        spacing = np.full(len(names), 0.5)
        predictions = Predictions(names, found, points[1], columns["score"], spacing, occluded=hidden)
        write_predictions(run / "test" / "predictions.csv", predictions, abbreviations, unit)
        write_report(
            run / "test", read_predictions(run / "test" / "predictions.csv"), abbreviations, ("R1", "R2"), (2.0,), {},
            parts={"agreement": {"predictions": {}}},
        )  # fmt: skip
    result = run_table.read_run(runs[1], "test", "occluded", against=runs[0])
    assert "headline" in result and not {"agreement", "flagged"} & result.keys()  # too long for a record of figures
    assert result["occluded"]["MRE"] == pytest.approx(1.5) and result["against"]["difference"] == pytest.approx(1.0)
    assert run_table.table_row(result, "occluded").startswith("| b | 1.50 |")
    assert run_table.read_run(runs[1], "test", "all", runs[0])["against"]["difference"] == pytest.approx(0.25)
    with refuses("occluded"):
        run_table.read_run(trained_run, "test", "occluded")
