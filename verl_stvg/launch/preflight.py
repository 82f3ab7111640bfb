"""Checks of a run's configuration before anything is started, so that a mistake costs seconds and ends in one message.

Runs inside verl's own ``validate_config``, on the driver, for every run whose dataset class is ours: keys, values and
names (`key_checks`, `config_checks`), paths, Ray's CPUs and memory (`machine_checks`) first, then every row
(`row_checks`). The checks leave the configuration as it is; what they find that a run needs is set in one place,
`settle`.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_stvg.base.lock import write_whole
from verl_stvg.launch import lifeline, phases
from verl_stvg.launch.config_checks import (
    clip_ratio_that_is_not_read,
    engine_without_ban,
    kernels_without_logits,
    other_kinds,
    rows_beyond,
    too_few_rows,
    unknown_names,
    unknown_reward_options,
    unusable_cache,
    unusable_files,
)
from verl_stvg.launch.key_checks import (
    cache_without_manager,
    groups_of_one,
    indivisible_batches,
    longer_than_the_rollout,
    other_prompts,
    unknown_keys,
)
from verl_stvg.launch.machine_checks import (
    attention_that_cannot_run,
    differing_nodes,
    too_few_cpus,
    too_few_gpus,
    too_little_memory,
)
from verl_stvg.launch.row_checks import PreflightError, check_rows
from verl_stvg.moved import names_of
from verl_stvg.training import sharing
from verl_stvg.training.resume import too_little_disk, unusable_checkpoint

logger = logging.getLogger(__name__)

__getattr__ = names_of(
    __name__,
    {
        **dict.fromkeys(("OPEN_KEYS", "ADDED_KEYS"), "verl_stvg.launch.key_checks"),
        **dict.fromkeys(
            (
                *("GIB", "CPU_RUN_BYTES", "BASE_CPUS", "CPUS_OF_A_GPU"),
                *("cluster_address", "files_of_a_run", "too_few_gpus_on_nodes", "needed_cpus"),
            ),
            "verl_stvg.launch.machine_checks",
        ),
    },
)


def install(verl_config) -> None:
    """Let verl's ``validate_config`` run `check` first, settle what it finds, and watch the run that follows."""
    stock = verl_config.validate_config

    def validate_config(config, *args, **kwargs):
        if is_ours(config) and not in_actor():  # the older trainer validates again, in its own process
            phases.begin("checking the configuration and every row")
            settle(config, check(config))
            phases.begin("starting Ray")
            lifeline.start()
        return stock(config, *args, **kwargs)

    verl_config.validate_config = validate_config


def in_actor() -> bool:
    """Whether this process is one that Ray started for a run."""
    import ray

    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def is_ours(config: DictConfig) -> bool:
    """Whether a run uses verl_stvg's dataset class."""
    return "verl_stvg" in str(OmegaConf.select(config, "data.custom_cls.path") or "")


def check(config: DictConfig) -> dict[str, Any]:
    """Check configuration, machine and rows; the configuration stays as it is.

    Returns:
        values of keys that the run takes in place of its own, see `check_rows` and `sharing.with_older_trainer`.

    Raises:
        PreflightError: lists everything that is wrong with the configuration and this machine.
        RowError: names the first bad rows.
    """
    of_another_kind = other_kinds(config)
    problems = [*unknown_keys(config), *of_another_kind]
    if not of_another_kind:  # the other checks reckon with these values
        problems += [
            *unknown_names(config),
            *unknown_reward_options(config),
            *unusable_files(config),
            *too_few_rows(config),
            *indivisible_batches(config),
            *groups_of_one(config),
            *other_prompts(config),
            *longer_than_the_rollout(config),
            *too_few_gpus(config),
            *attention_that_cannot_run(config),
            *kernels_without_logits(config),
            *unusable_cache(config),
            *cache_without_manager(config),
            *too_few_cpus(config),
            *too_little_memory(),
            *unusable_checkpoint(config),
            *too_little_disk(config),
        ]
    if problems := problems or differing_nodes(config):
        raise PreflightError("the run cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))
    for warning in (*clip_ratio_that_is_not_read(config), *engine_without_ban(config), *rows_beyond(config)):
        logger.warning("%s", warning)
    return {**sharing.with_older_trainer(config), **check_rows(config)}


def settle(config: DictConfig, found: Mapping[str, Any]) -> None:
    """Give a run what its checks found; this is the one place where a configuration is changed before a run.

    Args:
        config: of the run.
        found: values by key, of `check`.
    """
    with open_dict(config):
        for key, value in found.items():
            OmegaConf.update(config, key, value)
    record_fit(config)


def record_fit(config: DictConfig) -> None:
    """Write the fit into the launcher's ``run.json``, from which evaluation takes it."""
    from verl_stvg.rows.settings import fit_of

    fit, metrics = fit_of(config.data), os.environ.get("VERL_FILE_LOGGER_PATH")
    path = metrics and Path(metrics).with_name("run.json")
    if path and path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
        record.pop("fit", None)  # of an earlier start
        write_whole(path, json.dumps(record | ({"fit": fit} if fit else {}), indent=2))
