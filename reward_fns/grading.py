"""Decide whether a short free-form answer equals the truth, for question answering that is not multiple choice.

Temporal-R1's `r1v` reward hands this to a library that normalises text and lets a computer algebra system compare the
rest. Rewards here depend on nothing, so the normalisation is ours and arithmetic is exact over fractions: case, blanks,
unit words, thousands separators, `$`, `%` and simple LaTeX fractions do not matter, `0.5` equals `1/2`, `(B)` equals
`B`. Algebra with letters is not simplified: `a+b` does not equal `b+a`. Source: Temporal-R1, 2.2.
"""

import re
from fractions import Fraction

# Ours: bounds that keep the work small; longer expressions and larger numbers are compared as text only.
MAX_EXPRESSION = 200
MAX_BITS = 4096
MAX_ANSWER = 4096

_UNIT_WORDS = (
    "centimeter degree minute second meter month week year hour inch foot feet yard mile day cm"  # longest first
)
_UNITS = re.compile(rf"(?:{'|'.join(_UNIT_WORDS.split())})(?:es)?s? *(?:\^[0-9]+)?")
_FRACTION = re.compile(r"\\[dt]?frac *\{([^{}]*)\} *\{([^{}]*)\}")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_ASSIGNMENT = re.compile(r"[^=]{1,2}=([^=]*)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_MIXED = re.compile(r"(?<=[0-9]) +(?=[0-9])")
_SIMPLE_FRACTION = re.compile(r"-?[0-9]+/0*[1-9][0-9]*")
_INTEGER = re.compile(r"-?[0-9]+")
_NUMERAL = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d{1,2})?")
_ARITHMETIC = re.compile(r"[0-9.+\-*/^() ]+")
_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+|[-+*/^()]")
_LARGE_POWER = re.compile(r"\^[0-9]{2}|\^\(|\^[0-9]\^")


def same_answer(given: str, truth: str) -> bool:
    """Tell whether two answers are equal after normalisation, or element by element as exact numbers.

    Two fractions have to be equal as written (unreduced ones differ), and an integer equals only an integer. Answers of
    more than 4,096 characters are compared as they stand.
    """
    if len(given) > MAX_ANSWER or len(truth) > MAX_ANSWER:
        return given == truth
    if _without_assignment(given) == _without_assignment(truth):
        return True
    given, truth = normalise(given), normalise(truth)
    if given == truth:
        return True
    if not given or not truth:
        return False
    given_elements, true_elements = _elements(given), _elements(truth)
    if len(given_elements) != len(true_elements):
        return False
    if len(true_elements) > 1 and (given[0] != truth[0] or given[-1] != truth[-1]):
        return False
    return all(map(_same_element, given_elements, true_elements))


def normalise(text: str) -> str:
    """Return the answer in lower case without blanks, units, currency, percent signs and thousands separators."""
    text = text.strip()
    text = _TEXT.sub(r"\1", text)
    text = _FRACTION.sub(r" \1/\2", text)
    text = text.replace("^\\circ", "").replace("\\", "").replace("$", "").replace("%", "")
    text = text.replace(" or ", " , ").replace(" and ", " , ")
    text = _UNITS.sub("", text).strip()
    text = _MIXED.sub("+", text).replace(" ", "").replace("{", "").replace("}", "").lower()
    text = _THOUSANDS.sub("", text)
    if len(text) <= MAX_EXPRESSION and _NUMERAL.fullmatch(text):
        number = Fraction(text)
        return str(number) if number.denominator == 1 else text
    return text


def _without_assignment(text: str) -> str:
    text = text.strip().replace(" ", "").replace("%", "")
    match = _ASSIGNMENT.fullmatch(text)
    return match.group(1) if match is not None else text


def _elements(text: str) -> list[str]:
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and not any(bracket in text[1:-1] for bracket in "()[]"):
        return text[1:-1].split(",")
    return [text]


def _same_element(given: str, truth: str) -> bool:
    if given == truth:
        return True
    if _SIMPLE_FRACTION.fullmatch(given) and _SIMPLE_FRACTION.fullmatch(truth):
        return False
    if (_INTEGER.fullmatch(given) is None) != (_INTEGER.fullmatch(truth) is None):
        return False
    value = evaluate(given)
    return value is not None and value == evaluate(truth)


def evaluate(expression: str) -> Fraction | None:
    """Return the exact value of an expression of numbers, `+ - * / ^` and brackets, or None if it is none."""
    if len(expression) > MAX_EXPRESSION or not _ARITHMETIC.fullmatch(expression) or _LARGE_POWER.search(expression):
        return None
    tokens = _TOKEN.findall(expression)
    if sum(map(len, tokens)) != len(expression.replace(" ", "")):
        return None
    value, rest = _sum(tokens, 0)
    return value if rest == len(tokens) else None


# Each level returns (value or None, index of the next token); None travels up unchanged.
def _sum(tokens: list[str], index: int) -> tuple[Fraction | None, int]:
    sign = 1
    while index < len(tokens) and tokens[index] in "+-":
        sign, index = (-sign if tokens[index] == "-" else sign), index + 1
    total, index = _product(tokens, index)
    total = _bounded(total * sign) if total is not None else None
    while total is not None and index < len(tokens) and tokens[index] in "+-":
        operator = tokens[index]
        term, index = _product(tokens, index + 1)
        total = _bounded(total + term if operator == "+" else total - term) if term is not None else None
    return total, index


def _product(tokens: list[str], index: int) -> tuple[Fraction | None, int]:
    product, index = _power(tokens, index)
    while product is not None and index < len(tokens) and tokens[index] in "*/":
        operator = tokens[index]
        factor, index = _power(tokens, index + 1)
        if factor is None or (operator == "/" and factor == 0):
            return None, index
        product = _bounded(product * factor if operator == "*" else product / factor)
    return product, index


def _power(tokens: list[str], index: int) -> tuple[Fraction | None, int]:
    base, index = _atom(tokens, index)
    while base is not None and index + 1 < len(tokens) and tokens[index] == "^":
        exponent = tokens[index + 1]
        if not exponent.isdigit() or base.numerator.bit_length() * int(exponent) > MAX_BITS:
            return None, index
        base, index = _bounded(base ** int(exponent)), index + 2
    return base, index


def _atom(tokens: list[str], index: int) -> tuple[Fraction | None, int]:
    if index >= len(tokens):
        return None, index
    if tokens[index] == "(":
        value, index = _sum(tokens, index + 1)
        return (value, index + 1) if index < len(tokens) and tokens[index] == ")" else (None, index)
    return (None, index) if tokens[index] in "+-*/^)" else (Fraction(tokens[index]), index + 1)


def _bounded(value: Fraction) -> Fraction | None:
    return value if max(value.numerator.bit_length(), value.denominator.bit_length()) <= MAX_BITS else None
