"""Checks of a run's configuration that look at values, names, row files and folders, for `verl_stvg.launch.preflight`.

Each function takes the composed configuration and returns one sentence for each problem: the key, its value, the
remedy. verl 0.9.1 finds most of these minutes later, in a worker, and some of them never.
"""

import dataclasses
import difflib
import functools
import tempfile
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from pyarrow import parquet

from verl_stvg import moved
from verl_stvg.base.models import ModelNameError, located
from verl_stvg.patches.frozen_tower import KEEP_MERGER
from verl_stvg.rows.files import RowFileError, open_rows
from verl_stvg.rows.settings import plain

REWARD_OPTIONS = "reward.custom_reward_function.reward_kwargs"
ROW_FILES = {"data.train_files": "data.train_max_samples", "data.val_files": "data.val_max_samples"}
"""Keys that name row files, with the key that bounds how many of the rows are used."""
_ROLES = ("ref", "rollout")
KL_ESTIMATES = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3")
"""What ``verl.trainer.ppo.core_algos.kl_penalty`` computes, each also with a ``+`` behind it."""
WORDS = {"actor_rollout_ref.actor.freeze_vision_tower": (KEEP_MERGER,)}
"""Words that keys take which are true or false in verl."""


@functools.cache
def defaults() -> DictConfig:
    """verl's own composition of its configuration, in full."""
    import verl

    return DictConfig(OmegaConf.load(Path(verl.__file__).parent / "trainer/config/_generated_ppo_trainer.yaml"))


# --- values -----------------------------------------------------------------------------------------------------------


def _added_types() -> dict[str, dict[str, Any]]:
    """Types of the keys that verl_stvg adds to verl's, by section."""
    from verl_stvg.rows.fit import KEYS
    from verl_stvg.rows.settings import VideoCache
    from verl_stvg.training.curriculum import Curriculum
    from verl_stvg.training.sampler import Draw, Rollouts

    sections = {"video_cache": VideoCache, "curriculum": Curriculum, "draw": Draw, "rollouts": Rollouts}
    return {
        "algorithm": {"exact_zero_advantage": bool, "own_old_log_probs": bool},
        "data": {"filter_unusable_videos": bool},
        **{f"data.{name}": typing.get_type_hints(kind) for name, kind in sections.items()},
        "data.fit": dict.fromkeys(set(KEYS) - {"rule"}, float),
    }


def other_kinds(config: DictConfig) -> list[str]:
    """Text where verl expects a truth value, a number or a group of keys, and fractions where it counts.

    Hydra leaves ``off``, ``on``, ``yes`` and ``no`` text, and any text is true in Python: ``use_kl_loss=off`` turns the
    KL term on. Types are those of verl's dataclasses, else those of the values in its yaml.
    """
    return list(_other_kinds(config, plain(defaults()), {}, "", _added_types()))


def _other_kinds(
    section: DictConfig, default: Mapping[Any, Any], hints: Mapping[Any, Any], prefix: str, added: Mapping[str, dict]
) -> Iterator[str]:
    hints = {**hints, **added.get(prefix.rstrip("."), {})}
    for name in section:
        key, usual, hint = f"{prefix}{name}", default.get(name), hints.get(name)
        kinds = _kinds_of(usual) if hint is None else _kinds(hint)
        if OmegaConf.is_missing(section, name) or _refers(section, name):
            continue
        value, below = section[name], usual if isinstance(usual, Mapping) else {}
        if isinstance(value, DictConfig):
            yield from _other_kinds(value, below, _types_below(below, hint), f"{key}.", added)
        elif isinstance(value, str) and value not in WORDS.get(key, ()):
            yield from _text_instead(key, value, kinds, bool(below) or key in added, name in default and usual is None)
        elif isinstance(value, float) and kinds == {int}:
            yield f"{key}={value} is no whole number to verl; write {key}={value:.0f}"


def _refers(section: DictConfig, name: Any) -> bool:
    """Whether a value is that of another key, where it is looked at; one of the environment is text, and is not."""
    return OmegaConf.is_interpolation(section, name) and "oc.env" not in str(
        OmegaConf.to_container(OmegaConf.masked_copy(section, name), resolve=False)
    )


def _types_below(below: Mapping[str, Any], hint: Any) -> dict[str, Any]:
    """Types of the keys of a section: those of the dataclass that verl makes of it."""
    kind = get_class(below["_target_"]) if below.get("_target_") else hint
    kinds = [one for one in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(one)]  # it may be optional
    return typing.get_type_hints(kinds[0]) if kinds else {}


def _kinds(hint: Any) -> set[type]:
    """Of bool, int and float those that a type is made of; empty where it takes text, or anything else, too."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    found = {part for part in parts if part is not type(None)}
    return found if found <= {bool, int, float} else set()


def _kinds_of(value: Any) -> set[type]:
    if isinstance(value, bool):
        return {bool}
    return {int, float} if isinstance(value, (int, float)) else set()


def _text_instead(key: str, value: str, kinds: Collection[type], group: bool, null: bool) -> Iterator[str]:
    """What is wrong with a text, if anything.

    Args:
        key: that has it.
        value: the text.
        kinds: that are expected instead; empty where text may stand.
        group: whether the key holds further keys.
        null: whether verl has nothing there by default.
    """
    low = value.strip(" '\"").lower()
    if bool in kinds:
        meant = {"off": "false", "no": "false", "false": "false", "on": "true", "yes": "true", "true": "true"}.get(low)
        choices = [meant] if meant else ["true", "false", *WORDS.get(key, ())]
        yield f"{key}={value} is text, and any text counts as true; write {key}={' or '.join(choices)}"
    elif (kinds and low in ("none", "null")) or (null and value == "None"):
        yield f"{key}={value} is text; write {key}=null"
    elif kinds:
        number = low if _is_number(low) else "NUMBER"
        yield f"{key}={value!r} is text where a number is expected; write {key}={number}, without quotes"
    elif group:
        yield f"{key}={value} is text, and this key holds further keys; set one of those: {key}.KEY=VALUE"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# --- names ------------------------------------------------------------------------------------------------------------


def unknown_names(config: DictConfig) -> list[str]:
    """Names of algorithms and programs that verl does not know, where it looks them up during the run."""
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
    from verl.utils.import_utils import import_external_libs
    from verl.utils.tracking import Tracking
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    libraries = OmegaConf.select(config, "actor_rollout_ref.model.external_lib")  # may register names of their own
    import_external_libs(plain(libraries))
    estimates = [*KL_ESTIMATES, *(f"{name}+" for name in KL_ESTIMATES)]
    known = {
        "algorithm.adv_estimator": ADV_ESTIMATOR_REGISTRY,
        "algorithm.kl_penalty": estimates,
        "actor_rollout_ref.actor.kl_loss_type": estimates,
        "actor_rollout_ref.actor.policy_loss.loss_mode": POLICY_LOSS_REGISTRY,
        "actor_rollout_ref.rollout.name": RolloutReplicaRegistry._registry,
        "trainer.logger": [*Tracking.supported_backend, "tracking"],
    }
    if not OmegaConf.select(config, "actor_rollout_ref.rollout.agent.agent_loop_config_path"):
        known["actor_rollout_ref.rollout.agent.default_agent_loop"] = _agent_loop_registry
    problems = []
    for key, names in known.items():
        given = OmegaConf.select(config, key)
        for name in [given] if isinstance(given, str) else given or ():
            problems += _unknown(key, name, [str(getattr(one, "value", one)) for one in names])
    return problems


def _unknown(key: str, name: object, known: Sequence[str]) -> list[str]:
    if name in known:
        return []
    near = difflib.get_close_matches(str(name), known, n=1)
    remedy = f"did you mean {near[0]}? Choose" if near else "choose"
    return [f"{key}={name} is unknown; {remedy} one of {', '.join(known)}"]


def unknown_reward_options(config: DictConfig) -> list[str]:
    """Recipes, parts and options of our reward that there are none of; whether a row's recipe has a part, rows say."""
    from reward_fns import RECIPES

    given = OmegaConf.select(config, REWARD_OPTIONS)
    if not given or not is_our_reward(config):
        return []
    options = plain(given)
    recipe = options.get("recipe")
    problems = [
        f"{REWARD_OPTIONS}.{name}: no such option; known are recipe, weights and parts"
        for name in sorted(options.keys() - {"recipe", "weights", "parts"})
    ]
    if recipe is not None:
        problems += _unknown(f"{REWARD_OPTIONS}.recipe", recipe, list(RECIPES))
    asked = [RECIPES[recipe]] if recipe in RECIPES else RECIPES.values()
    paid = list(dict.fromkeys(name for one in asked for name in (*one.parts, *one.optional)))
    carried = list(dict.fromkeys(name for one in RECIPES.values() for name in (*one.parts, *one.optional)))
    weights, parts = options.get("weights") or {}, options.get("parts") or []
    if not isinstance(weights, dict):
        return [*problems, f"{REWARD_OPTIONS}.weights={weights}: give each part a weight, such as weights.format=0.5"]
    if not isinstance(parts, list):
        return [*problems, f"{REWARD_OPTIONS}.parts={parts}: give a list, such as parts=[{parts}]"]
    for name, weight in weights.items():
        key = f"{REWARD_OPTIONS}.weights.{name}"
        if name not in paid:
            problems += [f"{key}: {problem}" for problem in _unknown("part", name, paid)]
        elif isinstance(weight, bool) or not isinstance(weight, (int, float)):
            problems.append(f"{key}={weight!r} is no number; write {key}=NUMBER, without quotes")
    for name in parts:
        problems += _unknown(f"{REWARD_OPTIONS}.parts: part", name, carried)
    return problems


def is_our_reward(config: DictConfig) -> bool:
    """Whether `verl_stvg.training.reward` scores the answers of a run."""
    path = str(OmegaConf.select(config, "reward.custom_reward_function.path") or "")
    return "verl_stvg.training.reward" in moved.today(path)


def kernels_without_logits(config: DictConfig) -> list[str]:
    """Fused kernels never hold the logits from which `patches.banned_tokens` takes the actor's banned tokens."""
    key = "actor_rollout_ref.model.use_fused_kernels"
    if not OmegaConf.select(config, key) or config.actor_rollout_ref.rollout.name != "vllm":
        return []
    return [
        f"{key}=true computes log-probabilities without logits, so that the actor cannot leave out the tokens that "
        f"verl bans in vLLM, and trains another policy than the one that is sampled; set {key}=false"
    ]


def engine_without_ban(config: DictConfig) -> list[str]:
    """A warning where the actor keeps the tokens that vLLM may not say: its engine is not a child of the FSDP one."""
    strategy = str(config.actor_rollout_ref.actor.strategy)
    if strategy.startswith("fsdp") or strategy == "veomni" or config.actor_rollout_ref.rollout.name != "vllm":
        return []
    return [
        f"actor_rollout_ref.actor.strategy={strategy}: this actor gives probability to the tokens that verl bans in "
        "vLLM, so the policy that is trained is not quite the one that is sampled; use fsdp2"
    ]


def clip_ratio_that_is_not_read(config: DictConfig) -> list[str]:
    """A warning where ``clip_ratio`` was changed and its two sides were not, which verl reads instead of it."""
    actor = config.actor_rollout_ref.actor
    usual = defaults().actor_rollout_ref.actor.clip_ratio
    sides = [OmegaConf.select(actor, f"clip_ratio_{side}") for side in ("low", "high")]
    if actor.clip_ratio in (usual, *sides) or None in sides:
        return []
    return [
        f"actor_rollout_ref.actor.clip_ratio={actor.clip_ratio} changes nothing: verl reads clip_ratio_low={sides[0]} "
        f"and clip_ratio_high={sides[1]}; set these two"
    ]


# --- rows and folders -------------------------------------------------------------------------------------------------


def row_files(config: DictConfig) -> Iterator[tuple[str, str]]:
    """The run's row files, each with the key that names it; those in remote places are left out."""
    for key in ROW_FILES:
        files = OmegaConf.select(config, key)
        yield from ((key, file) for file in ([files] if isinstance(files, str) else files or []) if "://" not in file)


def _columns(config: DictConfig) -> list[str]:
    """Columns that the run reads of every row; the others may be absent."""
    return [*(("data_source", "reward_model") if is_our_reward(config) else ()), config.data.prompt_key]


def _metadata(file: str, columns: Sequence[str] = ()) -> parquet.FileMetaData | str:
    """Of a row file; what is wrong with it, if something is, in the words of `verl-stvg check`."""
    try:
        with open_rows(file, columns) as opened:
            return opened.metadata
    except RowFileError as error:
        return str(error)


def unusable_files(config: DictConfig) -> list[str]:
    """Row files that are not named, not there or no rows, and a model that is not there; the hub is asked once.

    Names of remote places are left to verl.
    """
    problems = [
        f"{key}={OmegaConf.select(config, key)}: name a file of rows; verl reads it even where trainer.test_freq=-1 "
        "and trainer.val_before_train=false leave the validation out"
        for key in ROW_FILES
        if not OmegaConf.select(config, key)
    ]
    found = [(key, _metadata(file, _columns(config))) for key, file in row_files(config)]
    problems += [f"{key}: {problem}" for key, problem in found if isinstance(problem, str)]
    if model := OmegaConf.select(config, "actor_rollout_ref.model.path"):
        try:
            located(str(model))
        except ModelNameError as error:
            problems.append(f"actor_rollout_ref.model.path: {error}")
    return problems


def rows_of(config: DictConfig, key: str) -> int | None:
    """Number of rows in the files of a key; None where one of them is remote or cannot be used."""
    files = OmegaConf.select(config, key)
    metadata = [_metadata(file) for other, file in row_files(config) if other == key]
    counts = [of_file.num_rows for of_file in metadata if not isinstance(of_file, str)]
    return sum(counts) if len(counts) == (1 if isinstance(files, str) else len(files or ())) else None


def rows_beyond(config: DictConfig) -> list[str]:
    """A warning for each bound of rows that is above their number; verl then takes all there are, without a word."""
    warnings = []
    for key, bound in ROW_FILES.items():
        asked, rows = OmegaConf.select(config, bound), rows_of(config, key)
        if asked and rows is not None and asked > rows:
            warnings.append(f"{bound}={asked}: {key} has {rows} rows, all of which are taken; lower it, or add rows")
    return warnings


def too_few_rows(config: DictConfig, rows: int | None = None) -> list[str]:
    """Whether training rows make a step; verl says so after its whole start-up, or ends after none.

    Args:
        config: of the run.
        rows: that are trained on in an epoch; default: those of the files.
    """
    if rows is None:
        rows, bound = rows_of(config, "data.train_files"), OmegaConf.select(config, ROW_FILES["data.train_files"]) or -1
        if rows is None:
            return []
        rows = min(rows, bound) if bound > 0 else rows
    batch, sampler = int(config.data.train_batch_size), OmegaConf.select(config, "trainer.v1.sampler") or {}
    one_by_one = config.trainer.use_v1 and (
        OmegaConf.select(config, "algorithm.filter_groups.enable")
        or sampler.get("sync_refill_failed_groups")
        or OmegaConf.select(config, "trainer.v1.trainer_mode") != "sync"
    )
    drawn = 1 if one_by_one else int(config.data.get("gen_batch_size") or batch)
    needed = max(drawn, batch) if config.trainer.total_training_steps is None else drawn
    if rows >= needed:
        return []
    return [
        f"data.train_batch_size={batch} and there are {rows} rows to train on, so an epoch has no step; lower it to "
        f"{rows} or less{_with_all_batches(config, rows)}, or add rows"
    ]


def _with_all_batches(config: DictConfig, rows: int) -> str:
    """Arguments for the largest batch of so many rows, with the batches that have to divide it."""
    actor = config.actor_rollout_ref.actor
    gpus, answers = int(config.trainer.n_gpus_per_node) * int(config.trainer.nnodes), config.actor_rollout_ref.rollout.n
    places = ("actor.ppo_micro_batch_size_per_gpu", *(f"{one}.log_prob_micro_batch_size_per_gpu" for one in _ROLES))
    keys = [f"actor_rollout_ref.{place}" for place in places]
    micro = {} if actor.use_dynamic_bsz else {key: size for key in keys if (size := OmegaConf.select(config, key))}
    shared = [batch for batch in range(rows, 0, -1) if batch * answers % gpus == 0]
    if not shared:
        return ""
    whole = (batch for batch in shared if all(batch * answers // gpus % size == 0 for size in micro.values()))
    batch = next(whole, shared[0])
    settings = {"data.train_batch_size": batch}
    if not OmegaConf.is_interpolation(actor, "ppo_mini_batch_size") and actor.ppo_mini_batch_size > batch:
        settings["actor_rollout_ref.actor.ppo_mini_batch_size"] = batch
    settings |= {key: batch * answers // gpus for key, size in micro.items() if batch * answers // gpus % size}
    return f" ({' '.join(f'{key}={value}' for key, value in settings.items())})"


def unusable_cache(config: DictConfig) -> list[str]:
    """Whether decoded frames can be kept in the folder of the cache, which is made."""
    from verl_stvg.rows.settings import frame_store

    store = frame_store(config.data)
    if store is None:
        return []
    try:
        Path(store.folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store.folder):
            pass
    except OSError as error:
        return [
            f"data.video_cache.folder={store.folder} cannot be written into ({error.strerror}); name another folder, "
            "or set data.video_cache.enabled=false"
        ]
    return []
