"""The agent loop of video grounding: verl's single turn, where videos are keys and failures name their sample.

verl decodes a video n times per prompt, runs the Hugging Face processor up to three times for each rollout, and ships
every trajectory's pixels through its queue. Here a prompt's videos stay `CachedFrames`: the grid is known from the
plan, so tokens and positions need no pixels; vLLM's server gets a key that arrives as frames; and what the worker
(`verl_stvg.training.worker`) puts into the queue are keys again.

An exception in verl's agent loop ends, far from its cause, as "no materializable trajectories"; the sample's uid, its
video and what went wrong must be in the message itself.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import torch
from transformers import BatchFeature
from transformers.video_utils import VideoMetadata
from verl.experimental.agent_loop.agent_loop import register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from verl_stvg.rows.row import Row
from verl_stvg.rows.settings import frame_store, template_options
from verl_stvg.video.keys import CachedFrames, Normalisation
from verl_stvg.video.once import Once

AGENT_NAME = "video_grounding"
STATS = "video"
"""Key of a trajectory's ``extra_fields`` under which its video costs travel to the trainer's metrics."""
MASK = "mask"
"""Key of ``extra_info``, and of ``extra_fields``, under which a row's bin and what a mask takes travel with it."""


class RolloutError(RuntimeError):
    """One sample could not be rolled out; names its uid, its videos and the cause."""


class KeyedVideoProcessor:
    """A Hugging Face video processor that answers for `CachedFrames` from their plan, without pixels.

    The prompt's tokens follow from the grid. ``pixel_values_videos`` of its answer has no rows; frames given as
    tensors go to the processor itself.

    Args:
        inner: the video processor of a Hugging Face processor; every other attribute is its own.
    """

    def __init__(self, inner):
        self._inner = inner
        self.normalisation = Normalisation.of(inner)

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def __call__(self, videos, **kwargs) -> BatchFeature:
        if not all(isinstance(video, CachedFrames) for video in videos):
            return self._inner(videos=videos, **kwargs)
        return BatchFeature(
            {
                "pixel_values_videos": torch.empty(0, self.normalisation.width),
                "video_grid_thw": torch.tensor([video.plan.grid_thw for video in videos]),
                "video_metadata": [VideoMetadata(**video.plan.metadata()) for video in videos],
            }
        )


class SharedTokens:
    """verl's token builder, which renders the prompt of n rollouts once where its videos are keys.

    Args:
        inner: the builder; every other attribute is its own.
    """

    _prompts = Once(64 * 2**20, size=lambda ids: 8 * len(ids))

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def build_initial_tokens(
        self, messages, *, videos: Sequence[tuple[Any, Any]] | None = None, mm_inputs_out=None, **kwargs
    ) -> list[int]:
        """Token IDs of a prompt.

        Args:
            messages: of the chat.
            videos: pairs of frames and metadata; None for none.
            mm_inputs_out: dictionary that verl's builder puts features into; left alone where videos are keys, there
                are none without pixels.
            kwargs: verl's further arguments.
        """
        if not keyed(videos) or kwargs.get("images") or kwargs.get("audios"):
            return self._inner.build_initial_tokens(messages, videos=videos, mm_inputs_out=mm_inputs_out, **kwargs)
        asked = json.dumps([messages, kwargs.get("tools"), self._inner.chat_template_kwargs], default=str)
        key = self._inner.processor.chat_template, asked, tuple(frames.plan for frames, _ in videos)
        return list(
            self._prompts.get(key, lambda: tuple(self._inner.build_initial_tokens(messages, videos=videos, **kwargs)))
        )


@register(AGENT_NAME)
class VideoGroundingAgentLoop(SingleTurnAgentLoop):
    """One prompt with videos, one answer (``rollout.agent.default_agent_loop=video_grounding``).

    With ``rollout.full_determinism`` each answer is drawn from a seed of its own, see `answer_seed`. verl gives all
    requests one seed there, so that the answers to a prompt are all the same and GRPO learns nothing, and in its V1
    trainer one request ID, which takes all of them to one server.
    """

    continuous_token_builder: Any  # verl's, in a `SharedTokens`
    _counted: dict[str, float] = {}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.continuous_token_builder.chat_template_kwargs = template_options(self.data_config)  # tools as plain lists
        self.continuous_token_builder = SharedTokens(self.continuous_token_builder)

    async def run(self, sampling_params, **kwargs):
        began = time.perf_counter()
        if self.rollout_config.full_determinism:
            uid, step = Row.of(kwargs).uid, kwargs["global_steps"]
            seed = answer_seed(self.rollout_config.seed, uid, step, kwargs["session_id"])
            sampling_params = {**sampling_params, "seed": seed}
            kwargs["priority"] = seed >> 32  # verl names the request after it
        try:
            output = await super().run(sampling_params, **kwargs)
        except Exception as error:
            videos = ", ".join(str(part.get("video")) for part in video_parts(kwargs["raw_prompt"])) or "no video"
            raise RolloutError(f"sample {Row.of(kwargs).name} with {videos}: {error}") from error
        waited = time.perf_counter() - began - output.metrics.generate_sequences
        output.extra_fields[STATS] = {"prepare_seconds": waited, **self._costs()}
        extra = kwargs.get("extra_info") or {}
        output.extra_fields[MASK] = extra.get(MASK) or {"bin": extra.get("bin")}
        return output

    def _costs(self) -> dict[str, float]:
        """What this process's cache has done since the last trajectory asked."""
        store = frame_store(self.data_config)
        if store is None:
            return {}
        cache = store.cache
        now = {
            "cache_hits": cache.hits,
            "decodes": cache.decodes,
            "decode_seconds": cache.seconds,
            "decode_bytes": cache.bytes,
        }
        since = {name: value - self._counted.get(name, 0) for name, value in now.items()}
        self._counted.update(now)  # of all loops of this process
        return since


def answer_seed(seed: int, uid: str, step: int, place: int) -> int:
    """Seed that one answer is drawn from, 63 bits: the same in a resumed run.

    Args:
        seed: of the run, ``rollout.seed``.
        uid: of the row.
        step: of training.
        place: of the answer among those to its prompt.
    """
    digest = hashlib.blake2b(f"{seed}/{uid}/{step}/{place}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def keyed(videos: Sequence[tuple[Any, Any]] | None) -> TypeGuard[Sequence[tuple[CachedFrames, Any]]]:
    """Whether a prompt's videos, pairs of frames and metadata, are all `CachedFrames`."""
    return bool(videos) and all(isinstance(frames, CachedFrames) for frames, _ in videos or ())


def video_parts(messages) -> Iterator[dict]:
    """The parts of a prompt's messages that are videos."""
    for message in messages:
        if isinstance(message["content"], list):
            yield from (part for part in message["content"] if part.get("type") == "video")
