#!/usr/bin/env bash
# Train a paper's recipe: check the machine, check the rows, decode every video once, train.
#   ROWS=prepared/rows recipes/run.sh stvg_r1            one node with 8 GPUs
#   ROWS=prepared/rows recipes/run.sh stvg_r1 8 4        4 nodes with 8 GPUs each: the Ray cluster at RAY_ADDRESS
#   ROWS=prepared/rows recipes/run.sh stvg_r1 1 '+variant=[one_gpu,lora]'     one GPU; further arguments are verl's own
# RECIPE is the name of a folder beside this file: stvg_r1, temporal_r1, time_r1 or videotg_r1.
# ROWS     folder with train.parquet and val.parquet; or TRAIN and VAL, the two files
# RUN_DIR  log, metrics, held-out answers, checkpoints; one for each variant, shared by all nodes (runs/RECIPE)
# CACHE    folder of decoded frames, shared by all nodes (verl_stvg/frames in the user's cache folder)
# STAGES   which of "doctor check cache train" to run (all)
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
usage() {
  echo "usage: ROWS=FOLDER $0 RECIPE [GPUS_PER_NODE [NODES]] [KEY=VALUE ...]; RECIPE is stvg_r1, temporal_r1, time_r1 or videotg_r1" >&2
  exit 2
}
recipe=${1:-}
[[ -n $recipe && -f $here/$recipe/$recipe.yaml ]] || usage
shift
gpus=8 nodes=1
if [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then gpus=$1; shift; fi
if [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then nodes=$1; shift; fi
train=${TRAIN:-${ROWS:+$ROWS/train.parquet}}
val=${VAL:-${ROWS:+$ROWS/val.parquet}}
[[ -n $train && -n $val ]] || usage
run_dir=${RUN_DIR:-runs/$recipe}
cache=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/verl_stvg/frames}
stages=${STAGES:-doctor check cache train}
on_ray=()
if ((nodes > 1)); then
  : "${RAY_ADDRESS:?$nodes nodes need a running Ray cluster: start it on every node (docs/launch.md) and set RAY_ADDRESS}"
  on_ray=(--ray)
fi
wanted() { [[ " $stages " == *" $1 "* ]]; }
say() { printf '\n[%s] %s\n' "$1" "$2"; }

if wanted doctor; then
  say doctor "this machine, and every node of the Ray cluster if there is one"
  verl-stvg doctor
fi
if wanted check; then
  say check "$train and $val: videos, intervals, ground truths, overlap of the two"
  verl-stvg check "$train" "$val" --no-decode "${on_ray[@]}"
fi
if wanted cache; then
  say cache "every video is decoded once, into $cache; a video that cannot be used ends the run here"
  patch=()
  [[ "$*" != *qwen3_vl* ]] || patch=(--patch 16)
  verl-stvg cache build "$train" "$val" --cache "$cache" "${patch[@]}" "${on_ray[@]}"
fi
if wanted train; then
  say train "python -m verl.trainer.main_ppo on $nodes x $gpus GPUs, supervised; log in $run_dir/train.log"
  verl-stvg train --recipe "$recipe" --run-dir "$run_dir" \
    data.train_files="$train" data.val_files="$val" data.video_cache.folder="$cache" \
    trainer.n_gpus_per_node="$gpus" trainer.nnodes="$nodes" \
    trainer.default_local_dir="$run_dir/checkpoints" trainer.validation_data_dir="$run_dir/validation" "$@"
fi
