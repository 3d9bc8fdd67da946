#!/usr/bin/env bash
# Ablation: the recipe, and the recipe without one ingredient at a time, in runs of equal length.
#   experiments/ablation.sh FOLDER OUT [--<setting> VALUE ...]
# FOLDER is the output of `python -m tools.convert isbi2015 SOURCE FOLDER`. Runs are written to OUT; finished ones are
# kept. Every third of the training images is used for testing, the same for all seeds; the official test images are
# not. Settings are appended to those of the recipe, e.g. --epochs 1 --height 128 --width 128 for a dry run.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1 out=$2
shift 2
python=${PYTHON:-.venv/bin/python}
runs=()

train() { # NAME SETTINGS...: one run
  local name=$1
  shift
  runs+=("$out/$name")
  [ -f "$out/$name/test/summary.json" ] && return
  rm -rf "${out:?}/$name"
  $python main.py --preset isbi2015 modern cpu --img_dir "$folder/imgs" --json_path "$out/data.json" \
    --overlays 0 --watch_every 0 --run_dir "$out/$name" "$@"
}

retest() { # NAME SETTINGS...: test the recipe's network in another way
  local name=$1
  shift
  runs+=("$out/$name")
  [ -f "$out/$name/test/summary.json" ] && return
  rm -rf "${out:?}/$name"
  $python main.py --test "$out/recipe/last.pt" --run_dir "$out/$name" "$@"
}

mkdir -p "$out"
$python - "$folder/json/data.json" "$out/data.json" <<'END'
import json, sys
with open(sys.argv[1], encoding="utf-8") as file:
    records = [record for record in json.load(file) if record["split"] == "train"]
for number, record in enumerate(records):
    record["split"] = "train" if number % 3 else "test"
with open(sys.argv[2], "w", encoding="utf-8") as file:
    json.dump(records, file)
END
train recipe "$@"
train "recipe, seed 1" "$@" --seed 1
train "recipe, seed 2" "$@" --seed 2
train "no second stage" "$@" --refine 1 --height 320 --width 288
train "random weights" "$@" --backbone_weights none
train "no augmentation at all" "$@" --rotation 0 --scaling 0 --shift 0 --elastic 0 --intensity 0 --blur 0 --cutout 0
train "one crop for all images" "$@" --crop_follows false --crop_margin 0.05
train "cosine schedule" "$@" --lr_schedule cosine
train "no average of weights" "$@" --ema 0
train "intensity 0.3" "$@" --intensity 0.3
train "no gamma, contrast, noise" "$@" --intensity 0
train "no rotation, scaling, shift" "$@" --rotation 0 --scaling 0 --shift 0
train "no blur, no cut-out" "$@" --blur 0 --cutout 0
train "no elastic warp" "$@" --elastic 0
train "decoder of 256 channels" "$@" --decoder_channels 256
train "batch 1" "$@" --batch_size 1
train "batch 4 with batch norm" "$@" --batch_size 4 --norm batch
train "Adam without weight decay" "$@" --optimizer adam
train "fp32" "$@" --precision fp32
retest "argmax" --decode argmax
retest "one view" --views 1
retest "tested in fp32" --test_precision fp32
$python -m experiments.run_table "${runs[@]}" --against "$out/recipe" --out "$out/ablation.json"
