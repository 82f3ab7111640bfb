#!/usr/bin/env bash
# The tiny recipe from nothing to a report: data, model, training, evaluation before and after, one HTML page.
#   recipes/tiny/run.sh demo     a short run, about 13 minutes on 2 cores with everything
#   recipes/tiny/run.sh learn    the longer run whose curves stand in docs/learning.md (SEED=0, 1, 2)
# Further arguments are verl's own (KEY=VALUE).
set -euo pipefail
mode=${1:-demo}; shift || true
cache=${CACHE:-.cache}
seed=${SEED:-0}
run_dir=${RUN_DIR:-runs/tiny-$mode-$seed}
case $mode in
  demo) steps=12 ;;
  learn) steps=60 ;;
  *) echo "usage: $0 demo|learn [KEY=VALUE ...]" >&2; exit 2 ;;
esac
say() { printf '\n[%s] %s\n' "$1" "$2"; }

say "1/4 data" "704 synthetic mp4 clips, coloured shapes with ID numbers, into $cache/synthetic (about a minute, once)"
verl-stvg build synthetic "$cache/synthetic" --train 512 --val 192

say "2/4 model" "a Qwen2.5-VL of about 1 M parameters, warm-started on other clips, into $cache/model (about 3 minutes, once)"
verl-stvg tiny-model "$cache/model"

say "3/4 training" "$steps GRPO steps through verl: FSDP2 actor and reference, vLLM rollout; start-up takes 3 minutes, a step 15 to 20 s"
verl-stvg train --recipe stvg_r1 --run-dir "$run_dir" +variant=tiny \
  data.train_files="$cache/synthetic/train.parquet" data.val_files="$cache/synthetic/val.parquet" data.seed="$((seed + 1))" \
  data.video_cache.folder="$cache/frames" \
  actor_rollout_ref.model.path="$cache/model" actor_rollout_ref.rollout.n=8 actor_rollout_ref.rollout.seed="$((seed + 1))" \
  trainer.total_training_steps="$steps" trainer.validation_data_dir="$run_dir/validation" "$@"

say "4/4 report" "held-out clips before and after"
verl-stvg report "$run_dir"
