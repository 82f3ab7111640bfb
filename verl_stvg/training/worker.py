"""The agent-loop worker of video grounding: verl's own, whose trajectories carry keys and whose videos may be masked.

It lies apart from the agent loop, which verl imports in the middle of importing its worker.
"""

import asyncio
import pickle

import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

from verl_stvg.rows.masks import Mask, RowFacts, crop_truth
from verl_stvg.rows.prompts import plan_video_part
from verl_stvg.rows.row import Row
from verl_stvg.rows.settings import frame_source, frame_store, switch_cache_off
from verl_stvg.training.agent_loop import MASK, STATS, KeyedVideoProcessor, RolloutError, keyed, video_parts
from verl_stvg.training.curriculum import Curriculum
from verl_stvg.video.keys import CachedPixels
from verl_stvg.video.positions import writes_times

# verl's worker is declared as a Ray actor, of which there are no subclasses; this is the class it was made from
StockWorker = AgentLoopWorkerTQ.__ray_metadata__.modified_class


class KeysAndMasks(AgentLoopWorker):
    """What either of verl's agent-loop workers needs so that trajectories carry keys and training videos are masked.

    A mask becomes part of the prompt's video, from which vLLM's frames and the actor's pixels are made. It follows
    from the row and the step that the trainer put on the prompt, so it is the same for all rollouts, and after resume.

    A model whose video processor is not of Qwen2-VL's kind gets its pixels the way verl sends them, with a warning.
    """

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        self.curriculum = Curriculum.of(config.data)
        self.total_steps = total_steps(config) if self.curriculum else 0
        video_processor = getattr(self.processor, "video_processor", None)
        if video_processor is None or frame_store(config.data) is None:
            return
        try:
            self.processor.video_processor = KeyedVideoProcessor(video_processor)
        except ValueError as reason:
            switch_cache_off(config, reason)

    async def _run_agent_loop(self, sampling_params, trajectory, **prompt):
        if self.curriculum and not trajectory["validate"]:
            prompt = await asyncio.get_running_loop().run_in_executor(None, self._masked, prompt)
        return await super()._run_agent_loop(sampling_params, trajectory, **prompt)

    def _masked(self, prompt: dict) -> dict:
        """The prompt under the mask of its step; ``extra_info`` then says what the mask takes."""
        try:
            facts = RowFacts.of(prompt)
            mask, truth = Mask(0.0), prompt["reward_model"]["ground_truth"]
            messages = prompt["raw_prompt"]
            if self.curriculum and facts.bin in self.curriculum.bins:
                part = next(video_parts(messages))
                plan = plan_video_part(part, frame_source(self.config.data))
                step = int(prompt["global_steps"]) - 1  # verl's first step is 1
                mask = self.curriculum.mask(plan, facts, step, self.total_steps)
                messages, truth = with_keys(messages, part, mask.keys), crop_truth(truth, mask, plan)
        except ValueError as error:
            raise RolloutError(f"sample {Row.of(prompt).name} cannot be masked: {error}") from error
        taken = {"bin": facts.bin, "mask_ratio": mask.ratio, "masked_share": mask.share}
        return {
            **prompt,
            "raw_prompt": messages,
            "reward_model": {**prompt["reward_model"], "ground_truth": truth},
            "extra_info": {**prompt["extra_info"], MASK: taken},
        }

    def _compute_multi_modal_inputs(self, output, input_ids) -> dict:
        data = output.multi_modal_data or {}
        videos = data.get("videos")
        if data.keys() - {"videos"} or not keyed(videos):
            return super()._compute_multi_modal_inputs(output, input_ids)
        plans = [frames.plan for frames, _ in videos]
        processor = self.processor.video_processor
        inputs = {
            "pixel_values_videos": CachedPixels(
                tuple((frames.path, frames.plan) for frames, _ in videos), videos[0][0].store, processor.normalisation
            ),
            "video_grid_thw": torch.tensor([plan.grid_thw for plan in plans]),
            "mm_token_type_ids": True,  # verl makes them anew for the positions
        }
        if not writes_times(self.processor):
            inputs["second_per_grid_ts"] = torch.tensor(
                [processor.temporal_patch_size / plan.fps for plan in plans], dtype=torch.float64
            )
        output.extra_fields.setdefault(STATS, {})["queue_bytes"] = len(pickle.dumps(inputs))
        return inputs


class VideoGroundingWorker(KeysAndMasks, StockWorker):
    """verl's agent-loop worker, whose trajectories carry keys instead of pixels, and which masks training videos."""


def with_keys(messages, part: dict, keys: dict) -> list[dict]:
    """Messages in which one part has further keys; those given are left as they are.

    Args:
        messages: of a prompt.
        part: the object itself, of the content of one of the messages.
        keys: of the part, beside those it has or in place of them.
    """
    return [
        {**message, "content": [{**other, **keys} if other is part else other for other in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


def total_steps(config) -> int:
    """Steps of the run, as verl's trainer has worked them out.

    Raises:
        ValueError: it has not.
    """
    trainer = config.trainer.v1
    updates = config.actor_rollout_ref.actor.optim.total_training_steps
    steps = updates // (trainer.get(trainer.trainer_mode) or {}).get("parameter_sync_step", 1)
    if steps < 1:
        raise ValueError("data.curriculum needs the number of training steps; set trainer.total_training_steps")
    return steps
