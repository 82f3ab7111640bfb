"""Grounded questions: the right option, for the right part of the video."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from reward_fns import videochat_r1
from reward_fns.measures import intervals_iou
from reward_fns.parsing import first_block
from verl_stvg.eval.benchmarks.base import Item, Prediction, Predictions, Values, only
from verl_stvg.eval.benchmarks.temporal import intervals, read_leniently, set_iou, truths
from verl_stvg.eval.benchmarks.tracked import Sources
from verl_stvg.eval.metrics import videomind
from verl_stvg.eval.metrics.answers import check_ans, read_option
from verl_stvg.eval.metrics.gqa import grounded_qa
from verl_stvg.eval.metrics.temporal import as_intervals, reaches

THRESHOLDS = (0.3, 0.5)


@dataclass(frozen=True)
class Question(Item):
    """A row that asks for an option, most with the part of the video that answers it.

    Attributes:
        answer: letter of the right option.
    """

    main: ClassVar[str] = "Acc@GQA"

    answer: str | None = None

    @classmethod
    def own(cls, truth: Mapping[str, Any]) -> tuple:
        return (truth.get("answer"),)

    @property
    def has_truth(self) -> bool:
        return bool(self.intervals or self.answer)

    @property
    def truth(self) -> dict[str, Any]:
        return super().truth | {"answer": self.answer}

    def wrong(self, said: Prediction, values: Mapping[str, float]) -> list[str]:
        return ["wrong option"] if "Acc@QA" in values and said.option != self.answer else super().wrong(said, values)

    @classmethod
    def measure(cls, items: Sequence[Item], said: Predictions, sources: Sources) -> tuple[Values, list[str]]:
        return measure(only(cls, items), said), []

    @classmethod
    def variants(cls, items: Sequence[Item], said: Predictions, sources: Sources, values: Values) -> Values:
        return variants(only(cls, items), said, sources.texts)

    @classmethod
    def unseen(cls, items: Sequence[Item], times: np.ndarray) -> tuple[str, Values]:
        """Expectation over options, all equally likely."""
        questions = only(cls, items)
        pairs = zip(questions, times.tolist(), strict=True)
        guesses = [Prediction(((start, end),), option=item.answer) for item, (start, end) in pairs]
        values = measure(questions, guesses)
        chance = np.array([1 / max(item.num_options, 1) for item in items])
        drawn = {name: found * (chance if name.startswith("Acc") else 1) for name, found in values.items()}
        return ", random option", drawn


def measure(items: Sequence[Question], said: Predictions) -> Values:
    """Return IoU, IoP and accuracies per item, (N,), every question in the denominator and a point worth nothing.

    IoU and IoP are of the first answered period and the best over the annotated ones; set IoU is of all answered
    periods together with all annotated ones, as the reward counts. Acc@GQA asks for the right option and IoP of at
    least a half, Acc@IoU for IoU instead; see `gqa.grounded_qa`. Questions without annotated intervals have the
    accuracy alone, and prompts that ask for no option have no accuracy.
    """
    right = _right(items, said)
    if not all(item.intervals for item in items):
        return {"Acc@QA": right.astype(float)}
    values = grounded_qa(intervals(said), truths(items), right)
    table = {"mIoU": values["IoU"]} | {f"IoU@{m:g}": reaches(values["IoU"], m).astype(float) for m in THRESHOLDS}
    together = set_iou(items, said)
    table |= {"set mIoU": together} | {f"set IoU@{m:g}": reaches(together, m).astype(float) for m in THRESHOLDS}
    table |= _precision(values["IoP"])
    return table | ({name: values[name] for name in ("Acc@QA", "Acc@GQA", "Acc@IoU")} if asked(items, said) else {})


def asked(items: Sequence[Question], said: Predictions) -> bool:
    """Whether the prompt asks for an option, or an answer has one all the same."""
    return any("option" in item.reward.asks for item in items) or any(one and one.option for one in said)


def variants(items: Sequence[Question], said: Predictions, texts: Sequence[str | None]) -> Values:
    """Return what the scripts of NExT-GQA, VideoChat-R1 and VideoMind print, under their names, per item.

    By NExT-GQA's rule a point within the truth has full precision. VideoChat-R1, for answers to its own prompt, takes
    all answered periods together and the first capital A to G of the answer. VideoMind takes the first period, which is
    worth nothing where it is not finite, computes in float32, and reads the first letter of the reply: of its own file,
    or of the answer block, where there is one.

    Args:
        items: with their truth.
        said: what was read from each answer; None for nothing.
        texts: replies; None for what is no text.
    """
    if not all(item.intervals for item in items):
        return {}
    with_option = asked(items, said)
    values = grounded_qa(intervals(said), truths(items), _right(items, said), point_rule="nextgqa")
    table = _precision(values["IoP"]) | ({"Acc@GQA": values["Acc@GQA"]} if with_option else {})
    table = {f"{name} (NExT-GQA)": found for name, found in table.items()}
    three = list(zip(items, said, texts, strict=True))
    own = all(_is_videochat(item) for item in items)
    if own:
        table["mIoU (VideoChat-R1)"] = np.array([_videochat_r1_iou(*one) for one in three])
    if own and with_option:
        table["Acc@QA (VideoChat-R1)"] = np.array([_videochat_r1_right(*one) for one in three], dtype=float)
    iou, iop = _videomind(items, said)
    found = {"mIoU": iou} | {f"IoU@{m:g}": (iou >= np.float32(m)).astype(float) for m in THRESHOLDS}
    found |= {"mIoP": iop} | {f"IoP@{m:g}": (iop >= np.float32(m)).astype(float) for m in THRESHOLDS}
    if with_option:
        right = np.array([_videomind_right(*one) for one in three])
        found |= {"Acc@QA": right.astype(float), "Acc@GQA": (right & (iop >= np.float32(0.5))).astype(float)}
        found["Acc@IoU"] = (right & (iou >= np.float32(0.5))).astype(float)
    table |= {f"{name} (VideoMind)": one.astype(float) for name, one in found.items()}
    return table | lenient(items, said, texts)


def lenient(items: Sequence[Question], said: Predictions, texts: Sequence[str | None]) -> Values:
    """Return the table with what `lenient.read_time` reads where no time was read, per item; nothing if it reads none.

    A time that was read stands, because prompts of this kind ask for it outside of the answer's block. The option is
    the one that was read, or, where nothing could be, what `answers.read_option` reads in the reply.

    Args:
        items: with their truth.
        said: what was read from each answer; None for nothing.
        texts: replies; None for what is no text.
    """
    strict = [one.interval if one is not None else None for one in said]
    times = [time or found for time, found in zip(strict, read_leniently(said, texts) or strict, strict=True)]
    if times == strict:
        return {}
    options = [
        one.option if one is not None else read_option(text, item.num_options) if text and item.num_options else None
        for item, one, text in zip(items, said, texts, strict=True)
    ]
    pairs = zip(items, options, strict=True)
    right = np.array([option is not None and option == item.answer for item, option in pairs])
    values = grounded_qa(as_intervals(times), truths(items), right)
    table = {"mIoU": values["IoU"]} | {f"IoU@{m:g}": reaches(values["IoU"], m).astype(float) for m in THRESHOLDS}
    table |= _precision(values["IoP"])
    if asked(items, said):
        table |= {name: values[name] for name in ("Acc@QA", "Acc@GQA", "Acc@IoU")}
    return {f"{name} (lenient)": found for name, found in table.items()}


def _is_videochat(item: Question) -> bool:
    return item.reward.form == "videochat_r1_gqa"


def _videochat_r1_iou(item: Question, one: Prediction | None, text: str | None) -> float:
    """As its `evaluate_gqa.py`; but a list that cannot be read is 0, where that repeats the value before."""
    if text is not None:
        return videochat_r1.gqa_iou(text, {"intervals": item.intervals})
    return intervals_iou(one.periods, item.intervals) if one is not None and one.intervals else 0.0


def _videochat_r1_right(item: Question, one: Prediction | None, text: str | None) -> bool:
    if item.answer is None:
        return False
    if text is not None:
        return videochat_r1.gqa_answer(text, {"answer": item.answer}) == 1.0
    return one is not None and one.option == item.answer


def _videomind(items: Sequence[Question], said: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """IoU and IoP of the first period by `videomind.iou_iop`, each (N,) float32; 0 without one."""
    found = np.zeros((2, len(items)), dtype=np.float32)
    for k, (item, one) in enumerate(zip(items, said, strict=True)):
        first = one and (one.first or one.interval)
        if first is not None:
            iou, iop = videomind.iou_iop([first], item.intervals)
            found[:, k] = iou[0], iop[0]
    return found[0], found[1]


def _videomind_right(item: Question, one: Prediction | None, text: str | None) -> bool:
    if item.answer is None:
        return False
    reply = one.reply if one is not None else None
    if reply is None and text is not None and _is_videochat(item):
        block = first_block(text, "answer")
        reply = text if block is None else block
    if reply is None or not item.num_options:  # a letter in JSON, which VideoMind never sees, or unknown options
        return one is not None and one.option == item.answer
    return check_ans(item.num_options, item.answer, reply) is True


def _precision(iop: np.ndarray) -> Values:
    return {"mIoP": iop} | {f"IoP@{m:g}": reaches(iop, m).astype(float) for m in THRESHOLDS}


def _right(items: Sequence[Question], said: Predictions) -> np.ndarray:
    pairs = zip(items, said, strict=True)
    return np.array([one is not None and one.option is not None and one.option == item.answer for item, one in pairs])
