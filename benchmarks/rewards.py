"""Rewards: speed beside the four original reward functions, growth on hostile text, and a long fuzz run.

The originals are read from clones that the user made (`--originals DIR`), never from this repository: their reward
functions alone are taken out of the source files, with printing silenced in their favour, because the modules around
them need a trainer. Without the option only our side is measured. The texts and the mutator serve the tests too.
"""

import ast
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import Options, Row
from reward_fns import RECIPES, formats, grading, parsing, thinking
from verl_stvg.training.reward import compute_score

REASONING = (
    "The question asks when the person in the red coat opens the door. At the start nobody stands near it; from about "
    "4 seconds on the person numbered 2 walks in from the left, stops and reaches for the handle. The door is open at "
    "9 seconds and the person leaves the frame, so the event lies between these two moments. "
)

# recipe -> (a ground truth, an answer as it stands after the reasoning, both for a typical completion)
TYPICAL: dict[str, tuple[dict[str, Any], str]] = {}
_SPAN = {"start": 5.0, "end": 11.0, "duration": 20.0}
_OBJECT = {**_SPAN, "object_id": 2, "object_ids": [2, 5], "visible": [[4.0, 12.0]]}
_TUBE = {**_SPAN, "first_frame": 10, "boxes": [[10.0, 20.0, 60.0, 120.0]] * 8, "picture": [200.0, 400.0]}
_JSON = '<answer>{{"start_time": "{start:.2f}", "end_time": "{end:.2f}"}}</answer>'
_BOXES = ", ".join(f'"{10 + frame}": [12, 20, 60, 118]' for frame in range(8))
_BOXES_BY_SECOND = ", ".join(f'"{4 + second}": [60, 50, 300, 295]' for second in range(8))
for _name, _truth, _answer in (
    ("stvg_r1", _OBJECT, "<answer>Target ID: {id}, Time range: {start:.2f} to {end:.2f}</answer>"),
    ("stvg_r1_nothink", _OBJECT, "<answer>Target ID: {id}, Time range: {start:.2f} to {end:.2f}</answer>"),
    ("stvg_r1_visible", _OBJECT, "<answer>Target ID: {id}, Time range: {start:.2f} to {end:.2f}</answer>"),
    ("stvg_r1_multi", _OBJECT, "<answer>Target ID: {id}, 5, Time range: {start:.2f} to {end:.2f}</answer>"),
    ("stvg_boxes", _TUBE, '<answer>{{"time": [{start:.2f}, {end:.2f}], "boxes": {{' + _BOXES + "}}}}</answer>"),
    (
        "stvg_boxes_seconds",
        _TUBE,
        '<answer>{{"time": [{start:.2f}, {end:.2f}], "boxes": {{' + _BOXES_BY_SECOND + "}}}}</answer>",
    ),
    ("temporal_r1", _SPAN, _JSON),
    ("temporal_r1_nothink", _SPAN, _JSON),
    ("temporal_r1_strict", _SPAN, _JSON),
    ("r1v", {"answer": "B"}, "<answer>({letter})</answer>"),
    ("temporal_r1_mcq", {"option": "B"}, '<answer>{{"option": "{letter}"}}</answer>'),
    ("temporal_r1_gqa", {**_SPAN, "option": "B"}, _JSON.replace("{{", '{{"option": "{letter}", ')),
    ("videotg_r1", _SPAN, "<answer>{start:.2f} to {end:.2f}</answer>"),
    ("videotg_r1_nothink", _SPAN, "<answer>{start:.2f} to {end:.2f}</answer>"),
    ("videotg_r1_strict", _SPAN, "<answer>{start:.2f} to {end:.2f}</answer>"),
    ("time_r1", _SPAN, "<answer>{start:.2f} to {end:.2f}</answer>"),
    ("time_r1_nothink", _SPAN, "<answer>{start:.2f} to {end:.2f}</answer>"),
    ("timezero", _SPAN, "<answer>{start:.2f} to {end:.2f}</answer>"),
    ("videochat_r1", _SPAN, "<answer>{start:.2f} to {end:.2f}</answer>"),
    (
        "videochat_r1_gqa",
        {"answer": "(B)", "intervals": [[5.0, 11.0]]},
        "<answer>({letter})</answer>\n<glue>[({start:.2f}, {end:.2f})]</glue>",
    ),
    (
        "videochat_r1_gqa_nothink",
        {"answer": "(B)", "intervals": [[5.0, 11.0]]},
        "<answer>({letter})</answer>\n<glue>[({start:.2f}, {end:.2f})]</glue>",
    ),
    ("videochat_r1_5", _SPAN, "<answer>[({start:.2f}, {end:.2f})]</answer>"),
):
    TYPICAL[_name] = (_truth, _answer)

_NO_THINKING = frozenset(name for name in TYPICAL if "thinking" not in RECIPES[name].asks)


def typical(recipe: str, count: int, seed: int) -> list[str]:
    """Return that many different completions (about 400 characters), most of them well-formed, some wrong."""
    rng = random.Random(f"{recipe}/{seed}")
    answer = TYPICAL[recipe][1]
    completions = []
    for index in range(count):
        start = rng.uniform(0.0, 12.0)
        values = {"id": rng.randint(1, 4), "start": start, "end": start + rng.uniform(0.5, 8.0)}
        text = answer.format(letter=rng.choice("ABCD"), **values)
        thinking_part = "" if recipe in _NO_THINKING else f"<think>{REASONING}{index}</think>\n"
        completions.append(thinking_part + text)
    return completions


# Every public function that reads text, as a function of one string.
READERS: dict[str, Callable[[str], Any]] = {
    "first_block": lambda text: parsing.first_block(text, "answer"),
    "last_block": lambda text: parsing.last_block(text, "answer"),
    "first_line_block": lambda text: parsing.first_line_block(text, "answer"),
    "target_id": parsing.target_id,
    "target_ids": parsing.target_ids,
    "time_range": parsing.time_range,
    "last_pair": parsing.last_pair,
    "interval_list": parsing.interval_list,
    "option_letter": parsing.option_letter,
    "quoted_option": parsing.quoted_option,
    "json_object": parsing.json_object,
    "json_interval": parsing.json_interval,
    "json_tube": parsing.json_tube,
    "same_answer": lambda text: grading.same_answer(text, "1/2"),
    "keywords": lambda text: thinking.keywords(text, ("because", "therefore")),
    **{
        name: getattr(formats, name)
        for name in (
            "think_answer",
            "think_answer_exact",
            "answer_only",
            "think_answer_glue",
            "answer_glue",
            "think_interval_json",
            "think_interval_json_strict",
            "think_option_json",
            "think_option_interval_json",
            "strict_think_answer",
        )
    },
}


def readers() -> dict[str, Callable[[str], Any]]:
    """Return every function that reads text: the readers above and each recipe with all its optional parts."""
    functions = dict(READERS)
    for name, recipe in RECIPES.items():
        everything = recipe.with_weights(dict.fromkeys(recipe.optional, 0.0))
        truth = TYPICAL[name][0]
        functions[f"recipe {name}"] = lambda text, score=everything.score, truth=truth: score(text, truth)
    return functions


# Repeated to the wanted length, bare and inside the blocks that the parsers open.
_UNITS = {
    "digits": "7",
    "unicode digits": "٣",
    "dotted digits": "1.2.",
    "dots": ".",
    "blanks": " ",
    "no-break blanks": "\u00a0",
    "newlines": "\n",
    "nested think": "<think>",
    "nested answer": "<answer>",
    "closing answer": "</answer>",
    "half tags": "<answer",
    "empty answers": "<answer></answer>",
    "answer lines": "<answer>\n",
    "think to answer": "</think> ",
    "joint": "</think>  <answer>",
    "glue joint": "</answer> <glue>",
    "labels": "Target ID: ",
    "time labels": "Time range: 1 ",
    "long labels": "Time range: 1.5 to",
    "chain": "1 to ",
    "pairs": "1 to 2, ",
    "odd chain": ".. to 1.. ",
    "ids": "Target ID: 2, ",
    "tuples": "(1, 2), ",
    "open lists": "[",
    "open objects": '{"a":',
    "keys": '"start_time": "1", ',
    "quotes": '"(A',
    "capitals": "THE ",
    "backslashes": "\\frac{1}",
    "timesteps": "<timestep>1 to ",
    "powers": "9^9^",
    "commas": "1,000",
    "surrogates": "\ud800",
}
_FRAMES = (
    "{}",
    "<think>x</think><answer>{}</answer>",
    "<think>{}</think><answer>Target ID: 2, Time range: {}</answer>",
    "<answer>B</answer><glue>[{}]</glue>",
    '<think></think><answer>{{"start_time": "{}", "end_time": "9", "option": "B"}}</answer>',
    '<think></think><answer>{{"time": [1, 2], "boxes": {{"10": [{}], "11": "{}"}}}}</answer>',
)


def hostile_texts(size: int) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of about `size` characters that make careless patterns slow or conversions fail."""
    for name, unit in _UNITS.items():
        for number, frame in enumerate(_FRAMES):
            filler = unit * max(1, size // (len(unit) * frame.count("{}")))
            yield f"{name} in frame {number}", frame.format(filler, filler)


_FRAGMENTS = (
    *("<think>", "</think>", "<answer>", "</answer>", "<glue>", "</glue>", "<timestep>", "</timestep>"),
    *("Target ID: ", "Time range: ", " to ", " and ", "2", "5.0", "11.", ".5", "1e309", "-1", "9" * 400, "٣", "NaN"),
    *('{"start_time": "', '", "end_time": "', '"}', "[(1, 2)]", "(3, 1)", "(B)", '"option": "B"', "inf", "Infinity"),
    *("\u00a0", "\u200b", "\u2028", "\x00", "\ud800", "\U0001f600", "İ", "ſ", "\r\n", "1_0", "\\", "^9", "/0", "1/3"),
    *('"boxes": {"10": [0, 0, 1e308, 1e308]}', '"time": [1, 2]', "true", "null"),
)


def mutated(seeds: list[str], rng: random.Random) -> str:
    """Return a seed after a few random edits: insertions, deletions, duplications, swaps of pieces."""
    text = rng.choice(seeds)
    for _ in range(rng.randint(1, 4)):
        a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        edit = rng.randrange(5)
        if edit == 0:
            text = text[:a] + rng.choice(_FRAGMENTS) + text[a:]
        elif edit == 1:
            text = text[:a] + rng.choice(_FRAGMENTS) + text[b:]
        elif edit == 2:
            text = text[:a] + text[b:]
        elif edit == 3:
            text = text[:b] + text[a:]
        else:
            text = text[:a] + chr(rng.randrange(0x300)) + text[a:]
    return text[:4000]


def fuzz(count: int, seed: int) -> tuple[int, int, int]:
    """Score `count` mutated completions with every recipe; return (evaluations, exceptions, results not finite)."""
    rng = random.Random(seed)
    seeds = [text for name in RECIPES for text in typical(name, 3, seed)]
    scorers = [(RECIPES[name].score, TYPICAL[name][0]) for name in RECIPES]
    evaluations = exceptions = strange = 0
    for _ in range(count):
        text = mutated(seeds, rng)
        for score, truth in scorers:
            evaluations += 1
            try:
                result = score(text, truth)
            except Exception:  # counting them is what this run is for
                exceptions += 1
                continue
            strange += not all(type(value) is float and math.isfinite(value) for value in result.values())
    return evaluations, exceptions, strange


# --- the originals -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Original:
    """Where an original reward function lies, how it is called, and which recipe of ours answers the same task."""

    repository: str
    path: str
    recipe: str
    call: Callable[[dict[str, Any], str], float]


def _call_stvg_r1(names: dict[str, Any], completion: str) -> float:
    accuracy = names["iou_timestamp_reward"]([completion], [[2.0, 5.0, 11.0]], [20.0])[0]
    return accuracy + names["format_reward"]([completion])[0]


def _call_timezero(names: dict[str, Any], completion: str) -> float:
    accuracy = names["iou_timestamp_reward"]([completion], [[5.0, 11.0]], [20.0])[0]
    return accuracy + names["format_reward"]([completion])[0]


def _call_temporal_r1(names: dict[str, Any], completion: str) -> float:
    return names["tvg_compute_score"](completion, [0.25, 0.55], 20.0)


_TUBE_TEXT = json.dumps({"time": [5.0, 11.0], "boxes": {str(10 + k): box for k, box in enumerate(_TUBE["boxes"])}})


def _call_onethinker(names: dict[str, Any], completion: str) -> float:
    sample = {"data_type": "video", "problem_type": "spatial-temporal grounding", "ground_truth": _TUBE_TEXT}
    return names["compute_score"]([{**sample, "response": completion}])[0]["overall"]


ORIGINALS = {
    "STVG-R1": Original("XiaowZhang00/stvg-r1", "src/open_r1/grpo_video.py", "stvg_r1", _call_stvg_r1),
    "TimeZero": Original("www-Ye/Time-R1", "src/open_r1/grpo_video.py", "timezero", _call_timezero),
    "Temporal-R1": Original(
        "appletea233/Temporal-R1", "verl/utils/reward_score/tvg.py", "temporal_r1", _call_temporal_r1
    ),
    "OneThinker": Original(
        "tulerfeng/OneThinker", "EasyR1/verl/reward_function/onethinker_reward.py", "stvg_boxes", _call_onethinker
    ),
}


def load_original(folder: Path, original: Original) -> dict[str, Any]:
    """Return the names that the functions and constants of an original file define, taken out without importing it.

    Raises FileNotFoundError with the command that gets the file.
    """
    path = folder / original.repository.split("/")[1] / original.path
    if not path.exists():
        name = original.repository.split("/")[1]
        raise FileNotFoundError(
            f"{path} is missing; get it with `git clone https://github.com/{original.repository} {folder / name}`"
        )
    wanted = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        constant = isinstance(node, ast.Assign | ast.AnnAssign) and not isinstance(node.value, ast.Dict)
        if isinstance(node, ast.FunctionDef) or constant:
            wanted.append(node)
    future = ast.parse("from __future__ import annotations\nfrom typing import *").body
    names: dict[str, Any] = {"re": re, "json": json, "math": math, "datetime": datetime, "print": lambda *args: None}
    names.update(os=os, random=random)
    exec(compile(ast.Module([*future, *wanted], []), str(path), "exec"), names)
    return names


# --- measurements --------------------------------------------------------------------------------------------------


def seconds(function: Callable[[Any], Any], arguments: Iterable[Any]) -> float:
    """Return the least processor time of one call, over calls with each argument; at least a nanosecond.

    Repeats take different arguments because the rewards remember the last few completions that they read.
    """
    best = math.inf
    for argument in arguments:
        begin = time.thread_time()
        function(argument)
        best = min(best, time.thread_time() - begin)
    return max(best, 1e-9)


def speed(options: Options, count: int = 4000, rounds: int = 5) -> Iterator[Row]:
    """Yield evaluations per second of each compared recipe, beside its original where there is one."""
    for name, original in ORIGINALS.items():
        recipe = original.recipe
        theirs = load_original(options.originals, original) if options.originals else None
        rate = other = 0.0
        for seed in range(options.seed, options.seed + rounds):
            rate = max(rate, count / seconds(partial(_score_all, recipe), [typical(recipe, count, seed)]))
            if theirs is not None:
                call = partial(_call_all, original, theirs)
                other = max(other, count / seconds(call, [typical(recipe, count, seed)]))
        wanted = "boxes" not in RECIPES[recipe].asks  # its answer carries eight boxes, which is not the typical one
        goal = ">= 100,000/s and faster" if wanted else "faster"
        met = (rate >= 100_000 or not wanted) and (theirs is None or rate > other)
        yield Row(f"evaluations/s, {recipe} vs {name}", rate, other or None, rate / other if other else None, goal, met)
    batches = [typical("stvg_r1", count, options.seed + round_) for round_ in range(rounds)]
    yield Row("evaluations/s, compute_score with its checks", count / seconds(_bridge_all, batches), goal="-")


def _score_all(recipe: str, completions: list[str]) -> None:
    score, truth = RECIPES[recipe].score, TYPICAL[recipe][0]
    for completion in completions:
        score(completion, truth)


def _call_all(original: Original, theirs: dict[str, Any], completions: list[str]) -> None:
    for completion in completions:
        original.call(theirs, completion)


def _bridge_all(completions: list[str]) -> None:
    for completion in completions:
        compute_score("stvg_r1/benchmark", completion, TYPICAL["stvg_r1"][0], {"index": 0})


def growth(options: Options) -> Iterator[Row]:
    """Yield the worst time at 64 KB and the worst growth from 512 KB to 1 MB over all readers and hostile texts."""
    slowest, steepest = (0.0, "-"), (0.0, "-")
    sizes = (1 << 16, 1 << 19, 1 << 20)
    for (what, short), (_, half), (_, whole) in zip(*map(hostile_texts, sizes), strict=True):
        for name, read in readers().items():
            took = seconds(read, _variants(short, 1))
            if took > 0.003:  # near the goal: the machine may have been busy, look again
                took = min(took, seconds(read, _variants(short, 8)))
            slowest = max(slowest, (1e3 * took, f"{name} on {what}"))
            first, second = seconds(read, _variants(half, 1)), seconds(read, _variants(whole, 1))
            if second < 0.005:  # five nanoseconds a character: too short to tell the text from the clock
                continue
            for _ in range(5):  # a steep one is looked at up to five times more, both sizes in turn
                if second <= 2.2 * first:
                    break
                first = min(first, seconds(read, _variants(half, 5)))
                second = min(second, seconds(read, _variants(whole, 5)))
            steepest = max(steepest, (second / first, f"{name} on {what}"))
    yield Row(f"ms at 64 KB, worst: {slowest[1]}", slowest[0], goal="<= 5", met=slowest[0] <= 5.0)
    yield Row(f"t(1 MB) / t(512 KB), worst: {steepest[1]}", steepest[0], goal="< 2.5", met=steepest[0] < 2.5)


_BLANKS = itertools.cycle(range(1, 65))


def _variants(text: str, count: int) -> list[str]:
    """Return the text that often with other numbers of trailing blanks, none of which was read lately."""
    return [text + " " * next(_BLANKS) for _ in range(count)]


def hostile_originals(options: Options, size: int = 20_000, limit: float = 20.0) -> Iterator[Row]:
    """Yield milliseconds on 20,000 digits inside the block that each original reads; it is stopped after 20 s."""
    frame = {"stvg_r1": "Target ID: 2, Time range: {}", "timezero": "{}"}
    for name, original in ORIGINALS.items():
        completion = f"<think>x</think><answer>{frame.get(original.recipe, '{}').format('7' * size)}</answer>"
        recipe, truth = RECIPES[original.recipe], TYPICAL[original.recipe][0]
        ours = 1e3 * seconds(partial(recipe.score, ground_truth=truth), _variants(completion, 3))
        other = _limited(options.originals, original, completion, limit) if options.originals else None
        stopped = options.originals is not None and other is None
        ratio = other / ours if other is not None else None
        label = f"ms on 20,000 digits, {original.recipe} vs {name}"
        yield Row(label, ours, f"> {limit:g} s" if stopped else other, ratio)


def _limited(folder: Path, original: Original, completion: str, limit: float) -> float | None:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_time_original, args=(folder, original.repository, completion, sender))
    child.start()
    sender.close()  # so that a child that fails reads as the end of the pipe, not as a slow one
    ended = receiver.poll(limit)
    try:
        return receiver.recv() if ended else None
    except EOFError:
        raise RuntimeError(f"{original.repository}: its reward function failed in the process that times it") from None
    finally:
        child.kill()
        child.join()


def _time_original(folder: Path, repository: str, completion: str, sender: Any) -> None:
    original = next(one for one in ORIGINALS.values() if one.repository == repository)
    names = load_original(folder, original)
    sender.send(1e3 * seconds(partial(original.call, names), [completion]))


def fuzzing(options: Options) -> Iterator[Row]:
    """Yield the counts of the fuzz run."""
    evaluations, exceptions, strange = fuzz(options.fuzz, options.seed)
    name = f"fuzz: {options.fuzz:,} completions, {evaluations:,} evaluations"
    yield Row(f"{name}: exceptions", exceptions, goal="0", met=exceptions == 0)
    yield Row(f"{name}: results not finite", strange, goal="0", met=strange == 0)


def measure(options: Options) -> Iterable[Row]:
    """Yield all rows: speed, growth, hostile text for the originals, fuzz."""
    for part in (speed, growth, hostile_originals, fuzzing):
        yield from part(options)
