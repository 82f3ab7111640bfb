"""Videos that travel as keys: what is sent between processes is a path and a plan, never pixels.

A prompt is rolled out n times and each rollout crosses three processes (agent loop, vLLM, actor). Sent as pixels, one
minute of video is some hundred megabytes, n times over. The frames lie in the `FrameCache`; here are the objects that
stand for them on the way: `CachedFrames` arrives in another process as a tensor of frames, `CachedPixels` turns into
the processor's ``pixel_values_videos`` at the moment verl concatenates a micro batch. A mask (`SamplingPlan.hidden`,
`SamplingPlan.shown`) is part of the key and laid over the cached frames here, so that whoever reads sees the same.

Pixels are made with the arithmetic of Hugging Face's Qwen2-VL video processor, which is also that of Qwen3-VL's, to the
bit; `Normalisation.of` checks that against the processor at hand and refuses another kind.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from verl_stvg.video.frame_rules import TEMPORAL_PATCH
from verl_stvg.video.plan import SamplingPlan
from verl_stvg.video.store import FrameStore


@dataclass(frozen=True)
class CachedFrames:
    """The frames of one video and plan; pickled, they are a key, and unpickled a uint8 tensor (T, 3, H, W).

    The receiving process reads them from the cache, or decodes the video where the cache lacks it.
    """

    path: str
    plan: SamplingPlan
    store: FrameStore

    def tensor(self) -> torch.Tensor:
        """The frames, uint8 (T, 3, H, W), memory of this tensor's own."""
        return torch.from_numpy(np.array(read_view(self.path, self.plan, self.store))).permute(0, 3, 1, 2)

    def __reduce__(self):
        return _arrive, (self.path, self.plan, self.store)

    def __deepcopy__(self, memo):
        return self


def read_view(path: str, plan: SamplingPlan, store: FrameStore) -> np.ndarray:
    """What the model sees of a video: the frames in the store, and over them the plan's mask.

    Args:
        path: of the video.
        plan: which frames, their size, and what is hidden.
        store: of the frames, into which they are decoded if they are not there.

    Returns:
        uint8 (T, H, W, 3), RGB: read-only, or a copy where something is hidden.
    """
    return view(store.frames(path, plan.whole), plan)


def view(frames: np.ndarray, plan: SamplingPlan) -> np.ndarray:
    """Frames (T, H, W, 3) of a whole plan, under its mask: hidden units black, and none but those shown."""
    if plan.hidden:
        frames = np.array(frames)
        for first, last in plan.hidden:
            frames[first * TEMPORAL_PATCH : last * TEMPORAL_PATCH] = 0
    if plan.shown:
        frames = frames[plan.shown[0] * TEMPORAL_PATCH : plan.shown[1] * TEMPORAL_PATCH]
    return frames


def _arrive(path: str, plan: SamplingPlan, store: FrameStore) -> torch.Tensor:
    return CachedFrames(path, plan, store).tensor()


@dataclass(frozen=True)
class Normalisation:
    """How a video processor turns bytes into patches.

    Attributes:
        mean: per channel, in units of a byte.
        std: per channel, in units of a byte.
        patch: side of a patch, pixels.
        merge: patches per side of a token.
        temporal_patch: frames per temporal unit.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch: int
    merge: int
    temporal_patch: int

    @classmethod
    def of(cls, processor) -> "Normalisation":
        """The normalisation of a Hugging Face video processor.

        Raises:
            ValueError: on a small clip of all byte values its pixels differ from ours.
        """
        names = ("image_mean", "image_std", "patch_size", "merge_size", "temporal_patch_size", "rescale_factor")
        missing = [name for name in names if getattr(processor, name, None) is None]
        if missing or not (processor.do_rescale and processor.do_normalize and processor.do_convert_rgb):
            raise ValueError(f"{type(processor).__name__} is not a video processor of the Qwen2-VL kind")
        scale = 1.0 / processor.rescale_factor  # as transformers fuses the two steps
        mean = tuple((torch.tensor(processor.image_mean) * scale).tolist())
        std = tuple((torch.tensor(processor.image_std) * scale).tolist())
        self = cls(mean, std, processor.patch_size, processor.merge_size, processor.temporal_patch_size)
        side = self.patch * self.merge
        shape = (2 * self.temporal_patch, side, 2 * side, 3)
        clip = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        video, as_it_is = torch.from_numpy(clip).permute(0, 3, 1, 2), {"do_resize": False, "do_sample_frames": False}
        theirs = processor(videos=[video], **as_it_is, return_tensors="pt")["pixel_values_videos"]
        if theirs.shape[1:] != (self.width,) or not torch.equal(theirs, self.pixels([clip])):
            raise ValueError(f"{type(processor).__name__} makes other pixels than Qwen2-VL's video processor")
        return self

    @property
    def width(self) -> int:
        """Values per patch."""
        return 3 * self.temporal_patch * self.patch**2

    def pixels(self, clips: Sequence[np.ndarray]) -> torch.Tensor:
        """``pixel_values_videos`` of clips, each uint8 (T, H, W, 3): float32 (patches of all, `width`)."""
        sizes = [clip.shape[0] * clip.shape[1] * clip.shape[2] * 3 // self.width for clip in clips]
        out = torch.empty(sum(sizes), self.width)
        for clip, part in zip(clips, out.split(sizes), strict=True):
            self._fill(clip, part)
        return out

    def _fill(self, clip: np.ndarray, out: torch.Tensor) -> None:
        frames, height, width, _ = clip.shape
        p, m, t = self.patch, self.merge, self.temporal_patch
        grid = (frames // t, t, height // (p * m), m, p, width // (p * m), m, p, 3)
        patches = torch.from_numpy(np.array(clip)).view(grid).permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
        view = out.view(patches.shape)
        view.copy_(patches)
        channel = (3, 1, 1, 1)
        view.sub_(torch.tensor(self.mean).view(channel)).div_(torch.tensor(self.std).view(channel))


class CachedPixels:
    """``pixel_values_videos`` of one prompt, before they are needed: verl's ``torch.cat`` of a micro batch makes them.

    Only ``torch.cat`` along the first axis is answered; it returns a float32 tensor, like that of the processor's
    output, of all parts in order. No dataclass: verl's queue would send one as a dictionary.

    Args:
        videos: path and plan of each video, in the order of the prompt.
        store: where their frames are.
        normalisation: how the model's processor makes pixels.
    """

    def __init__(self, videos: tuple[tuple[str, SamplingPlan], ...], store: FrameStore, normalisation: Normalisation):
        self.videos, self.store, self.normalisation = videos, store, normalisation

    @property
    def shape(self) -> tuple[int, int]:
        """Patches, values per patch."""
        return sum(math.prod(plan.grid_thw) for _, plan in self.videos), self.normalisation.width

    @classmethod
    def __torch_function__(cls, function: Callable, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        if function is not torch.cat or dim != 0:
            return NotImplemented
        parts = args[0] if args else kwargs["tensors"]
        began = time.perf_counter()
        out = torch.empty(sum(part.shape[0] for part in parts), parts[0].shape[1])
        made, first = {}, 0
        for part in parts:
            here = out[first : first + part.shape[0]]
            first += part.shape[0]
            if not isinstance(part, cls):
                here.copy_(part)
            elif part.videos in made:  # another rollout of the same prompt
                here.copy_(made[part.videos])
            else:
                part.fill(here)
                made[part.videos] = here
        LOADED["load_seconds"] += time.perf_counter() - began
        LOADED["load_bytes"] += out.nbytes
        return out

    def fill(self, out: torch.Tensor) -> None:
        """Write the pixels to `out`, float32 of `shape`."""
        sizes = [math.prod(plan.grid_thw) for _, plan in self.videos]
        for (path, plan), part in zip(self.videos, out.split(sizes), strict=True):
            self.normalisation._fill(read_view(path, plan, self.store), part)


LOADED = {"load_seconds": 0.0, "load_bytes": 0.0}
"""What making pixels has cost this process since it last reported it (`verl_stvg.patches.frame_loads`)."""
