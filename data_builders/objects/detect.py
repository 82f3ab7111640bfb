"""Detectors: models of transformers and of ultralytics behind one interface, and their names on a command line.

STVG-R1 detects with YOLOv12-x, whose program is under the AGPL-3.0. What stands here first is RT-DETR, which is trained
on the same classes, is about as good, and whose program and weights are under Apache-2.0.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import batched_nms

from verl_stvg.base.models import located
from verl_stvg.data_builders.objects.detector import Detection, Detector, ModelError, imported

RTDETR = "PekingU/rtdetr_r50vd"
GROUNDING_DINO = "IDEA-Research/grounding-dino-tiny"
CONFIDENCE = 0.25
"""Least score of a detection (STVG-R1)."""
NMS = 0.7
"""Of two boxes of one class with a larger IoU the better one stays: ultralytics' default, which STVG-R1 keeps."""
NAMES = ("rtdetr", "huggingface:MODEL", "grounding-dino:CLASS.CLASS", "yolo:FILE", "package.module:function")


class HuggingFaceDetector:
    """`Detector` on a model of transformers with a fixed set of classes: RT-DETR, DETR and their kin.

    Args:
        model: name on the Hugging Face hub, or a folder.
        confidence: least score.
        nms: largest IoU of two boxes of one class; None for no such limit, which these models can do without.
        device: default: a GPU if there is one.
    """

    def __init__(
        self,
        model: str | Path = RTDETR,
        confidence: float = CONFIDENCE,
        nms: float | None = NMS,
        device: str | None = None,
    ):
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        self.name, self.confidence, self.nms = str(model), confidence, nms
        self.device = torch.device(device or _device())
        self.processor = AutoImageProcessor.from_pretrained(model)
        self.model = AutoModelForObjectDetection.from_pretrained(model).to(self.device).eval()

    @torch.inference_mode()
    def detect(self, frame: np.ndarray) -> list[Detection]:
        """Detections of a frame, uint8 RGB (H, W, 3), by descending score."""
        size = frame.shape[:2]
        inputs = self.processor(images=frame, return_tensors="pt", input_data_format="channels_last").to(self.device)
        outputs = self.model(**inputs)
        (found,) = self.processor.post_process_object_detection(outputs, threshold=self.confidence, target_sizes=[size])
        return _detections(found["boxes"], found["scores"], found["labels"], self.model.config.id2label, size, self.nms)


class GroundingDinoDetector:
    """`Detector` on a Grounding DINO model of transformers, for classes given as words.

    The score of a class is the best one of its words, and a box has the class with the best score. (The model's own
    processor cuts the text into phrases instead, which may mix classes.)

    Args:
        classes: what to look for, such as ``("person", "traffic light")``; the labels of its detections.
        model: name on the Hugging Face hub, or a folder.
        confidence: least score.
        nms: largest IoU of two boxes of one class, or None.
        device: default: a GPU if there is one.

    Raises:
        ModelError: no classes, an empty one, one that contains a full stop, or more than the model can read.
    """

    def __init__(
        self,
        classes: Sequence[str],
        model: str | Path = GROUNDING_DINO,
        confidence: float = CONFIDENCE,
        nms: float | None = NMS,
        device: str | None = None,
    ):
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self.classes = tuple(classes)
        if not self.classes or any(not word.strip() or "." in word for word in self.classes):
            raise ModelError(f"classes {self.classes} must be words, without full stops, and at least one")
        self.name, self.confidence, self.nms = f"{model}: {'. '.join(self.classes)}", confidence, nms
        self.device = torch.device(device or _device())
        self.processor = AutoProcessor.from_pretrained(model)
        self.model = AutoModelForZeroShotObjectDetection.from_pretrained(model).to(self.device).eval()
        self._text = "".join(f"{word.strip().lower()}. " for word in self.classes).strip()
        self._columns = self._find_columns()

    def _find_columns(self) -> list[list[int]]:
        """Positions of each class's tokens in the text, which full stops separate."""
        tokenizer = self.processor.tokenizer
        tokens, stop = tokenizer(self._text)["input_ids"], tokenizer.convert_tokens_to_ids(".")
        if len(tokens) > self.model.config.max_text_len:
            raise ModelError(
                f"{len(self.classes)} classes are {len(tokens)} tokens, and {self.model.config.max_text_len} is the "
                "most; name fewer"
            )
        ends = [k for k, token in enumerate(tokens) if token == stop]
        return [list(range(begin + 1, end)) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]

    @torch.inference_mode()
    def detect(self, frame: np.ndarray) -> list[Detection]:
        """Detections of a frame, uint8 RGB (H, W, 3), by descending score."""
        height, width = frame.shape[:2]
        inputs = self.processor(
            images=frame, text=self._text, return_tensors="pt", input_data_format="channels_last"
        ).to(self.device)
        outputs = self.model(**inputs)
        words = outputs.logits[0].float().sigmoid()  # (Q, tokens)
        scores, labels = torch.stack([words[:, columns].amax(1) for columns in self._columns], 1).max(1)
        x, y, w, h = outputs.pred_boxes[0].float().unbind(1)
        scale = torch.tensor([width, height, width, height], device=x.device)
        boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1) * scale
        good = scores > self.confidence
        names = dict(enumerate(self.classes))
        return _detections(boxes[good], scores[good], labels[good], names, (height, width), self.nms)


class UltralyticsDetector:
    """`Detector` on a YOLO model of ultralytics, such as STVG-R1's ``yolo12x.pt``.

    Ultralytics' program is under the AGPL-3.0 (or a paid licence), which binds what you build with it. It is no
    dependency of this project: install it yourself if its terms suit you.

    Args:
        weights: file, or a name that ultralytics downloads.
        confidence: least score.
        nms: largest IoU of two boxes of one class; None for no such limit.
        device: default: ultralytics' choice.

    Raises:
        ModelError: ultralytics is not installed.
    """

    def __init__(
        self,
        weights: str | Path,
        confidence: float = CONFIDENCE,
        nms: float | None = NMS,
        device: str | None = None,
    ):
        if importlib.util.find_spec("ultralytics") is None:
            raise ModelError("ultralytics is not installed; `pip install ultralytics` (AGPL-3.0), or use rtdetr")
        from ultralytics import YOLO

        self.name, self.confidence, self.nms, self.device = f"yolo:{weights}", confidence, nms, device
        self.model = YOLO(str(weights))

    def detect(self, frame: np.ndarray) -> list[Detection]:
        """Detections of a frame, uint8 RGB (H, W, 3), by descending score."""
        limit = 1.0 if self.nms is None else self.nms
        bgr = np.ascontiguousarray(frame[..., ::-1])  # what it takes arrays for
        (found,) = self.model.predict(bgr, conf=self.confidence, iou=limit, device=self.device, verbose=False)
        boxes = found.boxes
        return _detections(boxes.xyxy, boxes.conf, boxes.cls.long(), found.names, frame.shape[:2], None)


def detector(name: str, **settings) -> Detector:
    """The detector of that name.

    Args:
        name: ``rtdetr``; ``huggingface:MODEL`` for another model of its kind; ``grounding-dino:person.traffic light``;
            ``yolo:FILE``; or ``package.module:function`` for your own, which is called with the settings.
        settings: of the detector: ``confidence``, ``nms``, ``device``; those that are left out have its defaults.

    Raises:
        ModelError: an unknown name, one that lacks its second half, or a function that gives no detector.
        ModelNameError: a model that neither this machine nor the hub has.
    """
    kind, _, rest = name.partition(":")
    if name == "rtdetr":
        return HuggingFaceDetector(located(RTDETR), **settings)
    if not rest:
        raise ModelError(f"detector {name!r} is unknown; choose one of {', '.join(NAMES)}")
    if kind == "huggingface":
        return HuggingFaceDetector(located(rest), **settings)
    if kind == "grounding-dino":
        located(settings.get("model", GROUNDING_DINO))
        return GroundingDinoDetector([word.strip() for word in rest.strip(". ").split(".")], **settings)
    if kind == "yolo":
        return UltralyticsDetector(rest, **settings)
    made = imported(name, **settings)
    if not callable(getattr(made, "detect", None)):
        raise ModelError(f"{name} gives a {type(made).__name__}, which has no method detect(frame)")
    return made


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _detections(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    labels: torch.Tensor,
    names: Mapping[int, str],
    size: tuple[int, int],
    nms: float | None,
) -> list[Detection]:
    """Boxes (N, 4) xyxy, cut off at the frame's edge, without empty ones, best first, and without doubles."""
    height, width = size
    boxes = boxes.float().cpu()
    boxes = torch.stack([boxes[:, k].clamp(0, limit) for k, limit in enumerate((width, height, width, height))], 1)
    scores, labels = scores.float().cpu(), labels.cpu()
    whole = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    boxes, scores, labels = boxes[whole], scores[whole], labels[whole]
    kept = scores.argsort(descending=True, stable=True)
    if nms is not None:
        best = batched_nms(boxes, scores, labels, nms)
        kept = kept[torch.isin(kept, best)]
    return [Detection(tuple(boxes[k].tolist()), names[int(labels[k])], float(scores[k])) for k in kept]
