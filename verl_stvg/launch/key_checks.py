"""Checks of a run's keys, for `verl_stvg.launch.preflight`: unknown ones, and those whose values do not fit together.

Each function takes the composed configuration and returns one sentence for each problem: the key, its value, the
remedy.
"""

import difflib
import inspect

from omegaconf import DictConfig, OmegaConf

from verl_stvg.launch.config_checks import defaults

OPEN_KEYS = (
    "ray_kwargs.ray_init",
    "ray_kwargs.",
    "actor_rollout_ref.model.override_config",
    "actor_rollout_ref.rollout.engine_kwargs",
    "actor_rollout_ref.rollout.agent.",
    "reward.custom_reward_function.reward_kwargs",
    "data.mm_processor_kwargs",
    "data.apply_chat_template_kwargs",
    "trainer.v1.sampler.sampler_kwargs",
)
"""Prefixes under which verl takes any key."""
ADDED_KEYS = {
    "model_engine",
    "algorithm.exact_zero_advantage",
    "algorithm.own_old_log_probs",
    "data.check_videos",
    "data.curriculum",
    "data.draw",
    "data.filter_unusable_videos",
    "data.fit",
    "data.rollouts",
    "data.video_cache",
    "data.video_root",
    "actor_rollout_ref.rollout.enable_sleep_mode",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision",
    "actor_rollout_ref.ref.fsdp_config.mixed_precision",
}
"""Keys outside verl's yaml that verl or verl_stvg reads."""


def unknown_keys(config: DictConfig) -> list[str]:
    """Keys of the composed configuration that neither verl's yaml nor verl_stvg knows."""
    known = _leaves(defaults())
    groups = {key.rsplit(".", i)[0] for key in known for i in range(1, key.count(".") + 1)}
    problems = []
    for key in sorted(_leaves(config) - known):
        parent = key
        while "." in parent and parent not in ADDED_KEYS:
            parent = parent.rsplit(".", 1)[0]
        if parent in ADDED_KEYS or key in ADDED_KEYS or key.startswith(OPEN_KEYS) or key in groups:
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        problems.append(f"{key}: no such key" + (f"; did you mean {near[0]}?" if near else "; remove it"))
    return problems


def _leaves(config, prefix: str = "") -> set[str]:
    found = set()
    for key in config:
        name = f"{prefix}{key}"
        missing = OmegaConf.is_missing(config, key) or OmegaConf.is_interpolation(config, key)
        value = None if missing else config[key]
        if isinstance(value, DictConfig) and len(value):
            found |= _leaves(value, name + ".")
        else:
            found.add(name)
    return found


def indivisible_batches(config: DictConfig) -> list[str]:
    """Micro batches that do not divide what a GPU is given in a step; verl asserts it in the workers, minutes later."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    if actor.use_dynamic_bsz:
        return []
    gpus = int(config.trainer.n_gpus_per_node) * int(config.trainer.nnodes)
    batch, mini = config.data.train_batch_size * rollout.n, actor.ppo_mini_batch_size * rollout.n
    problems = []
    for total, key in (
        (mini, "actor.ppo_micro_batch_size_per_gpu"),
        (batch, "ref.log_prob_micro_batch_size_per_gpu"),
        (batch, "rollout.log_prob_micro_batch_size_per_gpu"),
    ):
        micro = OmegaConf.select(config.actor_rollout_ref, key)
        if micro and (total % gpus or (total // gpus) % micro):
            problems.append(
                f"actor_rollout_ref.{key}={micro} does not divide the {total} sequences of a step over {gpus} GPU(s); "
                "choose a divisor, or set actor.use_dynamic_bsz"
            )
    return problems


def groups_of_one(config: DictConfig) -> list[str]:
    """Whether each prompt has one answer only, where the advantage is taken within the answers to a prompt.

    verl 0.9.1 then takes the reward itself, so that every answer is reinforced, wrong ones too; or 0, for some.
    """
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    if config.trainer.get("val_only"):
        return []
    name, answers = str(config.algorithm.adv_estimator), int(config.actor_rollout_ref.rollout.n)
    estimator = ADV_ESTIMATOR_REGISTRY.get(name)
    if answers > 1 or estimator is None or "index" not in inspect.signature(estimator).parameters:
        return []
    return [
        f"actor_rollout_ref.rollout.n={answers} with algorithm.adv_estimator={name}: the advantage compares the "
        "answers to a prompt, and one answer has none to be compared with (verl would reinforce it whatever its "
        "reward); set rollout.n to at least 2"
    ]


def other_prompts(config: DictConfig) -> list[str]:
    """Keys that would change a prompt in training where the checks, evaluation and data selection do not know them."""
    from verl_stvg.rows.settings import template_options
    from verl_stvg.training.agent_loop import AGENT_NAME

    problems = []
    if given := OmegaConf.select(config, "data.mm_processor_kwargs"):
        problems.append(
            f"data.mm_processor_kwargs={given}: the frames of a video, their size and their times follow from its row; "
            "remove it, and set data.fit.fps or data.fit.max_pixels, or build the rows with others"
        )
    if config.actor_rollout_ref.rollout.agent.default_agent_loop == AGENT_NAME:
        for key in ("tool_config_path", "function_tool_path"):
            if OmegaConf.select(config, f"data.{key}"):
                problems.append(
                    f"data.{key}: the agent loop {AGENT_NAME} has one turn and calls no tools; remove it, or show "
                    "tools in the prompt with data.apply_chat_template_kwargs.tools"
                )
    try:
        template_options(config.data)
    except ValueError as error:
        problems.append(f"data.apply_chat_template_kwargs: {error}")
    return problems


def longer_than_the_rollout(config: DictConfig) -> list[str]:
    """Whether the longest prompt and the longest answer fit into vLLM's window together."""
    window = OmegaConf.select(config, "actor_rollout_ref.rollout.max_model_len")
    needed = int(config.data.max_prompt_length) + int(config.data.max_response_length)
    if not window or int(window) >= needed:
        return []
    return [
        f"actor_rollout_ref.rollout.max_model_len={window} is less than data.max_prompt_length + "
        f"data.max_response_length = {needed}; raise it to {needed}"
    ]


def cache_without_manager(config: DictConfig) -> list[str]:
    """The frame cache hands out keys, and only our manager's workers can read them; only they draw masks."""
    from verl_stvg.rows.settings import frame_store
    from verl_stvg.training.curriculum import Curriculum

    manager = str(OmegaConf.select(config, "actor_rollout_ref.rollout.agent.agent_loop_manager_class") or "")
    masked = Curriculum.of(config.data) is not None
    if "verl_stvg" in manager or not (masked or frame_store(config.data)):
        return []
    key = "data.curriculum" if masked else "data.video_cache"
    return [
        f"{key} needs actor_rollout_ref.rollout.agent.agent_loop_manager_class="
        "verl_stvg.training.manager.VideoGroundingLoopManager; set it, or set enabled=false there"
    ]
