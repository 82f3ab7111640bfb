"""Rows by everything that names them, so that a prediction of any program finds the row that it is for."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import PurePosixPath

from verl_stvg.eval.benchmarks.base import Interval, Item
from verl_stvg.eval.importers.entries import Entry
from verl_stvg.video.identity import ENDINGS

_ALIKE = 0.3  # seconds: annotated times of a table that was stored in float16 are that far off


class Rows:
    """Rows by everything that names them."""

    def __init__(self, items: Sequence[Item]):
        self.items = items

    def find(self, entry: Entry) -> list[Item]:
        """The row of an entry; none, or several that nothing in the entry tells apart.

        IDs are often numbers of one program or another. Where the file also has a video and a query, and rows with
        both, the row that an ID names has to be one of them; else only the video is compared, unless the ID is a uid.
        """
        if entry.prompt is not None:
            return self._by_target(entry, entry.prompt)
        described = self._described(entry)
        for name in entry.names:
            for table in (self._by_uid, self._by_key, self._by_qid):
                if len(named := table.get(name, ())) != 1:
                    continue
                there = any(named[0] is one for one in described)
                if there or not described and (table is self._by_uid or _is_of_video(named[0], entry.video)):
                    return named
        return described or self._at_place(entry)

    def _described(self, entry: Entry) -> list[Item]:
        """Rows with the video and the query of an entry; those with its truth, or at its place, if there are any."""
        if entry.video is None or entry.query is None:
            return []
        found = self._by_query.get((_stem(entry.video), _plain(entry.query)), [])
        if len(found) > 1 and entry.truth is not None:
            found = [item for item in found if _agrees(item, entry.truth)] or found
        if len(found) > 1 and entry.place is not None and entry.place < len(self.items):
            found = [item for item in found if item is self.items[entry.place]] or found
        return found

    def _at_place(self, entry: Entry) -> list[Item]:
        if entry.place is None or entry.truth is None or entry.place >= len(self.items):
            return []
        return [item for item in self.items[entry.place : entry.place + 1] if _agrees(item, entry.truth)]

    def _by_target(self, entry: Entry, prompt: str) -> list[Item]:
        """Rows with the truth of an entry whose query stands in its prompt; the one at its place, if there are several.

        The place may be one of all rows, or of those of one sentence type (VidSTG).
        """
        place, alike = entry.place, self._by_times.get(entry.truth, []) if entry.truth is not None else []
        asked = [item for item in alike if item.query in prompt]
        longest = max((len(item.query) for item in asked), default=0)  # "sits" stands in "sits down" as well
        asked = [item for item in asked if len(item.query) == longest]
        if len(asked) > 1 and place is not None:
            at_place = [rows[place] for rows in self._numberings if place < len(rows)]
            asked = [item for item in asked if any(item is one for one in at_place)] or asked
        return asked

    @cached_property
    def _numberings(self) -> list[list[Item]]:
        kinds = {item.extra.get("kind") for item in self.items}
        return [list(self.items), *([one for one in self.items if one.extra.get("kind") == kind] for kind in kinds)]

    @cached_property
    def _by_times(self) -> dict[Interval, list[Item]]:
        """By the first annotated interval, as lmms-eval's log has it: to two decimals."""
        table: dict[Interval, list[Item]] = {}
        for item in self.items:
            for start, end in item.intervals[:1]:
                table.setdefault((float(f"{start:.2f}"), float(f"{end:.2f}")), []).append(item)
        return table

    @cached_property
    def _by_uid(self) -> dict[str, list[Item]]:
        return {item.uid: [item] for item in self.items}

    @cached_property
    def _by_key(self) -> dict[str, list[Item]]:
        """By the ID in the set, which others join with a low line, and write without ending or with a 0 (STVG-R1)."""
        table: dict[str, list[Item]] = {}
        for item in self.items:
            key = item.uid.removeprefix(f"{item.dataset}/{item.split}/")
            stem = _without_ending(key)
            for name in dict.fromkeys((key, key.replace("/", "_"), stem, f"{stem}_0")):
                table.setdefault(name, []).append(item)
        return table

    @cached_property
    def _by_qid(self) -> dict[str, list[Item]]:
        table: dict[str, list[Item]] = {}
        for item in self.items:
            for name in ("qid", "id", "annotation_id"):
                if item.extra.get(name) is not None:
                    table.setdefault(str(item.extra[name]), []).append(item)
        return table

    @cached_property
    def _by_query(self) -> dict[tuple[str, str], list[Item]]:
        table: dict[tuple[str, str], list[Item]] = {}
        for item in self.items:
            table.setdefault((_stem(item.video), _plain(item.query)), []).append(item)
        return table


def _is_of_video(item: Item, video: str | None) -> bool:
    return video is None or _stem(item.video) == _stem(video)


def _agrees(item: Item, truth: Interval) -> bool:
    return any(max(abs(one[0] - truth[0]), abs(one[1] - truth[1])) <= _ALIKE for one in item.intervals)


def _without_ending(name: str) -> str:
    path = PurePosixPath(name)
    return name[: -len(path.suffix)] if path.suffix.lower() in ENDINGS else name


def _stem(video: object) -> str:
    return _without_ending(PurePosixPath(str(video)).name).removesuffix("-cam-002")


def _plain(query: object) -> str:
    return " ".join(str(query).lower().split()).strip(" .?!")
