"""Prompts: one named, versioned template per paper and mode, in our own words, with the contract of its answers.

A policy is bound to its prompt, so a template that changes gets another version, and rows say which one they were made
with. Each template names the reward that reads its answers, the paper's way of sampling frames, and what the paper does
with annotations that cannot be right.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import floor
from typing import Any

from reward_fns import get_recipe
from reward_fns.perfect import perfect_answer

__all__ = ["LETTERS", "TEMPLATES", "Template", "find", "normalise", "perfect_answer"]

_TOKEN_AREA = 28 * 28
_STVG_PIXELS = {"rule": "qwen_vl_utils", "min_pixels": 16 * _TOKEN_AREA, "total_pixels": 2048 * _TOKEN_AREA}
_TIME_PIXELS = {"rule": "qwen_vl_utils", "min_pixels": 16 * _TOKEN_AREA, "total_pixels": 3584 * _TOKEN_AREA}
_TEMPORAL_PIXELS = {"rule": "qwen_vl_utils", "min_pixels": 4 * _TOKEN_AREA, "total_pixels": 2048 * _TOKEN_AREA}

_THINK = "First reason inside <think> </think>"
_STEPS = (
    f"{_THINK}; moments or ranges that matter may be marked as <timestep>12.54</timestep> or "
    "<timestep>12.54 to 17.83</timestep>. "
)


_NEEDS = {"object": "target", "objects": "targets", "boxes": "tube", "option": "options"}


@dataclass(frozen=True)
class Template:
    """A prompt and what belongs to it.

    Attributes:
        name: on the command line.
        version: raised with every change of the text.
        recipe: reward that reads the answers, of `reward_fns`.
        text: of the user's turn, with ``{query}`` and, for questions, ``{options}``; what is said about the video has
            the names of `messages`.
        paper: whose contract it keeps.
        system: text of the system's turn; None leaves it to the chat template.
        video_first: whether the video stands before the text.
        videos: how frames are sampled, keys of `verl_stvg.video.plan.plan_video`.
        past_end: what the paper does with intervals that end after the video: keep or clip.
    """

    name: str
    version: int
    recipe: str
    text: str
    paper: str
    system: str | None = None
    video_first: bool = False
    videos: Mapping[str, Any] = field(default_factory=lambda: _TIME_PIXELS)
    past_end: str = "keep"

    @property
    def id(self) -> str:
        """Name and version."""
        return f"{self.name}/{self.version}"

    @property
    def needs(self) -> str:
        """What a record must have, by what the recipe asks for: ``interval``, ``target`` (an object ID), ``targets``
        (one or more), ``tube`` or ``options``.
        """
        asks = get_recipe(self.recipe).asks
        return next((needed for asked, needed in _NEEDS.items() if asked in asks), "interval")

    def messages(
        self,
        query: str,
        options: tuple[str, ...] = (),
        prompt: str | None = None,
        rate: float | None = None,
        picture: tuple[float, float] | None = None,
    ) -> list[dict[str, str]]:
        """Chat messages of a row, with ``<video>`` where the video goes.

        Args:
            query: normalised as the row wants it.
            options: of a multiple-choice question, without letters.
            prompt: a set's own user text, instead of the template's.
            rate: frames per second of the video, for ``{rate}`` and ``{frame}``, the frame at 4.25 s; templates that
                need a tube may say them.
            picture: (width, height) in pixels of the original video, for ``{width}`` and ``{height}``, likewise.
        """
        said = {}
        if rate is not None and picture is not None:
            said = {"rate": f"{rate:.4g}", "frame": f"{floor(4.25 * rate + 0.5)}"}
            said |= {"width": f"{picture[0]:g}", "height": f"{picture[1]:g}"}
        listed = "; ".join(f"({letter}) {text}" for letter, text in zip(LETTERS, options, strict=False))
        text = self.text
        for name, words in {**said, "options": listed, "query": query}.items():
            text = text.replace(f"{{{name}}}", words)
        text = prompt if prompt is not None else text
        turns = [{"role": "system", "content": self.system}] if self.system else []
        return [*turns, {"role": "user", "content": f"<video>{text}" if self.video_first else f"{text}<video>"}]


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_MOMENT = (
    'A video comes with this event: "{query}". Determine the exact period of time in which it happens. '
    f"{_STEPS}Then give its start and end inside <answer> </answer>, in seconds with two decimals, joined by "
    '"to", for example: <answer>12.54 to 17.83</answer>'
)
_MOMENT_ONLY = (
    'A video comes with this event: "{query}". Determine the exact period of time in which it happens. '
    'Give its start and end inside <answer> </answer>, in seconds with two decimals, joined by "to", for example: '
    "<answer>12.54 to 17.83</answer>"
)
_JSON_SYSTEM = (
    "Before you answer, think the question through as an inner monologue inside <think> </think>. Then give the final "
    "answer inside <answer> </answer>, as JSON."
)
_GROUNDED = (
    'Answer this question about the video: "{query}". Options: {options}. '
    f"{_STEPS}Then give the letter of the right option inside <answer> </answer>, and the periods of the video that "
    "show it inside <glue> </glue>, in seconds, as a list. For example: "
    "<answer>A</answer><glue>[(5.20, 10.40), (31.00, 33.75)]</glue>"
)
_GROUNDED_ONLY = (
    'Answer this question about the video: "{query}". Options: {options}. '
    "Give the letter of the right option inside <answer> </answer>, and the periods of the video that show it inside "
    "<glue> </glue>, in seconds, as a list. For example: "
    "<answer>A</answer><glue>[(5.20, 10.40), (31.00, 33.75)]</glue>"
)

_TEMPLATES = (
    Template(
        "stvg_r1",
        1,
        "stvg_r1",
        "Every object in this video carries a red number at its centre; the number is the ID of the object. The video "
        'comes with this event: "{query}". Do two things. 1. Find the exact period of time in which the event happens. '
        "2. Find the ID of the object that the event is about. "
        f'{_THINK}: about when it happens, with times in seconds with two decimals, single ones or two joined by "to", '
        "and about who it is, with the ID of the object. Then give the result inside <answer> </answer>, times in "
        "seconds with two decimals, in this form: Target ID: [ID], Time range: [start] to [end]. For example: "
        "<answer>Target ID: 3, Time range: 4.25 to 9.75</answer>",
        "STVG-R1",
        videos=_STVG_PIXELS,
    ),
    Template(
        "stvg_r1_nothink",
        1,
        "stvg_r1_nothink",
        "Every object in this video carries a red number at its centre; the number is the ID of the object. The video "
        'comes with this event: "{query}". Find the exact period of time in which the event happens, and the ID of the '
        "object that it is about. Give only the result, inside <answer> </answer>, times in seconds with two decimals, "
        "in this form: Target ID: [ID], Time range: [start] to [end]. For example: "
        "<answer>Target ID: 3, Time range: 4.25 to 9.75</answer>",
        "STVG-R1 without reasoning",
        videos=_STVG_PIXELS,
    ),
    Template(
        "stvg_r1_multi",
        1,
        "stvg_r1_multi",
        "Every object in this video carries a red number at its centre; the number is the ID of the object. The video "
        'comes with this event: "{query}". Do two things. 1. Find the exact period of time in which the event happens. '
        "2. Find the IDs of all objects that the event is about. "
        f"{_THINK}: about when it happens, and about who it is, with the IDs. Then give the result inside "
        "<answer> </answer>, times in seconds with two decimals. For example: "
        "<answer>Target ID: 3 and 7, Time range: 4.25 to 9.75</answer>",
        "ours, after STVG-R1, for several objects",
        videos=_STVG_PIXELS,
    ),
    Template(
        "stvg_boxes",
        2,
        "stvg_boxes",
        'The video comes with this event: "{query}". Find when it happens, and where the one it is about is in every '
        "frame of that time. The video has {rate} frames per second, numbered from 0 at its beginning, so that frame "
        "{frame} is seen at 4.25 seconds. Its pictures are {width} pixels wide and {height} pixels high. "
        f"{_THINK}. Then give the result inside <answer> </answer>, as JSON: the time in seconds, and boxes as "
        "[x1, y1, x2, y2] in these pixels by number of the frame. For example: "
        '<answer>{"time": [4.25, 9.75], "boxes": {"{frame}": [30, 40, 90, 200]}}</answer>',
        "ours; the answer has OneThinker's structure",
        videos=_STVG_PIXELS,
    ),
    Template(
        "stvg_boxes_seconds",
        1,
        "stvg_boxes_seconds",
        'The video comes with this event: "{query}". Find when it happens, and where the one it is about is at every '
        f"whole second of that time. {_THINK}. Then give the result inside <answer> </answer>, as JSON: the time in "
        "seconds, and by second a box [x1, y1, x2, y2] for each whole second within it (if there is none, for the "
        "nearest one). Boxes are in thousandths of the picture: x from 0 at its left to 1000 at its right edge, y from "
        "0 at its top to 1000 at its bottom edge. For example: "
        '<answer>{"time": [4.25, 6.75], "boxes": {"5": [130, 240, 290, 700], "6": [135, 240, 295, 700]}}</answer>',
        "OneThinker's answer; text and reward are ours",
        videos=_STVG_PIXELS,
    ),
    Template("timezero", 1, "timezero", _MOMENT, "TimeZero"),
    Template("time_r1", 1, "time_r1", _MOMENT, "Time-R1"),
    Template(
        "temporal_r1",
        1,
        "temporal_r1",
        'For the query "{query}", when does what it describes happen in the video?',
        "Temporal-R1",
        system=_JSON_SYSTEM,
        video_first=True,
        videos=_TEMPORAL_PIXELS,
    ),
    Template("time_r1_nothink", 1, "time_r1_nothink", _MOMENT_ONLY, "Time-R1 without reasoning"),
    Template(
        "temporal_r1_nothink",
        1,
        "temporal_r1_nothink",
        'For the query "{query}", when does what it describes happen in the video? Answer with the keys "start_time" '
        'and "end_time", in seconds, as texts, for example: '
        '<answer>{"start_time": "12.54", "end_time": "17.83"}</answer>',
        "Temporal-R1 without reasoning",
        system="Give the final answer inside <answer> </answer>, as JSON, and nothing else.",
        video_first=True,
        videos=_TEMPORAL_PIXELS,
    ),
    Template(
        "temporal_r1_keys",
        1,
        "temporal_r1",
        'For the query "{query}", when does what it describes happen in the video? Answer with the keys "start_time" '
        'and "end_time", in seconds, as texts, for example: '
        '<answer>{"start_time": "12.54", "end_time": "17.83"}</answer>',
        "Temporal-R1 with the keys named, which the paper leaves to the reward to teach",
        system=_JSON_SYSTEM,
        video_first=True,
        videos=_TEMPORAL_PIXELS,
    ),
    Template(
        "temporal_r1_mcq",
        1,
        "temporal_r1_mcq",
        'Answer this question about the video: "{query}". Options: {options}. Give the letter of the right one, for '
        'example: <answer>{"option": "B"}</answer>',
        "Temporal-R1; ours, the authors' is not public",
        system=_JSON_SYSTEM,
        video_first=True,
        videos=_TEMPORAL_PIXELS,
    ),
    Template(
        "temporal_r1_gqa",
        1,
        "temporal_r1_gqa",
        'Answer this question about the video: "{query}". Options: {options}. Give the letter of the right one, and '
        "when the video shows it, in seconds, for example: "
        '<answer>{"option": "B", "start_time": "12.54", "end_time": "17.83"}</answer>',
        "Temporal-R1; ours, the authors' is not public",
        system=_JSON_SYSTEM,
        video_first=True,
        videos=_TEMPORAL_PIXELS,
    ),
    Template("videochat_r1", 1, "videochat_r1", _MOMENT, "VideoChat-R1"),
    Template("videochat_r1_gqa", 1, "videochat_r1_gqa", _GROUNDED, "VideoChat-R1"),
    Template(
        "videochat_r1_gqa_nothink",
        1,
        "videochat_r1_gqa_nothink",
        _GROUNDED_ONLY,
        "VideoChat-R1",
    ),
    Template("videotg_r1", 1, "videotg_r1", _MOMENT, "VideoTG-R1, inferred to be VideoChat-R1's", past_end="clip"),
    Template(
        "videotg_r1_nothink", 1, "videotg_r1_nothink", _MOMENT_ONLY, "VideoTG-R1 without reasoning", past_end="clip"
    ),
)
TEMPLATES = {template.name: template for template in _TEMPLATES}


def find(name: str) -> Template:
    """The template of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in TEMPLATES:
        raise ValueError(f"no template {name!r}; choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def normalise(query: str) -> str:
    """A query as the papers train on it: stripped, in lower case, without one full stop at its end."""
    query = query.strip().lower()
    return query[:-1] if query.endswith(".") else query
