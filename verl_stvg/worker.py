"""The agent-loop worker of video grounding: verl's own, whose trajectories carry keys instead of pixels.

It lies apart from the agent loop, which verl imports in the middle of importing its worker.
"""

import pickle

import torch
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

from verl_stvg.dataset import frame_store, switch_cache_off
from verl_stvg.rollout import STATS, KeyedVideoProcessor, keyed
from verl_stvg.video.refs import CachedPixels

# verl's worker is declared as a Ray actor, of which there are no subclasses; this is the class it was made from
StockWorker = AgentLoopWorkerTQ.__ray_metadata__.modified_class


class VideoGroundingWorker(StockWorker):
    """verl's agent-loop worker, whose trajectories carry keys instead of pixels.

    A model whose video processor is not of Qwen2-VL's kind gets its pixels the way verl sends them, with a warning.
    """

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        video_processor = getattr(self.processor, "video_processor", None)
        if video_processor is None or frame_store(config.data) is None:
            return
        try:
            self.processor.video_processor = KeyedVideoProcessor(video_processor)
        except ValueError as reason:
            switch_cache_off(config, reason)

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
            "second_per_grid_ts": torch.tensor([processor.temporal_patch_size / plan.fps for plan in plans]),
            "mm_token_type_ids": True,  # verl makes them anew for the positions
        }
        output.extra_fields.setdefault(STATS, {})["queue_bytes"] = len(pickle.dumps(inputs))
        return inputs
