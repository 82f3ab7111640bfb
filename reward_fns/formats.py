"""Check the layout of a completion: which tags, in which order, and nothing else.

Format rewards look only at the frame of a completion, never at the truth. They are full matches, so that text outside
the tags costs the reward; what may stand inside the tags differs between papers, hence one function per contract.
"""

import re

_THINK_TO_ANSWER = re.compile(r"</think>\s*<answer>")


def think_answer(completion: str) -> float:
    """Return 1.0 if the stripped completion is `<think>..</think>`, blanks, `<answer>..</answer>`, else 0.0.

    Tags are case-sensitive; blocks may be empty, span lines and swallow further tags, so repeated blocks pass.
    Source: STVG-R1, 2.5; Time-R1; VideoChat-R1 grounding.
    """
    text = completion.strip()
    if not (text.startswith("<think>") and text.endswith("</answer>")):
        return 0.0
    return 1.0 if _THINK_TO_ANSWER.search(text, 7, len(text) - 9) is not None else 0.0
