#!/usr/bin/env bash
# Does the adversarial training of PoseNet help? The generator alone, with P, and with P and C, with three seeds each, on
# unseen phantoms, plain and with an implant that occludes one to three landmarks.
#   experiments/adversarial.sh OUT [--<setting> VALUE ...]
# Runs are written to OUT; finished ones are kept. Settings are appended to those of the demo, e.g. --epochs 2
# --pretrain_epochs 1 for a dry run.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1
shift
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"
[ -f "$out/plain/json/data.json" ] || $python -m experiments.make_phantom --force --out "$out/plain" --count 100 --seed 1
[ -f "$out/implants/json/data.json" ] || $python -m experiments.make_phantom --force --out "$out/implants" --count 100 --seed 1 --implants

for seed in 0 1 2; do
  for adversarial in none pose pose+confidence; do
    run=$out/$adversarial-$seed
    if [ ! -f "$run/test/summary.json" ]; then
      rm -rf "$run"
      $python main.py --preset demo --method posenet --adversarial $adversarial --seed $seed --overlays 0 \
        --watch_every 0 --run_dir "$run" "$@"
    fi
    for set in plain implants; do
      [ -f "$run-$set/test/summary.json" ] && continue
      rm -rf "$run-$set"
      $python main.py --test "$run/last.pt" --overlays 3 --img_dir "$out/$set/imgs" --json_path "$out/$set/json/data.json" \
        --run_dir "$run-$set"
    done
  done
done
for seed in 0 1 2; do # the difference from the generator alone, for each set and part of the landmarks
  for part in plain-headline implants-headline implants-occluded; do
    set=${part%-*}
    $python -m experiments.run_table "$out"/{none,pose,pose+confidence}-$seed-"$set" --part "${part#*-}" \
      --against "$out/none-$seed-$set" --out "$out/$part-$seed.json"
  done
done
$python -c 'import json, sys; print(json.dumps([row for file in sys.argv[1:] for row in json.load(open(file))], indent=1))' \
  "$out"/{plain-headline,implants-headline,implants-occluded}-{0,1,2}.json > "$out/adversarial.json"
