"""Checks of every row that a run reads, for `verl_stvg.launch.preflight`: its video, its prompt, its ground truth.

This is where a ground truth is checked before a run; the reward checks it once more when it scores.
"""

import copy
import logging
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_stvg.launch.config_checks import REWARD_OPTIONS, is_our_reward, too_few_rows
from verl_stvg.launch.key_checks import longer_than_the_rollout

logger = logging.getLogger(__name__)


class PreflightError(ValueError):
    """The run cannot succeed as configured; one line for each cause, with its remedy."""


def check_rows(config: DictConfig) -> dict[str, Any]:
    """Build the datasets once, which checks every video and prompt, then check every ground truth against its reward.

    Returns:
        values of keys that the run takes in place of its own: rows that passed are not decoded a second time, and
        prompts that a fit has made longer have room. The configuration stays as it is.

    Raises:
        RowError: names the file, the first bad rows and the remedy.
        PreflightError: a model that cannot be trained on these rows.
    """
    from verl.utils.import_utils import load_extern_object

    from verl_stvg.rows.row import RowError

    length = config.data.max_prompt_length
    config = copy.deepcopy(config)  # of which the dataset raises `max_prompt_length` where there is a fit
    tokenizer, processor = _reader(config)
    dataset_class = load_extern_object(config.data.custom_cls.path, config.data.custom_cls.name)
    for files, limit in (("train_files", "train_max_samples"), ("val_files", "val_max_samples")):
        dataset = dataset_class(config.data[files], tokenizer, config.data, processor, config.data.get(limit, -1))
        if files == "train_files" and (problems := too_few_rows(config, len(dataset))):
            raise RowError(f"{config.data[files]}: {problems[0]}")
        if is_our_reward(config):
            _check_truths(config, files, dataset)
    found = {"data.check_videos": "exist"}
    if config.data.max_prompt_length != length:
        found["data.max_prompt_length"] = config.data.max_prompt_length
    return found | wider_rollout(config)


def _reader(config: DictConfig):
    """Tokenizer and processor of the run's model, as verl loads them.

    Raises:
        PreflightError: a model that reads no videos, or whose tokens are of another size than plans count with.
    """
    from verl.utils import hf_processor, hf_tokenizer

    from verl_stvg.rows.chat_template import settle
    from verl_stvg.video.frame_rules import MERGE, PATCH, QWEN3_PATCH
    from verl_stvg.video.positions import writes_times

    model = config.actor_rollout_ref.model.get("tokenizer_path") or config.actor_rollout_ref.model.path
    tokenizer, processor = hf_tokenizer(model), hf_processor(model)
    if processor is None:
        raise PreflightError(f"{model} has no processor of Qwen2.5-VL or Qwen3-VL that loads; it cannot read video")
    side = processor.video_processor.patch_size * processor.video_processor.merge_size
    if side != (QWEN3_PATCH if writes_times(processor) else PATCH) * MERGE:
        raise PreflightError(
            f"{model} makes one token of {side}x{side} pixels, and sampling plans are for {PATCH * MERGE} (Qwen2-VL "
            f"and Qwen2.5-VL) and {QWEN3_PATCH * MERGE} (Qwen3-VL); train one of these"
        )
    settle(processor, config.actor_rollout_ref.model.get("custom_chat_template"))
    return tokenizer, processor


def _check_truths(config: DictConfig, files: str, dataset) -> None:
    """Check the ground truth of every row as the reward will, and what the best answer to it can earn.

    Args:
        config: of the run.
        files: key under ``data`` that names the files.
        dataset: of their rows, a `verl_stvg.training.dataset.VideoGroundingDataset`.

    Raises:
        RowError: see `check_rows`.
    """
    from verl_stvg.launch.best_answer import BestAnswers
    from verl_stvg.rows.row import RowError
    from verl_stvg.rows.settings import plain

    options = plain(OmegaConf.select(config, REWARD_OPTIONS)) or {}
    name, wrong, best = config.data[files], [], BestAnswers(options, dataset.opened)
    for index, row in enumerate(map(dataset.row, dataset.dataframe)):
        try:
            row.recipe(options.get("recipe")).check(row.given_truth, row.name)
        except ValueError as error:
            wrong.append(f"  row {index}: {error}")
            continue
        try:
            best.add(index, row)
        except ValueError as error:
            raise RowError(f"{name}: row {index}: {REWARD_OPTIONS}: {error}") from error
    if wrong:
        count = f"{len(wrong)} of {len(dataset.dataframe)}"
        raise RowError("\n".join([f"{name}: {count} rows have no usable ground truth", *wrong[:5]]))
    if best.unpaid:
        lines = "\n".join(f"  {problem}" for problem in best.unpaid.values())
        raise RowError(f"{name}: no answer can earn all of the reward\n{lines}")
    if overlong := best.overlong(dataset.tokenizer, int(config.data.max_response_length)):
        if files == "train_files":
            raise RowError(f"{name}: {overlong}")
        logger.warning("%s: %s", name, overlong)


def wider_rollout(config: DictConfig) -> dict[str, int]:
    """The window of vLLM that prompts need which a fit has made longer than it is; nothing where they fit.

    Raises:
        PreflightError: the model reads fewer tokens.
    """
    from transformers import AutoConfig

    if not OmegaConf.select(config, "data.fit") or not (problems := longer_than_the_rollout(config)):
        return {}
    needed = int(config.data.max_prompt_length) + int(config.data.max_response_length)
    most = AutoConfig.from_pretrained(config.actor_rollout_ref.model.path).get_text_config().max_position_embeddings
    if needed > most:
        raise PreflightError(f"{problems[0]}, but the model reads {most} tokens: lower data.fit.total_pixels")
    logger.info("actor_rollout_ref.rollout.max_model_len is raised to %d, for prompt and answer", needed)
    return {"actor_rollout_ref.rollout.max_model_len": needed}
