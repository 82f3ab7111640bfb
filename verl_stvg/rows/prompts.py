"""Rows to prompts outside of a trainer: the messages, tokens and frames that training makes of the same row.

Evaluation and data selection must ask exactly what training asks. verl's dataset class does it inside of verl, whose
import takes a quarter of a minute and a trainer's configuration; here is what of it a prompt needs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from verl_stvg.rows.chat_template import opened, render
from verl_stvg.rows.row import Row, entry_of, plan_of
from verl_stvg.video.child import Decoder
from verl_stvg.video.film import VideoInfo
from verl_stvg.video.identity import identity
from verl_stvg.video.keys import CachedFrames, view
from verl_stvg.video.plan import SamplingPlan
from verl_stvg.video.positions import added_tokens, fit, writes_times
from verl_stvg.video.store import FrameStore, decoder_of

_FLOAT = 4


@dataclass(frozen=True)
class Prompt:
    """What a model is asked.

    Attributes:
        uid: of the row.
        text: after the chat template, with one placeholder token for each video.
        ids: its tokens.
        videos: in the order of the placeholders; their frames lie in the cache.
        added: tokens by which the prompt grows when the videos take the places of their placeholders.
        opened: what the chat template has written of the answer, which the model goes on from; see
            `verl_stvg.rows.chat_template.opened`.
    """

    uid: str
    text: str
    ids: tuple[int, ...]
    videos: tuple[CachedFrames, ...]
    added: int
    opened: str = ""

    @property
    def num_tokens(self) -> int:
        """Tokens the model reads."""
        return len(self.ids) + self.added

    @property
    def pixel_bytes(self) -> int:
        """Bytes of the frames once the processor has made float32 of them."""
        return sum(3 * _FLOAT * v.plan.num_frames * v.plan.height * v.plan.width for v in self.videos)


@dataclass(frozen=True)
class PromptMaker:
    """Makes the prompts of rows: verl's messages, the model's chat template, the plan's frames.

    Attributes:
        processor: of the model, as `AutoProcessor` gives it.
        store: of the frames.
        template: options of the chat template, ``data.apply_chat_template_kwargs`` in training.
    """

    processor: Any
    store: FrameStore
    template: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, row: Mapping[str, Any]) -> Prompt:
        """The prompt of a row; reads its videos into the cache.

        Raises:
            ValueError: a video that cannot be used, or a prompt that does not fit its videos.
            CacheError: the cache cannot be written.
        """
        row = Row.of(row)
        messages = fit(messages_of(row), self.processor)
        videos = []
        for part in (
            part for message in messages if isinstance(message["content"], list) for part in message["content"]
        ):
            if part["type"] == "video":
                frames = cached(part, self.store)
                check_size(frames.plan, self.processor)
                videos.append(frames)
        text = render(self.processor, messages, self.template)
        ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        added = sum(added_tokens(video.plan, self.processor) for video in videos)
        return Prompt(row.uid, text, tuple(ids), tuple(videos), added, opened(text))


def messages_of(row: Mapping[str, Any]) -> list[dict]:
    """The messages of a row, each ``<video>`` in them replaced by its entry of ``videos``, paths absolute.

    Raises:
        ValueError: more or fewer ``<video>`` than videos, or a video that is none
        (`verl_stvg.rows.row.entry_of`).
    """
    row = Row.of(row)
    if not row.videos:
        return [dict(message) for message in row["prompt"]]
    check_places(row["prompt"], "video", len(row.videos))
    left = iter(row.videos)
    return [
        {
            **message,
            "content": [
                {"type": "video", **next(left)} if part == "<video>" else {"type": "text", "text": part}
                for part in re.split("(<video>)", message["content"])
                if part
            ],
        }
        for message in row["prompt"]
    ]


def check_places(messages: Sequence[Mapping[str, Any]], kind: str, count: int) -> None:
    """See that messages have a place for each of a row's videos, or images.

    Args:
        messages: of the row; those that are taken apart already have none.
        kind: ``video``, whose places are ``<video>``, or the like.
        count: of the row's.

    Raises:
        ValueError: more or fewer places.
    """
    texts = [message["content"] for message in messages if isinstance(message["content"], str)]
    asked = sum(text.count(f"<{kind}>") for text in texts)
    if asked != count:
        raise ValueError(
            f"the prompt has {asked} <{kind}> and the row {count} {kind}s; build the rows again, or correct them"
        )


def plan_video_part(video: dict, source: FrameStore | Decoder | None = None) -> SamplingPlan:
    """Sampling plan of one message part, under the mask that its keys ``hidden`` and ``shown`` ask for.

    Args:
        video: of the message.
        source: where frames come from, see `read_video`.

    Raises:
        ValueError: see `entry_of` and `plan_of`; `VideoError` where the video cannot be used.
    """
    path = entry_of({key: value for key, value in video.items() if key != "patch"})["video"]
    version = tuple(identity(path)) if Path(path).is_file() else None
    info = _probe_once(path, version, source or decoder_of())
    return plan_of(video, info).masked(video.get("hidden"), video.get("shown"))


def read_video(video: dict, source: FrameStore | Decoder | None = None) -> tuple[CachedFrames | torch.Tensor, dict]:
    """Frames and metadata of one message part, for a Hugging Face processor or vLLM.

    Args:
        video: of the message.
        source: where frames come from: a store, or a decoder, which keeps nothing; None is the default decoder. Both
            decode in child processes.

    Returns:
        the frames, which now lie in the store, or without one a uint8 tensor (T, 3, H, W); and the metadata that makes
        the processor's rate the plan's, exactly.

    Raises:
        ValueError: see `plan_video_part`.
        CacheError: the cache cannot be written.
    """
    if isinstance(source, FrameStore):
        frames = cached(video, source)
        return frames, frames.plan.metadata()
    source = source or decoder_of()
    plan = plan_video_part(video, source)
    return torch.from_numpy(view(source.read(video["video"], plan.whole), plan)).permute(0, 3, 1, 2), plan.metadata()


def cached(video: dict, store: FrameStore) -> CachedFrames:
    """Frames of one message part, which now lie in the store; raises what `read_video` does."""
    plan = plan_video_part(video, store)
    store.frames(video["video"], plan.whole)
    return CachedFrames(video["video"], plan, store)


@lru_cache(maxsize=65536)
def _probe_once(path: str, version: tuple[int, ...] | None, source: FrameStore | Decoder) -> VideoInfo:
    return source.probe(path)


def check_size(plan: SamplingPlan, processor) -> None:
    """See that the processor leaves the plan's frames as they are, or prompt and pixels would not fit.

    Raises:
        ValueError: it would resize them.
    """
    limits = getattr(getattr(processor, "video_processor", None), "size", None)
    if limits:
        low, high = limits["shortest_edge"], limits["longest_edge"]
        frames = plan.num_frames if writes_times(processor) else 1  # Qwen3-VL's count the whole video
        if not low <= frames * plan.height * plan.width <= high:
            raise ValueError(
                f"{f'{frames} ' if frames > 1 else ''}frames of {plan.width}x{plan.height} lie outside the limits of "
                f"the model's processor, {low} to {high} pixels; show the rows otherwise, without building them again: "
                "set data.fit.min_pixels and data.fit.max_pixels in training, --fit model=FOLDER elsewhere"
            )
