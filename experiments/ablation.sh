#!/usr/bin/env bash
# Ablation: the recipe, and the recipe without one ingredient at a time, in runs of equal length.
#   experiments/ablation.sh FOLDER OUT [--<setting> VALUE ...]
# FOLDER is the output of `python -m tools.convert isbi2015 SOURCE FOLDER`. Runs are written to OUT; finished ones are
# kept. A third of the training images are used for testing (fold 1 of 3), the official test images are not. Settings
# are appended to those of the recipe, e.g. --epochs 1 --height 128 --width 128 for a dry run.
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
  $python main.py --preset isbi2015 modern cpu --img_dir "$folder/imgs" --json_path "$folder/json/data.json" \
    --folds 3 --fold 1 --height 384 --width 320 --sigma 3 --epochs 15 --overlays 0 --run_dir "$out/$name" "$@"
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
train recipe "$@"
train "recipe, another seed" "$@" --seed 1
train "no second stage" "$@" --refine 1 --height 192 --width 160
train "random weights" "$@" --backbone_weights none
train "decoder of 256 channels" "$@" --decoder_channels 256
train "one crop for all images" "$@" --crop_follows false --crop_margin 0.05
train "no crop" "$@" --crop_follows false --crop_margin none
train "no rotation, scaling, shift" "$@" --rotation 0 --scaling 0 --shift 0
train "no elastic warp" "$@" --elastic 0
train "no gamma, contrast, noise" "$@" --intensity 0
train "no blur" "$@" --blur 0
train "no cut-out" "$@" --cutout 0
train "no augmentation at all" "$@" --rotation 0 --scaling 0 --shift 0 --elastic 0 --intensity 0 --blur 0 --cutout 0
train "Adam without weight decay" "$@" --optimizer adam
train "constant learning rate" "$@" --lr_schedule step --lr_milestones 1000 --warmup_epochs 0
train "no average of weights" "$@" --ema 0
train "batch 1" "$@" --batch_size 1
train "batch 4 with batch norm" "$@" --batch_size 4 --norm batch
train "fp32" "$@" --precision fp32
retest "argmax" --decode argmax
retest "one view" --views 1
retest "tested in fp32" --test_precision fp32
$python -m experiments.run_table "${runs[@]}" --against "$out/recipe" --out "$out/ablation.json"
