#!/usr/bin/env bash
# Everything that is measured on a GPU, by one command:
#   tools/gpu_check.sh FOLDER [--<setting> VALUE ...]
# FOLDER is what `python -m tools.convert isbi2015 SOURCE FOLDER` wrote. Settings come after those of the recipe.
# 1. The benchmark: `modern` at 800 x 640 px with 52 landmarks beside the reference -> results/gpu-benchmark.json
# 2. The recipe, from random weights at 800 x 640 px, train -> test1, within 25 minutes -> results/gpu-isbi2015.json
# A dry run on a CPU, to see that it works:
#   tools/gpu_check.sh FOLDER --device cpu --height 64 --width 64 --epochs 1 --views 1
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1
shift
python=${PYTHON:-.venv/bin/python}
mkdir -p results
$python -m tools.benchmark --preset modern --batch_size 8 --effects --curves "$@" | tee results/gpu-benchmark.txt
tail -n 1 results/gpu-benchmark.txt > results/gpu-benchmark.json
run=runs/gpu-isbi2015-$(date +%Y%m%d-%H%M%S)
$python main.py --preset isbi2015 modern --img_dir "$folder/imgs" --json_path "$folder/json/data.json" \
  --backbone_weights none --batch_size 8 --lr 1e-3 --epochs 100 --workers 12 --save_every 50 --run_dir "$run" "$@"
$python -m tools.results "$run" --set test1 --out results/gpu-isbi2015.json
