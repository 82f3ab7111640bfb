"""Files of this program, dumps of verl, and the two forms that anybody can write: objects by line or by ID."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from verl_stvg.eval.benchmarks.base import Prediction
from verl_stvg.eval.importers.entries import Entry, Reader, Said, letter_of, said_of, times_of
from verl_stvg.rows.answers import Answer
from verl_stvg.rows.chat_template import of_dump


def _answers(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """Ours: `verl_stvg.rows.answers`."""
    for line in content:
        texts, error = tuple(line.get("texts", ())), line.get("error")
        yield Entry(Answer(line["uid"], texts, tuple(line.get("finish", ())), (), error), (line["uid"],))


def _verl(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """Answers that verl dumps while it validates (``trainer.validation_data_dir``), samples of a row together."""
    for line in content:
        uid = line["gts"]["uid"]
        yield Entry(Answer(uid, (of_dump(line),)), (uid,))


def _plain_lines(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """Objects with uid (or qid, id, or vid or video with query) and text, interval(s), object_id(s), option or tube."""
    for line in content:
        names = tuple(str(line[key]) for key in ("uid", "qid", "id") if line.get(key) is not None)
        video = next((line[key] for key in ("vid", "video") if line.get(key)), None)
        query = next((line[k] for k in ("query", "sentence") if line.get(k)), None)
        yield Entry(said_of(line), names, video, query, source=line)


def _by_uid(content: Mapping[str, Any], counts: Counter) -> Iterator[Entry]:
    """One object: by ID a text, an interval, several, or an object as in `lines`; NExT-GQA's files of both kinds."""
    for name, value in content.items():
        if isinstance(value, str):
            said: Said = Answer("", (value,))
        elif isinstance(value, list):
            said = times_of(value)
        elif "prediction" in value and "answer" in value:
            said = Prediction(option=letter_of(value["prediction"]))
        else:
            said = said_of(value)
        yield Entry(said, (name,), source={name: value})


FORMATS: dict[str, Reader] = {"answers": _answers, "verl": _verl, "lines": _plain_lines, "by_uid": _by_uid}
