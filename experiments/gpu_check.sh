#!/usr/bin/env bash
# Measure everything that needs a GPU, with one command:
#   experiments/gpu_check.sh FOLDER OUT [--<setting> VALUE ...]
# FOLDER is the output of `python -m tools.convert isbi2015 SOURCE FOLDER`. Settings are appended to those of the recipe.
# 1. The benchmark: `modern` at 800 x 640 px with 52 landmarks beside the reference -> OUT/gpu-benchmark.json
# 2. The recipe from random weights at 800 x 640 px, train -> test1, within 25 minutes -> OUT/gpu-isbi2015.json
# The published numbers are in OUT=results. A dry run on a CPU, to see that it works:
#   experiments/gpu_check.sh FOLDER runs/dry --device cpu --height 64 --width 64 --epochs 1 --warmup_epochs 0 --views 1
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1 out=$2
shift 2
python=${PYTHON:-.venv/bin/python}
common=(--backbone_weights none --batch_size 8 --workers 12)
mkdir -p "$out"
$python -m experiments.benchmark --preset modern "${common[@]}" --effects --curves "$@" | tee "$out/gpu-benchmark.txt"
tail -n 1 "$out/gpu-benchmark.txt" > "$out/gpu-benchmark.json"
run=runs/gpu-isbi2015-$(date +%Y%m%d-%H%M%S)
$python main.py --preset isbi2015 modern "${common[@]}" --lr 1e-3 --epochs 300 --save_every 100 \
  --img_dir "$folder/imgs" --json_path "$folder/json/data.json" --run_dir "$run" "$@"
$python -m experiments.run_table "$run" --set test1 --out "$out/gpu-isbi2015.json"
