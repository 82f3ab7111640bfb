#!/usr/bin/env bash
# A paper's recipe at toy scale, from nothing to a report: data, model, training, evaluation before and after, one HTML page.
#   recipes/tiny/run.sh demo                  STVG-R1, a short run (SEED=0, 1, ...): about 15 minutes on 2 cores with everything
#   recipes/tiny/run.sh learn [RECIPE]        the longer run whose curves stand in docs/learning.md (SEED=0, 1, 2)
# RECIPE is stvg_r1, temporal_r1, time_r1 or videotg_r1. Further arguments are verl's own (KEY=VALUE).
set -euo pipefail
mode=${1:-demo}; shift || true
recipe=stvg_r1
if [[ ${1:-} =~ ^(stvg_r1|temporal_r1|time_r1|videotg_r1)$ ]]; then recipe=$1; shift; fi
case $mode in
  demo) steps=24 every=12 ;;
  learn) steps=60 every=10 ;;
  *) echo "usage: $0 demo|learn [stvg_r1|temporal_r1|time_r1|videotg_r1] [KEY=VALUE ...]" >&2; exit 2 ;;
esac
cache=${CACHE:-.cache}
seed=${SEED:-0}
run_dir=${RUN_DIR:-runs/$recipe-$mode-$seed}
data=$cache/synthetic model=$cache/model asked=()
[[ $recipe == stvg_r1 ]] || data=$data-$recipe model=$model-$recipe asked=(--task "$recipe")
say() { printf '\n[%s] %s\n' "$1" "$2"; }

say "1/4 data" "704 synthetic mp4 clips, coloured shapes with ID numbers, into $data (about a minute, once)"
if [[ $recipe == videotg_r1 ]]; then  # what this paper is about: some events happen twice and are annotated once
  verl-stvg build synthetic --out "$data" --train 512 --val 192 "${asked[@]}" --twice 0.3
else
  verl-stvg build synthetic --out "$data" --train 512 --val 192 "${asked[@]}"
fi
train=$data/train.parquet

say "2/4 model" "a Qwen2.5-VL of about 1 M parameters, warm-started on other clips, into $model (about 5 minutes, once)"
verl-stvg tiny-model --out "$model" "${asked[@]}"

if [[ $recipe == videotg_r1 ]]; then
  say "2/4 selection" "the model reflects on every annotation and finds out which clips are hard (about 5 minutes, once)"
  ask=(--model "$model" --cache "$cache/frames" --dtype float32 --max-tokens 48)
  verl-stvg select reflect "$train" --out "$data-reflect" --mode blanked --own-prompt --drop-reversed "${ask[@]}"
  verl-stvg select difficulty "$train" --out "$data-difficulty" "${ask[@]}"
  verl-stvg select subset "$train" --out "$data-chosen" --reflection "$data-reflect" --difficulty "$data-difficulty" --share 0.5
  train=$data-chosen/train.parquet
fi

say "3/4 training" "$steps GRPO steps through verl: FSDP2 actor and reference, vLLM rollout; start-up takes 3 minutes, a step 15 to 20 s"
verl-stvg train --recipe "$recipe" --run-dir "$run_dir" +variant=tiny \
  data.train_files="$train" data.val_files="$data/val.parquet" data.seed="$((seed + 1))" \
  data.video_cache.folder="$cache/frames" \
  actor_rollout_ref.model.path="$model" actor_rollout_ref.rollout.seed="$((seed + 1))" \
  trainer.total_training_steps="$steps" trainer.test_freq="$every" trainer.validation_data_dir="$run_dir/validation" "$@"

say "4/4 report" "held-out clips before and after"
verl-stvg report "$run_dir"
