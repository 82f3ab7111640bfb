#!/usr/bin/env bash
# A rehearsal of several nodes on one machine: two raylets with one worker each, FSDP across both, a vLLM on each.
#   recipes/tiny/two_nodes.sh [KEY=VALUE ...]     three small steps, a checkpoint after each; arguments are verl's own
# RUN_DIR  log, metrics, checkpoints, and the output of the raylets (runs/two_nodes)
# CACHE    synthetic clips, model and decoded frames, as recipes/tiny/run.sh has them (.cache)
# PORT     Ray's port on the first node (26479)
set -euo pipefail
run_dir=$(realpath -m "${RUN_DIR:-runs/two_nodes}")
cache=$(realpath -m "${CACHE:-.cache}")
first=127.0.0.2:${PORT:-26479}
say() { printf '\n[%s] %s\n' "$1" "$2"; }

say "1/3 data, model" "704 synthetic clips and a Qwen2.5-VL of about 1 M parameters, into $cache (about 4 minutes, once)"
verl-stvg build synthetic --out "$cache/synthetic" --train 512 --val 192
verl-stvg tiny-model --out "$cache/model"

say "2/3 cluster" "two raylets, at 127.0.0.2 and 127.0.0.3; not ended with \`ray stop\`, which would end every Ray on the machine"
mkdir -p "$run_dir"
export RAY_AUTH_MODE=token
ray get-auth-token --generate >/dev/null 2>&1
raylets=()
trap 'kill "${raylets[@]}" 2>/dev/null || true; wait' EXIT
# start_node GPUS LOG ARGUMENT...: a raylet, with which the cluster has GPUS; on a busy machine Ray gives up after 30 s
start_node() {
  local gpus=$1 log=$run_dir/$2
  for _ in 1 2 3; do
    ray start "${@:3}" --block --num-cpus=16 --num-gpus=1 --object-store-memory=268435456 --disable-usage-stats >"$log" 2>&1 &
    raylets+=($!)
    while kill -0 $! 2>/dev/null; do
      if ray status --address="$first" 2>/dev/null | grep -q "/$gpus.0 GPU"; then return; fi
      sleep 2
    done
  done
  echo "no raylet starts here; see $log" >&2
  exit 1
}
start_node 1 first.log --head --node-ip-address="${first%:*}" --port="${first#*:}" --include-dashboard=false \
  --ray-client-server-port="$((${first#*:} + 1))" --min-worker-port=27000 --max-worker-port=27499
start_node 2 second.log --address="$first" --node-ip-address=127.0.0.3 --dashboard-agent-listen-port="$((${first#*:} + 2))" \
  --min-worker-port=27500 --max-worker-port=27999

say "3/3 training" "3 GRPO steps of 16 trajectories on both; start-up takes some minutes, log in $run_dir/train.log"
verl-stvg train --recipe stvg_r1 --run-dir "$run_dir" +variant=tiny \
  data.train_files="$cache/synthetic/train.parquet" data.val_files="$cache/synthetic/val.parquet" \
  data.video_cache.folder="$cache/frames" actor_rollout_ref.model.path="$cache/model" \
  trainer.nnodes=2 trainer.n_gpus_per_node=1 actor_rollout_ref.rollout.agent.num_workers=2 \
  ray_kwargs.ray_init.address="$first" ray_kwargs.ray_init.num_cpus=null ray_kwargs.ray_init.num_gpus=null \
  data.train_batch_size=4 actor_rollout_ref.actor.ppo_mini_batch_size=4 actor_rollout_ref.rollout.n=4 \
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8 actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8 \
  actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8 data.val_max_samples=8 \
  trainer.total_training_steps=3 trainer.test_freq=3 trainer.save_freq=1 \
  +actor_rollout_ref.rollout.engine_kwargs.vllm.num_gpu_blocks_override=512 \
  actor_rollout_ref.actor.optim.lr_warmup_steps=0 "$@"
