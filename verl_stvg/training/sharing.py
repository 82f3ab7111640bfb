"""When a prompt is computed once: verl's key ``actor.use_prefix_grouper``, and how the trainer lays out a batch for it.

verl 0.9.1 declares the key, and its V1 engines never read it. Here it chooses `verl_stvg.training.shared_prompt`'s
engine for the actor and the reference. Where that engine cannot work, the run says so once, by name, and goes verl's
way.
"""

from collections import defaultdict

from verl_stvg.training.groups import on_ranks, once

KEY = "actor_rollout_ref.actor.use_prefix_grouper"
CHUNK = 1024
"""Places whose logits the engine holds at a time."""

_wanted = False


def wanted() -> bool:
    """Whether the actor that this process builds shares prompts."""
    return _wanted


def asked(config, distillation=None) -> bool:
    """Whether the key is set and nothing in the configuration stands against it; what does is told once.

    Args:
        config: verl's section ``actor_rollout_ref``.
        distillation: verl's section ``distillation``.
    """
    if not config.actor.get("use_prefix_grouper", False):
        return False
    found = list(_against(config, distillation or {}))
    if found:
        once(f"{KEY} is set and has no effect, because {' and '.join(found)}; every trajectory computes its prompt")
    return not found


def _against(config, distillation):
    actor = config.actor
    if actor.strategy not in ("fsdp", "fsdp2"):
        yield f"actor.strategy={actor.strategy} is not fsdp or fsdp2"
    sizes = (actor.get("ulysses_sequence_parallel_size") or 1, _nested(actor, "ulysses_sequence_parallel_size") or 1)
    if max(sizes) > 1:
        yield f"ulysses_sequence_parallel_size={max(sizes)} divides sequences among GPUs"
    if _nested(actor, "pad_to_length"):
        yield "actor.fsdp_config.pad_to_length pads packed sequences"
    if config.model.get("use_fused_kernels", False):
        yield "model.use_fused_kernels computes the output layer on every position"
    if actor.get("shuffle", False):
        yield "actor.shuffle takes trajectories from their prompts"
    if distillation.get("enabled", False):
        yield "distillation reads every position"


def with_older_trainer(config) -> dict[str, bool]:
    """The key's value for a run of verl's older trainer, which would read it in a way of its own; told once."""
    if not config.actor_rollout_ref.actor.get("use_prefix_grouper", False) or config.trainer.use_v1:
        return {}
    once(f"{KEY} is set and has no effect, because trainer.use_v1 is false; every trajectory computes its prompt")
    return {KEY: False}


def _nested(actor, name: str):
    return (actor.get("fsdp_config") or {}).get(name)


def mend_worker(engine_workers) -> None:
    """Note what the configuration says, in the process that will build actor and reference."""
    worker, training = engine_workers.ActorRolloutRefWorker, engine_workers.TrainingWorker
    stock, built = worker.__init__, training.__init__

    def __init__(self, config, role, distillation_config=None, **kwargs):
        global _wanted
        _wanted = asked(config, distillation_config)
        stock(self, config, role, distillation_config=distillation_config, **kwargs)

    def build(self, *args, **kwargs):
        built(self, *args, **kwargs)
        if hasattr(self.engine, "repeated") and self.flops_counter is not None:
            self.flops_counter = ComputedFlops(self.flops_counter, self.engine)

    worker.__init__, training.__init__ = __init__, build


class ComputedFlops:
    """verl's count of operations without those of the prompts that were not computed again, for ``mfu``.

    verl's estimate is linear in the tokens and in the sum of squared lengths, so that the prompts that were left out
    are subtracted as sequences.
    """

    def __init__(self, stock, engine):
        self._stock, self._engine = stock, engine

    def estimate_flops(self, batch_seqlens, delta_time, **kwargs):
        """As verl's; collective: every rank must call it."""
        done, promised = self._stock.estimate_flops(batch_seqlens, delta_time, **kwargs)
        left_out = self._engine.repeated_everywhere()
        if left_out:
            done -= self._stock.estimate_flops(left_out, delta_time)[0]
        return done, promised


def mend_trainer(trainer_base) -> None:
    """Let verl's V1 trainer keep the trajectories of a prompt on one rank and in one mini-batch."""
    trainer = trainer_base.PPOTrainer
    stock = trainer._balance_batch

    def _balance_batch(self, batch, metrics, logging_prefix="global_seqlen", **kwargs):
        batch = stock(self, batch, metrics, logging_prefix, **kwargs)
        section = self.config.actor_rollout_ref
        if not asked(section, self.config.get("distillation")):
            return batch
        ranks = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1
        slices = max(1, len(batch) // (section.actor.ppo_mini_batch_size * section.rollout.n))
        parts = laid_out(batch.keys, batch.tags, ranks, slices)
        lengths = [tag["seq_len"] for tag in batch.tags]
        metrics.update(trainer_base.log_seqlen_unbalance(seqlen_list=lengths, partitions=parts, prefix=logging_prefix))
        batch.reorder([row for part in parts for row in part])
        return batch

    trainer._balance_batch = _balance_batch


def laid_out(keys, tags, ranks: int, slices: int) -> list[list[int]]:
    """`on_ranks` of the trajectories of verl's queue; rows that fill up the batch stand alone.

    Args:
        keys: ``<prompt uid>_<session>_<index>`` of each.
        tags: of each: ``prompt_len``, ``response_len``, ``is_padding``.
        ranks: that they are scattered to.
        slices: mini-batches of each rank.
    """
    groups = defaultdict(list)
    for row, (key, tag) in enumerate(zip(keys, tags, strict=True)):
        groups[key if tag.get("is_padding", False) else key.rsplit("_", 2)[0]].append(row)
    prompts, answers = ([tag[name] for tag in tags] for name in ("prompt_len", "response_len"))
    return on_ranks(list(groups.values()), prompts, answers, ranks, slices)
