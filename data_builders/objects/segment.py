"""SAM 2.1 as a `Segmenter`: masks of boxes, and masks followed through a video, within a fixed amount of memory.

The package's own way through a video is a folder of JPEG files, read into one float tensor of all frames, and a record
of every frame's memory of every object. Both grow with the video: 12.6 MB per frame, and 0.8 MB per frame and object,
at the usual 1024 pixels. Here the predictor is given one frame at a time, and what it can no longer look back at (it
remembers six frames, and short summaries of sixteen) is thrown away. Its answers are the same, bit for bit.

The package is `sam2` (Apache-2.0, as are Meta's checkpoints). Its ``setup.py`` tries to compile a CUDA extension, which
only serves to fill holes of up to 8 pixels in the masks; ``SAM2_BUILD_CUDA=0`` goes without, and so do we where it is
missing.
"""

import copy
import functools
import importlib
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco
from torch.nn.functional import interpolate

from verl_stvg.base.models import located
from verl_stvg.data_builders.objects.detector import ModelError, imported
from verl_stvg.data_builders.objects.track import Box, Segmenter
from verl_stvg.video.markers import RLE
from verl_stvg.video.rle import encode

CONFIG = "configs/sam2.1/sam2.1_hiera_l.yaml"
MODEL = "facebook/sam2.1-hiera-large"
"""What STVG-R1 uses."""
_TOGETHER = 8  # boxes in one go; their masks are large


class Sam2Segmenter:
    """`Segmenter` on a SAM 2 video predictor, whose weights serve single images as well; built once for many videos.

    Masks are where the logits are above 0. Boxes give one mask each (``multimask_output=False``). On a GPU it runs in
    bfloat16, like STVG-R1's code; whether float32 may be rounded to TF32 is left to the process.

    Args:
        predictor: a ``SAM2VideoPredictor`` in evaluation mode, see `load` and `build`.
        name: what to say about it in `Tracks.made_by`.
    """

    def __init__(self, predictor, name: str):
        from sam2.sam2_image_predictor import SAM2ImagePredictor

        self.predictor, self.name = predictor, name
        self.side = predictor.image_size
        if importlib.util.find_spec("sam2._C") is None:
            predictor.fill_hole_area = 0
        self._images = SAM2ImagePredictor(predictor)
        self._images._bb_feat_sizes = [(self.side // k,) * 2 for k in (4, 8, 16)]  # it takes 1024 pixels for granted
        with self._precision():
            self._blank = _blank_state(predictor)

    @classmethod
    def load(cls, model: str = MODEL, device: str | None = None) -> "Sam2Segmenter":
        """One of Meta's models, from the Hugging Face hub or its cache.

        Args:
            model: its name there.
            device: default: a GPU if there is one.

        Raises:
            ModelError: no such model of Meta's.
            ModelNameError: neither this machine's cache nor the hub has it.
        """
        with _sam2():
            from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES, build_sam2_video_predictor_hf

            if model not in HF_MODEL_ID_TO_FILENAMES:
                raise ModelError(f"{model}: no SAM 2 model of the hub; they are {', '.join(HF_MODEL_ID_TO_FILENAMES)}")
            located(model, HF_MODEL_ID_TO_FILENAMES[model][1])
            return cls(build_sam2_video_predictor_hf(model, device=device or _device()), model)

    @classmethod
    def build(
        cls,
        config: str = CONFIG,
        checkpoint: str | Path | None = None,
        device: str | None = None,
        overrides: Sequence[str] = (),
    ) -> "Sam2Segmenter":
        """A model from files.

        Args:
            config: of the package, a path inside of it.
            checkpoint: file of weights; None for random ones.
            device: default: a GPU if there is one.
            overrides: of the config, in Hydra's language.
        """
        with _sam2():
            from sam2.build_sam import build_sam2_video_predictor

            predictor = build_sam2_video_predictor(
                config,
                checkpoint and str(checkpoint),
                device=device or _device(),
                hydra_overrides_extra=list(overrides),
            )
            return cls(predictor, f"{Path(config).stem} ({Path(checkpoint).name if checkpoint else 'random'})")

    def segment(self, frame: np.ndarray, boxes: Sequence[Box]) -> list[RLE]:
        """A mask for each box of a frame, uint8 RGB (H, W, 3); boxes are xyxy in pixels, at least one."""
        found = []
        with self._precision():
            self._images.set_image(frame)
            for start in range(0, len(boxes), _TOGETHER):
                some = np.asarray(boxes[start : start + _TOGETHER], np.float32)
                masks, _, _ = self._images.predict(box=some, multimask_output=False)
                found += [encode(mask > 0.5) for mask in masks.reshape(-1, *frame.shape[:2])]
            self._images.reset_predictor()
        return found

    def start(self, height: int, width: int, num_frames: int) -> "Sam2Tracker":
        """A tracker for a video, see `Segmenter.start`.

        Args:
            height: of the video, pixels.
            width: of the video, pixels.
            num_frames: of the video.
        """
        return Sam2Tracker(self, height, width, num_frames)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        kind = self.predictor.device.type
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            yield


class Sam2Tracker:
    """`Tracker` for one video; make it with `Sam2Segmenter.start`.

    It knows no direction: a video is followed backwards by giving it the frames in that order, which for SAM 2 is the
    same as its own ``reverse``.
    """

    def __init__(self, segmenter: Sam2Segmenter, height: int, width: int, num_frames: int):
        self._segmenter, self._predictor = segmenter, segmenter.predictor
        self._size = height, width
        self._now = -1
        self._state = copy.deepcopy(segmenter._blank)
        self._state["num_frames"] = num_frames
        model = self._predictor
        memories = model.num_maskmem * model.memory_temporal_stride_for_eval
        self._look_back = max(memories, model.max_obj_ptrs_in_encoder)

    def step(self, frame: np.ndarray) -> dict[int, RLE]:
        """Go on to the next frame: masks of the objects seen in it, by ID."""
        if frame.shape[:2] != self._size:
            raise ValueError(f"the frame is {frame.shape[1]}x{frame.shape[0]} in a video of {self._size[::-1]}")
        self._now += 1
        self._state["images"] = _OneFrame(frame, self._segmenter.side)
        if not self._state["obj_ids"]:
            return {}
        with self._segmenter._precision():
            walk = self._predictor.propagate_in_video(self._state, self._now, max_frame_num_to_track=0)
            ((_, numbers, logits),) = walk
            masks = {number: self._mask(one) for number, one in zip(numbers, logits, strict=True)}
        self._forget()
        return {number: mask for number, mask in masks.items() if coco.area(mask)}

    def add(self, object_id: int, mask: RLE) -> RLE:
        """Follow an object from the present frame on; its mask as SAM 2 remembers it, at a quarter of its own size."""
        seed = torch.from_numpy(coco.decode(mask).astype(bool))
        with self._segmenter._precision():
            _, numbers, logits = self._predictor.add_new_mask(self._state, self._now, object_id, seed)
            self._predictor.propagate_in_video_preflight(self._state)  # while this frame's features are at hand
            for kept in self._state["mask_inputs_per_obj"].values():
                kept.clear()
            return self._mask(logits[list(numbers).index(object_id)])

    def remove(self, object_id: int) -> None:
        """Stop following an object."""
        with self._segmenter._precision():
            self._predictor.remove_object(self._state, object_id, strict=True, need_output=False)

    def _mask(self, logits: torch.Tensor) -> RLE:
        """Logits (1, h, w) to a mask of the video's size; one at a time, for large videos with many objects."""
        full = interpolate(logits[None].float(), self._size, mode="bilinear", align_corners=False)
        return encode((full[0, 0] > 0).cpu().numpy())

    def _forget(self) -> None:
        for outputs in self._state["output_dict_per_obj"].values():
            past = outputs["non_cond_frame_outputs"]
            for old in [k for k in past if k <= self._now - self._look_back]:
                del past[old]


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _sam2() -> Iterator[None]:
    """Import the package and make its configs known to Hydra, which may belong to someone else, for a moment.

    Importing it takes Hydra over for good, and it draws a progress bar for each stretch of frames, that is for each
    frame here.
    """
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    hydra = GlobalHydra.instance().hydra
    try:
        for name in ("sam2.sam2_video_predictor", "sam2.utils.misc"):
            module = importlib.import_module(name)
            vars(module).update(tqdm=functools.partial(importlib.import_module("tqdm").tqdm, disable=True))
        GlobalHydra.instance().clear()
        with initialize_config_module("sam2", version_base="1.2"):
            yield
    finally:
        GlobalHydra.instance().hydra = hydra


def _blank_state(predictor) -> dict:
    """The predictor's record of a video without frames and objects.

    It only makes one from files, so it is given a picture of a few pixels, which is then forgotten. Masks come out at
    the model's own size, a quarter of its input's, instead of that of the video: all at once they would be large.
    """
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (8, 8)).save(Path(folder, "0.jpg"))
        state = predictor.init_state(folder, offload_video_to_cpu=True)
    state["cached_features"] = {}
    state["images"] = {}
    state["video_height"] = state["video_width"] = predictor.image_size // 4
    return state


class _OneFrame:
    """What the predictor takes for all frames of the video; it only asks for the present one, and not for each."""

    def __init__(self, frame: np.ndarray, side: int):
        self.frame, self.side = frame, side

    def __getitem__(self, _: int) -> torch.Tensor:
        """The frame as the package reads pictures: float32 (3, side, side), normalised."""
        resized = np.asarray(Image.fromarray(self.frame).resize((self.side, self.side))) / 255.0
        tensor = torch.from_numpy(resized).permute(2, 0, 1).float()
        mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        return (tensor - mean) / deviation


def segmenter(name: str = MODEL, device: str | None = None) -> Segmenter:
    """The segmenter of that name.

    Args:
        name: of a SAM 2 model on the Hugging Face hub; ``CONFIG=CHECKPOINT`` for files, the config as in
            `Sam2Segmenter.build`; or ``package.module:function`` for your own, which is called with ``device``.
        device: default: a GPU if there is one.

    Raises:
        ModelError: a module or function that is not there, or a file of weights that is not.
    """
    config, given, checkpoint = name.partition("=")
    if given:
        if not Path(checkpoint).is_file():
            raise ModelError(f"{checkpoint}: no such file; download the checkpoint that belongs to {config}")
        return Sam2Segmenter.build(config, checkpoint, device)
    return imported(name, device=device) if ":" in name else Sam2Segmenter.load(name, device)
