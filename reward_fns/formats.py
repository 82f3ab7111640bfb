"""Check the layout of a completion: which tags, in which order, and nothing else.

Format rewards look only at the frame of a completion, never at the truth. They are full matches, so that text outside
the tags costs the reward; what may stand inside the tags differs between papers, hence one function per contract.
Each returns 1.0 or 0.0. Tags are case-sensitive; blocks may be empty, span lines and swallow further tags, so repeated
blocks pass wherever the content is free. Two anchors and a search for the joint replace the lazy wildcards.
"""

import re

_THINK_TO_ANSWER = re.compile(r"</think>\s*<answer>")
_ANSWER_TO_GLUE = re.compile(r"</answer>\s*<glue>")
_INTERVAL_JSON = re.compile(
    r'<answer>\s*\{\s*"start_time"\s*:\s*"[\d.]+"\s*,\s*"end_time"\s*:\s*"[\d.]+"\s*\}\s*</answer>'
)
_STRICT_NUMBER = r"(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})"
_STRICT_INTERVAL_JSON = re.compile(
    rf'<answer>\s*\{{\s*"start_time"\s*:\s*"{_STRICT_NUMBER}"\s*,\s*"end_time"\s*:\s*"{_STRICT_NUMBER}"\s*\}}\s*</answer>'
)
_OPTION_JSON = re.compile(r'<answer>\s*\{\s*"option"\s*:\s*"(?:[A-Z]|\([A-Z]\))"\s*\}\s*</answer>')
_OPTION_INTERVAL_JSON = re.compile(
    r'<answer>\s*\{\s*"option"\s*:\s*"(?:[A-Z]|\([A-Z]\))"\s*,'
    r'\s*"start_time"\s*:\s*"[\d.]+"\s*,\s*"end_time"\s*:\s*"[\d.]+"\s*\}\s*</answer>'
)


def think_answer(completion: str) -> float:
    """Check for `<think>..</think>`, blanks, `<answer>..</answer>` around which only blanks may stand.

    Source: STVG-R1, 2.5; Time-R1; VideoChat-R1 grounding.
    """
    return think_answer_exact(completion.strip())


def think_answer_exact(completion: str) -> float:
    """Check for `<think>..</think>`, blanks, `<answer>..</answer>`, nothing around. Source: Temporal-R1, 2.2 `r1v`."""
    if not (completion.startswith("<think>") and completion.endswith("</answer>")):
        return 0.0
    return 1.0 if _THINK_TO_ANSWER.search(completion, 7, len(completion) - 9) is not None else 0.0


def answer_only(completion: str) -> float:
    """Check for `<answer>..</answer>` around which only blanks may stand. Source: VideoChat-R1.5."""
    text = completion.strip()
    return 1.0 if len(text) >= 17 and text.startswith("<answer>") and text.endswith("</answer>") else 0.0


def think_answer_glue(completion: str) -> float:
    """Check for think, answer and glue blocks in this order, only blanks between and around them.

    The content of the glue block is the caller's to check. Source: VideoChat-R1 grounded QA (VideoTG-R1 notes, 4.2).
    """
    text = completion.strip()
    if not (text.startswith("<think>") and text.endswith("</glue>")):
        return 0.0
    first = _THINK_TO_ANSWER.search(text, 7)
    return 1.0 if first and _ANSWER_TO_GLUE.search(text, first.end(), len(text) - 7) else 0.0


def answer_glue(completion: str) -> float:
    """Check for answer and glue blocks in this order, only blanks between and around. Source: VideoChat-R1 no-think."""
    text = completion.strip()
    if not (text.startswith("<answer>") and text.endswith("</glue>")):
        return 0.0
    return 1.0 if _ANSWER_TO_GLUE.search(text, 8, len(text) - 7) else 0.0


def think_interval_json(completion: str) -> float:
    """Check for think and an answer `{"start_time": "NUM", "end_time": "NUM"}`, nothing around.

    NUM is any run of digits and dots, so `1.2.3` and `...` pass, as in the original. Source: Temporal-R1, 2.1.
    """
    return _think_then(_INTERVAL_JSON, completion)


def think_interval_json_strict(completion: str) -> float:
    """Check like `think_interval_json`, but NUM has to be a number (ASCII, at most nine digits a side). Ours."""
    return _think_then(_STRICT_INTERVAL_JSON, completion)


def interval_json(completion: str) -> float:
    """Check for nothing but the answer that `think_interval_json` wants. Ours, for prompts without reasoning."""
    return 1.0 if _INTERVAL_JSON.fullmatch(completion.strip()) is not None else 0.0


def think_option_json(completion: str) -> float:
    """Check for think and an answer `{"option": "X"}` or `"(X)"`, nothing around. Ours, after Temporal-R1, 2.3."""
    return _think_then(_OPTION_JSON, completion)


def think_option_interval_json(completion: str) -> float:
    """Check for think and an answer with `option`, `start_time`, `end_time`. Ours, after Temporal-R1, 2.3."""
    return _think_then(_OPTION_INTERVAL_JSON, completion)


def _think_then(answer: re.Pattern[str], completion: str) -> float:
    # None of the answer patterns can hold a second opening tag, so only the last one can start the answer.
    start = completion.rfind("<answer>")
    if start < 14 or not completion.startswith("<think>"):
        return 0.0
    if answer.fullmatch(completion, start) is None:
        return 0.0
    return 1.0 if completion[7:start].rstrip().endswith("</think>") else 0.0


def strict_think_answer(completion: str) -> float:
    """Check like `think_answer`, and that each of the four tags occurs exactly once. Ours."""
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    return think_answer(completion) if all(completion.count(tag) == 1 for tag in tags) else 0.0
