#!/usr/bin/env bash
# Few labels: what a training starts from, with 10, 25, 50 and 100 training images, in runs of 400 steps.
#   experiments/few_labels.sh FOLDER OUT [--<setting> VALUE ...]
# FOLDER is the output of `python -m tools.convert isbi2015 SOURCE FOLDER`. Runs are written to OUT; finished ones are
# kept. Every third of the training images is used for testing, the official test images are not; three draws of the
# others. Starts: random weights, ImageNet weights, and networks that were trained on the bundled phantoms from both.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1 out=$2
shift 2
python=${PYTHON:-.venv/bin/python}
recipe=(--preset modern cpu --refine 1 --height 384 --width 320 --sigma 3 --val_fraction 0 --overlays 0 --watch_every 0)

train() { # NAME SETTINGS...: one run
  local name=$1
  shift
  [ -f "$out/$name/done" ] && return
  rm -rf "${out:?}/$name"
  $python main.py "${recipe[@]}" --run_dir "$out/$name" "$@"
  touch "$out/$name/done"
}

mkdir -p "$out"
$python - "$folder/json/data.json" "$out" <<'END'
import json, random, sys
with open(sys.argv[1], encoding="utf-8") as file:
    records = [record for record in json.load(file) if record["split"] == "train"]
tested = [record | {"split": "test"} for record in records[::3]]
others = [record for number, record in enumerate(records) if number % 3]
for draw in range(3):
    for count in (10, 25, 50, 100):
        chosen = random.Random(draw).sample(others, count)
        with open(f"{sys.argv[2]}/{count}-draw{draw}.json", "w", encoding="utf-8") as file:
            json.dump(chosen + tested, file)
END
for weights in none imagenet; do
  train "phantoms-$weights" "$@" --test_fraction 0 --epochs 27 --backbone_weights $weights
done
for draw in 0 1 2; do
  for count in 10 25 50 100; do
    data=(--preset isbi2015 modern cpu --img_dir "$folder/imgs" --json_path "$out/$count-draw$draw.json")
    data+=(--epochs $((800 / count)) --seed "$draw")
    train "$count random draw$draw" "${data[@]}" "$@" --backbone_weights none
    train "$count imagenet draw$draw" "${data[@]}" "$@"
    train "$count phantoms draw$draw" "${data[@]}" "$@" --start_from "$out/phantoms-none"
    train "$count both draw$draw" "${data[@]}" "$@" --start_from "$out/phantoms-imagenet"
  done
done
$python -m experiments.run_table "$out"/[1-9]*draw[0-2] --out "$out/few-labels.json"
