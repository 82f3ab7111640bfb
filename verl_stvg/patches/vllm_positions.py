"""The clock of Qwen's videos in vLLM, and in verl's server of vLLM.

Versions: vLLM 0.24.0 and verl 0.9.1. Qwen2.5-VL, vLLM pull request 47736:

1. vLLM drops the video's metadata, the processor then assumes 24 fps, and the temporal axis collapses to 0 and 1;
2. vLLM rounds the seconds per unit to the type of the weights: 0.667969 in bfloat16 for the 2 / 3 s of 3 fps, so that
   every fourth unit stands elsewhere than for the actor.

Qwen3-VL: verl sends vLLM a prompt in which the units are written out, each cut down to one placeholder; vLLM writes the
whole video out again at the first of them, so the rollout reads every time twice, and placeholders without a video.

`mend_vllm` runs in every vLLM process, `mend_server` in verl's servers of vLLM. Both are idempotent, and leave a mended
version alone; ``tests/patches/test_positions.py`` and ``tests/long/test_qwen3.py`` say when that day has come.
"""

from verl_stvg.video.positions import folded, seconds_per_unit, writes_times


def vllm_forwards_metadata() -> bool:
    """Whether this vLLM hands a video's metadata to Qwen2.5-VL's processor by itself (vLLM pull request 47736)."""
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLProcessingInfo
    from vllm.model_executor.models.qwen2_vl import Qwen2VLProcessingInfo

    return Qwen2_5_VLProcessingInfo.get_data_parser is not Qwen2VLProcessingInfo.get_data_parser


def mend_vllm() -> None:
    """Let vLLM hand a video's metadata to Qwen2.5-VL's processor, and keep its seconds unrounded, in this process.

    Videos given as ``(frames, metadata)`` then get the clock of their own frame rate. Videos without metadata keep
    vLLM's stock behaviour.
    """
    if vllm_forwards_metadata():
        return
    from transformers.video_utils import VideoMetadata
    from vllm.model_executor.models import qwen2_5_vl, qwen2_vl

    class MetadataParser(qwen2_vl.Qwen2VLMultiModalDataParser):
        def _get_video_with_metadata(self, video):
            frames, metadata = super()._get_video_with_metadata(video)
            return frames, metadata or {}

    def get_data_parser(self):
        return MetadataParser(
            self.get_hf_config().vision_config.spatial_merge_size,
            video_needs_metadata=True,
            expected_hidden_size=self._get_expected_hidden_size(),
        )

    stock_call = qwen2_5_vl.Qwen2_5_VLMultiModalProcessor._call_hf_processor

    def _call_hf_processor(self, prompt, mm_data, mm_kwargs, tok_kwargs):
        mm_data, mm_kwargs = dict(mm_data), dict(mm_kwargs)
        videos = mm_data.get("videos") or []
        pairs = [video if isinstance(video, tuple) else (video, {}) for video in videos]
        if pairs:
            mm_data["videos"] = [frames for frames, _ in pairs]
            known = [bool(metadata) for _, metadata in pairs]
            if all(known):
                mm_data["video_metadata"] = [
                    VideoMetadata(**{k: v for k, v in metadata.items() if k != "do_sample_frames"})
                    for _, metadata in pairs
                ]
                mm_kwargs["do_sample_frames"] = False
            elif any(known):
                raise ValueError(
                    "one video of this prompt has metadata and another has none; give it for all or for none"
                )
        result = stock_call(self, prompt, mm_data, mm_kwargs, tok_kwargs)
        if "video_metadata" in mm_data:  # vLLM has rounded the seconds to the type of the weights
            patch = self.info.get_hf_config().vision_config.temporal_patch_size
            result["second_per_grid_ts"] = seconds_per_unit(mm_data["video_metadata"], patch)
        return result

    qwen2_5_vl.Qwen2_5_VLProcessingInfo.get_data_parser = get_data_parser
    qwen2_5_vl.Qwen2_5_VLMultiModalProcessor._call_hf_processor = _call_hf_processor


def mend_server(vllm_async_server) -> None:
    """Let verl's server of vLLM fold the videos of Qwen3-VL's prompts; other prompts are verl's business."""
    stock = vllm_async_server.qwen2_5_vl_dedup_image_tokens

    def dedup(prompt_ids, processor):
        ids = stock(prompt_ids, processor)
        return folded(ids, processor) if writes_times(processor) else ids

    vllm_async_server.qwen2_5_vl_dedup_image_tokens = dedup
