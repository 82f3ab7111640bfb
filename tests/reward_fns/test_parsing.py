"""The parsers against plain but slow definitions of what they read, and on text made to hurt them.

The references below are the obvious regular expressions; they take quadratic time, which is why the package has none.
Nothing here asserts on the clock: a parser that is not linear would not finish within the time limit of the suite.
"""

import ast
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.rewards import READERS, hostile_texts
from reward_fns import formats, grading, parsing

PIECES = ["<answer>", "</answer>", "<think>", "</think>", "<glue>", "</glue>", "\n", " ", "x", "\u00a0", "<answer"]
TAGGED = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
NUMBERS = ["1", "2.", "3", ".", "45", " to ", " and ", " TO ", "to", " ", "x", "-", "٣"]
NUMBERED = st.lists(st.sampled_from(NUMBERS), max_size=14).map("".join)
TUPLES = [
    "[",
    "]",
    "(",
    ")",
    "1",
    "2.5",
    "0",
    "07",
    ",",
    ", ",
    ",\n",
    ".",
    "[(1, 2)]",
    "(3, 4)",
    "(9, 1)",
    " ",
    "\n",
    "٣",
]
LISTED = st.lists(st.sampled_from(TUPLES), max_size=9).map("".join)


@given(TAGGED)
def test_blocks_are_those_of_a_lazy_scan(text):
    blocks = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    assert parsing.first_block(text, "answer") == (blocks[0] if blocks else None)
    assert parsing.last_block(text, "answer") == (blocks[-1] if blocks else None)
    one_line = re.search(r"<answer>(.*?)</answer>", text)
    assert parsing.first_line_block(text, "answer") == (one_line.group(1) if one_line else None)


@given(NUMBERED)
@settings(max_examples=500)
def test_last_pair_is_that_of_a_scan_without_overlap(text):
    pairs = re.findall(r"(\d+\.?\d*) (?:to|and) (\d+\.?\d*)", text, re.IGNORECASE)
    expected = tuple(map(float, pairs[-1])) if pairs else None
    assert parsing.last_pair(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 to 2 to 3", (1.0, 2.0)),
        ("1 to 2 to 3 to 4", (3.0, 4.0)),
        ("1 to 2.3.4 to 5", (4.0, 5.0)),
        ("-3 to 5", (3.0, 5.0)),
        (".5 and 9.", (5.0, 9.0)),
        ("1.2.3 to 4", (2.3, 4.0)),
        ("00:10 to 00:20", (10.0, 0.0)),
        ("5 to 6, .. to 7", (5.0, 6.0)),
        ("7" * 50 + " to 8", (float("7" * 50), 8.0)),
        ("2  to  10", None),
        ("2s to 10s", None),
        ("2 - 10", None),
        ("2\u00a0to 10", None),
    ],
)
def test_last_pair_reads_what_the_papers_read(text, expected):
    assert parsing.last_pair(text) == expected


@given(LISTED)
@settings(max_examples=500)
def test_interval_list_is_python_syntax_of_a_narrow_form(text):
    number = r"\d+(?:\.\d+)?"
    tuple_ = rf"\({number},\s*{number}\)"
    expected = None
    if re.match(rf"^\[(?:{tuple_}(?:,\s*{tuple_})*,?)?\]$", text):
        try:
            expected = [tuple(map(float, pair)) for pair in ast.literal_eval(text)]
        except (SyntaxError, ValueError):
            expected = None
    if expected is not None and any(start > end for start, end in expected):
        expected = None
    assert parsing.interval_list(text) == expected


def test_interval_list_is_bounded():
    most = "[" + ", ".join(["(1, 2)"] * parsing.MAX_INTERVALS) + "]"
    assert len(parsing.interval_list(most)) == parsing.MAX_INTERVALS
    assert parsing.interval_list(most[:-1] + ", (1, 2)]") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Target ID: 3", 3),
        ("target id:٣", 3),
        ("Target ID: 003.7", 3),
        ("Target ID: 2, Target ID: 5", 2),
        ("Target ID: [3]", None),
        ("Target ID: -3", None),
        ("Target ID： 3", None),
        ("Target ID: " + "0" * 4299 + "7", 7),
        ("Target ID: " + "0" * 4300 + "7", None),
    ],
)
def test_target_id(text, expected):
    assert parsing.target_id(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Target ID: 2, Time range: 1 to 3", {2}),
        ("Target ID: 2, 3 and 5, Time range: 1 to 3", {2, 3, 5}),
        ("target ids: 2/3 & 2", {2, 3}),
        ("Target IDs: none", None),
        ("Target ID: " + ", ".join(map(str, range(100))), set(range(64))),
    ],
)
def test_target_ids(text, expected):
    assert parsing.target_ids(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Time range: 5.00 to 11.00", (5.0, 11.0)),
        ("TIME range:5to11s", (5.0, 11.0)),
        ("Time range: 5. and 11.", (5.0, 11.0)),
        ("Time range: 1e5, Time range: 2 to 3", (2.0, 3.0)),
        ("Time range: from 5 to 11", None),
        ("Time range: 5s to 11s", None),
        ("Time range: .5 to 11", None),
        ("Time range: 5 - 11", None),
        ("Time range: 1 to " + "9" * 400, (1.0, float("inf"))),
    ],
)
def test_time_range(text, expected):
    assert parsing.time_range(text) == expected


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_intervals_survive_being_written_and_read(start, end):
    expected = (float(f"{start:.3f}"), float(f"{end:.3f}"))
    assert parsing.last_pair(f"{start:.3f} to {end:.3f}") == expected
    assert parsing.time_range(f"Time range: {start:.3f} to {end:.3f}") == expected
    assert parsing.json_interval(f'{{"start_time": "{start:.3f}", "end_time": {end:.3f}}}') == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('\u00a0{"start_time": " 1e1 ", "end_time": true}\n', (10.0, 1.0)),
        ('{"start_time": 1, "end_time": 2, "end_time": "3"}', (1.0, 3.0)),
        ('{"start_time": 1}', None),
        ('{"start_time": NaN, "end_time": 2}', None),
        ('{"start_time": 1, "end_time": "inf"}', None),
        ('{"start_time": 1, "end_time": [2]}', None),
        ('{"start_time": 1, "end_time": ' + "9" * 400 + "}", None),
        ('{"start_time": 1, "end_time": ' + "9" * 5000 + "}", None),
        ("[1, 2]", None),
        ("[" * 100_000, None),
        ('{"a":' * 100_000, None),
    ],
)
def test_json_interval(text, expected):
    assert parsing.json_interval(text) == expected


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B", "B"), ("(C) text", "C"), ("I think A", "A"), ("Definitely A", "D"), ("Answer: C", "A"), ("none", "")],
)
def test_option_letter_is_the_first_capital(text, letter):
    assert parsing.option_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [('{"option": "D"}', "D"), ('{"option": "(D)"}', "D"), ('{"A": "D"}', "A"), ('{"option": "d"}', None), ("D", None)],
)
def test_quoted_option(text, letter):
    assert parsing.quoted_option(text) == letter


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"time": [1, "2"], "boxes": {"7": [0, 0, 1, 1]}}', True),
        ('{"time": [1, 2], "boxes": {}}', True),
        ('{"time": [1, 2], "boxes": {"a": []}}', False),
        ('{"time": [1, 2, 3], "boxes": {}}', False),
        ('{"time": 1, "boxes": {}}', False),
    ],
)
def test_json_tube(text, valid):
    assert (parsing.json_tube(text) is not None) == valid
    assert parsing.box([0, "1", 2.5, True]) == (0.0, 1.0, 2.5, 1.0)
    assert parsing.box([0, 1, 2]) is parsing.box("1234") is parsing.box([0, 1, 2, None]) is None


FULL_MATCHES = {
    "think_answer_exact": r"<think>.*?</think>\s*<answer>.*?</answer>",
    "think_answer": r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*",
    "answer_only": r"\s*<answer>.*?</answer>\s*",
    "think_answer_glue": r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*<glue>.*?</glue>\s*",
    "answer_glue": r"\s*<answer>.*?</answer>\s*<glue>.*?</glue>\s*",
}


@given(
    TAGGED,
    st.sampled_from(["{}", "<think>{}</answer>", "<think>{}</glue>", "<answer>{}</glue>", "<answer>{}</answer>"]),
)
@settings(max_examples=500)
def test_layouts_are_full_matches(middle, frame):
    text = frame.format(middle)
    for name, pattern in FULL_MATCHES.items():
        assert getattr(formats, name)(text) == float(re.fullmatch(pattern, text, re.DOTALL) is not None), name


ANSWERS = [
    '{"start_time": "1.2.3", "end_time": "4"}',
    '{ "start_time" : "..." ,\n"end_time":"٣" }',
    "{}",
    '{"option": "B"}',
]


@given(TAGGED, st.sampled_from(ANSWERS), TAGGED)
def test_json_layout_is_a_full_match(before, answer, after):
    number = r'"[\d.]+"'
    body = rf'\{{\s*"start_time"\s*:\s*{number}\s*,\s*"end_time"\s*:\s*{number}\s*\}}'
    pattern = rf"<think>.*?</think>\s*<answer>\s*{body}\s*</answer>"
    for text in (f"<think>{before}</think>{answer}{after}", f"<think>{before}</think><answer>{answer}</answer>{after}"):
        assert formats.think_interval_json(text) == float(re.fullmatch(pattern, text, re.DOTALL) is not None)


def test_strict_layouts_refuse_what_the_faithful_ones_pay_for():
    hack = '<think>a</think><answer>{"start_time": "1.2.3", "end_time": "..."}</answer>'
    honest = '<think>a</think><answer>{"start_time": "1.2", "end_time": ".5"}</answer>'
    assert formats.think_interval_json(hack) == 1.0 and formats.think_interval_json_strict(hack) == 0.0
    assert formats.think_interval_json(honest) == formats.think_interval_json_strict(honest) == 1.0
    twice = "<think>a</think><answer>1</answer><answer>2</answer>"
    assert formats.think_answer(twice) == 1.0 and formats.strict_think_answer(twice) == 0.0


@pytest.mark.parametrize(
    ("given_answer", "truth", "same"),
    [
        ("b", "B", True),
        ("(B)", "B", True),
        ("B. A drone", "B", False),
        ("B.", "B", False),
        ("0.5", "1/2", True),
        ("2/4", "1/2", False),
        ("\\frac{1}{2}", "0.5", True),
        ("12 seconds", "12", True),
        ("12.0", "12", True),
        ("1,200", "1200", True),
        ("50%", "50", True),
        ("3 1/2", "3.5", True),
        ("x=5", "5", True),
        ("(1, 2)", "(1,2)", True),
        ("[1, 2]", "(1,2)", False),
        ("2*4", "8", False),
        ("2.5*4", "5*2", True),
        ("9^9", "387420489", False),
        ("Red  Ball", "red ball", True),
        ("", "B", False),
        ("1/0", "2/0", False),
        ("((((", "1", False),
    ],
)
def test_free_form_answers(given_answer, truth, same):
    assert grading.same_answer(given_answer, truth) is same


@pytest.mark.parametrize(
    "expression", ["9^9^9", "9^99", "(" * 100 + "9^9" + ")^9" * 90, "1" * 300, "2**3", "1+", "", "()"]
)
def test_arithmetic_is_bounded(expression):
    assert grading.evaluate(expression) is None


@given(st.text(max_size=200))
@settings(max_examples=300)
def test_readers_accept_any_text(text):
    for read in READERS.values():
        read(text)


def test_readers_finish_on_hostile_text():
    for _, text in hostile_texts(1 << 14):
        for read in READERS.values():
            read(text)
