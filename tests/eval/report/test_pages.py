"""What pages show of clips: which frames, outlines around objects and numbers beside them, groups, telling curves."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.eval.report.test_page import NUM_VAL, STEPS, add_tracks, evaluate, lines_of, make_run, rewrite, sides
from verl_stvg.data_builders import show
from verl_stvg.data_builders.sets import synthetic
from verl_stvg.eval.benchmarks import tracked
from verl_stvg.eval.report import boxes as boxes_drawn
from verl_stvg.eval.report import clips, of_run, runs, training
from verl_stvg.eval.report import page as report
from verl_stvg.eval.report.boxes import SHOWN
from verl_stvg.eval.report.replies import Reply
from verl_stvg.video.thumbnails import choose, thumbnails


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic.build(tmp_path_factory.mktemp("pages") / "data", 1, NUM_VAL, seed=3, progress=False)


# --- which frames -----------------------------------------------------------------------------------------------------

TIMES = [k / 2 for k in range(300)]


def shown(count=8, events=(), claims=(), times=TIMES):
    return [times[k] for k in choose(times, count, events, claims)]


def test_frames_lie_inside_a_short_event_and_around_it():
    found = shown(events=[(100.0, 102.0)])
    assert [time for time in found if 99 < time < 103] == [99.5, 100.0, 100.5, 101.0, 101.5, 102.0]
    assert found[0] == 0.0 and len(found) == 8  # and where the longest time would be without one


def test_frames_lie_where_answers_say_that_the_event_is():
    found = shown(events=[(100.0, 140.0)], claims=[(10.0, 14.0), (110.0, 120.0), (float("inf"), 2.0), (160.0, 170.0)])
    assert any(10 <= time < 14 for time in found) and len(found) == 8
    assert sum(100 <= time < 140 for time in found) == 4 and 99.5 in found and 140.0 in found


def test_an_event_between_two_frames_or_at_an_end():
    assert {9.5, 10.0} <= set(shown(events=[(9.6, 9.9)]))
    assert shown(events=[(0.0, 1.0)])[:3] == [0.0, 0.5, 1.0]
    assert shown(events=[(149.0, 150.0)])[-3:] == [148.5, 149.0, 149.5]
    assert shown(events=[(200.0, 201.0)])[-1] == 149.5
    assert {1.5, 149.5} <= set(shown(events=[(2.0, 3.0), (148.0, 149.5)]))  # around all of them


spans = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), max_size=3)


@given(st.lists(st.floats(0, 100), max_size=40, unique=True), st.integers(1, 9), spans, spans)
def test_as_many_frames_as_there_is_room_for_each_once(times, count, events, claims):
    times = sorted(times)
    places = choose(times, count, events, claims)
    assert places == sorted(set(places))
    assert len(places) == min(count, len(times)) and all(0 <= place < len(times) for place in places)
    assert (
        not events
        or len(times) <= count
        or not any(a <= t < b for t in times for a, b in events)
        or any(a <= times[k] < b for k in places for a, b in events)
    )


def test_pictures_of_rows_show_the_event(data):
    video = data / "videos/val_00000.mp4"
    times = [one.time for one in thumbnails(video, 4, 100, 10_000, events=[(5.01, 5.02)])[0]]
    assert 5.015 in [round(time, 3) for time in times] and len(times) == 4
    assert [one.time for one in thumbnails(video, 4, 100, 10_000)[0]] == [1.0, 3.0, 5.0, 7.0]


# --- outlines and numbers ---------------------------------------------------------------------------------------------


def placed(size, boxes, said, index=0):
    """Outlines and numbers of a frame in which everybody names objects of these boxes."""
    replies = {kind: Reply(((0.0, 1.0),), ids) for kind, ids in said.items()}
    clip = clips.Clip("u", "q", 1.0, replies.pop("truth"), {}, [], 0.0, None)
    clip = clips.replace(clip, said={kind: clips.Said(reply, "", ()) for kind, reply in replies.items()})
    frame = {"time": 0.5, "index": index}
    objects = boxes_drawn.Objects(frozenset(boxes), lambda _: boxes)
    clips._mark([frame], size, clip, objects, (1.0, 1.0))
    return frame["boxes"], frame["tags"]


def inside(one, other):
    return one[0] > other[0] and one[1] > other[1] and one[2] < other[2] and one[3] < other[3]


def test_outlines_leave_the_object_and_its_number_free():
    boxes = {3: (100.0, 90.0, 160.0, 150.0), 5: (200.0, 60.0, 240.0, 120.0)}
    outlines, tags = placed((336, 224), boxes, {"truth": (3,), "m1": (3,), "m2": (3,)})
    assert [one["kind"] for one in outlines] == ["truth", "m2", "m1"]
    truth, second, first = map(sides, outlines)
    assert inside(boxes[3], first) and inside(first, second) and inside(second, truth)
    pixel = 336 / SHOWN[0]
    assert boxes[3][0] - first[0] > 2 * pixel and boxes[3][1] - first[1] > 2 * pixel  # half of a stroke with its halo
    (tag,) = tags
    assert tag["text"] == "3" and 3.36 * tag["left"] == pytest.approx(truth[0], abs=0.1)
    assert 2.24 * tag["top"] + 12 * pixel < truth[1]


def test_numbers_name_every_object_that_is_outlined():
    boxes = {3: (10.0, 60.0, 60.0, 120.0), 5: (200.0, 0.0, 240.0, 40.0)}
    _, tags = placed((336, 224), boxes, {"truth": (3,), "m1": (5,)})
    places = {tag["text"]: 2.24 * tag["top"] for tag in tags}
    assert 0 <= places["3"] < 60 - 36 and places["5"] > 40  # above the object, and below the one at the top


@given(
    st.tuples(st.integers(60, 2000), st.integers(60, 2000)),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.integers(0, 6),
)
def test_no_outline_hides_another_and_no_number_an_object(size, shares, models):
    xs, ys = (sorted((shares[k] * size[k % 2], shares[k + 2] * size[k % 2])) for k in (0, 1))
    boxes = {1: (xs[0], ys[0], xs[1], ys[1]), 2: (0.0, 0.0, size[0] / 5, size[1] / 5)}
    said = {"truth": (1,)} | {f"m{k}": (1,) for k in range(1, models + 1)}
    outlines, tags = placed(size, boxes, said)
    assert len({sides(one) for one in outlines}) == len(outlines) == models + 1
    for one in outlines:
        left, top, right, bottom = sides(one)
        assert -0.1 <= left <= right <= size[0] + 0.1 and -0.1 <= top <= bottom <= size[1] + 0.1
    unit = max(side / most for side, most in zip(size, SHOWN, strict=True))
    for tag in tags:
        x, y = (tag[name] / 100 * side for name, side in zip(("left", "top"), size, strict=True))
        place = (x + 0.2, y + 0.2, x + 11 * unit, y + 11.8 * unit)
        assert not boxes_drawn._meets(place, [*boxes.values(), *map(sides, outlines)])


def test_rows_show_the_box_around_the_object(tmp_path):
    data = synthetic.build(tmp_path / "data", 1, 2, seed=4, progress=False)
    file = add_tracks(data)
    assert show.write([file], tmp_path / "page.html") == 2
    page = (tmp_path / "page.html").read_text()
    truths = [row["ground_truth"] for row in pq.read_table(file).column("reward_model").to_pylist()]
    for truth in truths:  # half of the pictures lie inside the event
        assert len(re.findall(rf"<i[^>]*><b>{truth['object_id']}</b></i>", page)) >= 3
    assert "outline-offset: 1px" in page and page.count("--w:200;--h:133") == 2 * show.PICTURES


# --- order, groups, curves --------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_clips_that_changed_come_first(values):
    first, last = ({str(k): pair[side] / 4 for k, pair in enumerate(values)} for side in (0, 1))
    changes = [abs(last[uid] - first[uid]) for uid in clips.pick(first, last)]
    assert changes == sorted(changes, reverse=True)
    alone = clips.pick(first, {})
    assert next(iter(alone.values()))[0] == "random"


def test_the_page_begins_with_all_clips_where_there_are_two_voices(data, tmp_path):
    run_dir = make_run(tmp_path / "run", data)
    for names, last in ((["all", "improved", "worsened"], STEPS), (["random", "worst", "all"], 0)):
        if not last:
            for step in range(1, STEPS + 1):
                (run_dir / f"validation/{step}.jsonl").unlink(missing_ok=True)
        section = of_run.section(run_dir, clips.PICK)
        report._draw(section, 10_000)
        assert [group["name"] for group in section["groups"]][:3] == names
        changes = [abs(clip["gain"] or 0.0) for clip in section["clips"]]
        assert changes == sorted(changes, reverse=True)


def words_of(data):
    infos = pq.read_table(data / "val.parquet").column("extra_info").to_pylist()
    return {info["uid"]: json.loads(info["annotated"])["words"] for info in infos}


def test_common_and_rare_words_stand_apart_in_a_run(data, tmp_path):
    words = words_of(data)
    colours = {uid: query.split()[1] for uid, query in queries_of(data).items()}
    assert {words[uid] for uid in words} == {"common", "rare"}
    assert all((words[uid] == "common") == (colours[uid] in ("white", "yellow", "green")) for uid in words)
    run_dir = make_run(tmp_path / "run", data)
    run = runs.read_run(run_dir)
    (family,) = of_run.section(run_dir, 2)["families"]
    assert family["name"] == "words of the query"
    for row in family["rows"]:
        uids = [uid for uid in words if words[uid] == row["label"]]
        assert row["count"] == len(uids)
        for part, cell in zip(run.parts, row["cells"], strict=True):
            means = [np.mean([run.validations[step][uid].values[part] for uid in uids]) for step in (0, STEPS)]
            assert cell == pytest.approx(means)
    page = report.write(run_dir, tmp_path / "page.html").read_text()
    assert "By words of the query" in page and re.search(r"<th scope=\"row\">rare</th>", page)


def queries_of(data):
    infos = pq.read_table(data / "val.parquet").column("extra_info").to_pylist()
    return {info["uid"]: info["query"] for info in infos}


def test_common_and_rare_words_stand_apart_in_an_evaluation(data, tmp_path):
    folder = evaluate(tmp_path / "evaluation", data / "val.parquet", 0.8)
    groups = json.loads((folder / "scores.json").read_text())["groups"]["words of the query"]
    words = words_of(data)
    assert {name: row["count"] for name, row in groups.items()} == {
        name: list(words.values()).count(name) for name in ("common", "rare")
    }
    assert "By words of the query" in report.write(folder, tmp_path / "page.html").read_text()


def test_rows_without_such_words_have_no_such_groups(data, tmp_path):
    rows = pq.read_table(data / "val.parquet").to_pylist()
    for row in rows:
        row["extra_info"]["annotated"] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=synthetic.ROW_SCHEMA), tmp_path / "rows.parquet")
    assert clips.Rows([tmp_path / "rows.parquet"]).sorts() == {}
    folder = evaluate(tmp_path / "evaluation", tmp_path / "rows.parquet", 0.8)
    assert "words of the query" not in json.loads((folder / "scores.json").read_text())["groups"]


STVG = ["--config-path", "pkg://verl_stvg.recipes.stvg_r1", "--config-name", "stvg_r1"]


@pytest.mark.parametrize(
    ("arguments", "updates"),
    [
        (STVG, 1),
        ([*STVG, "+variant=tiny", "data.train_batch_size=4"], 1),
        ([*STVG, "+variant=[tiny,gspo]"], 4),
        ([*STVG, "actor_rollout_ref.actor.ppo_epochs=2"], 2),
        ([*STVG, "actor_rollout_ref.actor.ppo_mini_batch_size=2"], 4),
        (["--config-path", "pkg://recipes.stvg_r1", "--config-name", "stvg_r1", "+variant=gspo"], 4),  # before the move
        (["--config-path", "pkg://mine.recipes", "--config-name", "stvg_r1"], None),
        (["--config-path", "pkg://mine.recipes.stvg_r1", "--config-name", "stvg_r1"], None),
        ([], None),
    ],
)
def test_updates_with_one_batch_are_known_from_the_recipe_and_the_arguments(data, tmp_path, arguments, updates):
    run_dir = make_run(tmp_path / "run", data)

    def change(step, metrics):
        if step:
            metrics |= {"actor/pg_clipfrac": 0.01, "actor/ppo_kl": 1e-9}

    rewrite(run_dir, change)
    record = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps(record | {"arguments": arguments}))
    run = runs.read_run(run_dir)
    assert training.updates_per_batch(run) == updates
    titles = [title for _, title, _, _ in of_run._drawn(run)]
    assert ("Clipped tokens" in titles) == ("Change within a batch" in titles) == (updates != 1)
    assert len(lines_of(run_dir / "metrics.jsonl")) == STEPS + 1


def test_a_run_says_how_much_of_it_was_computed(data, tmp_path):
    run_dir = make_run(tmp_path / "run", data)
    assert not any(fact["name"] == "Computed" for fact in of_run.curves_section(run_dir)["facts"])

    def change(step, metrics):
        if step:
            metrics["actor/shared_prompt/computed_share"] = 0.2

    rewrite(run_dir, change)
    (fact,) = (fact for fact in of_run.curves_section(run_dir)["facts"] if fact["name"] == "Computed")
    assert fact["value"] == "20%" and "of the update's tokens" in fact["note"]


def test_text_of_axes_is_not_drawn_with_the_plot(data, tmp_path):
    """So that it has one size in all plots, however wide they are."""
    page = report.write(make_run(tmp_path / "run", data), tmp_path / "page.html").read_text()
    assert "<text" not in page and page.count('class="tick x"') > 20 and page.count('class="tick y"') > 20


# --- track files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [tracked.HELD_MASKS, 100])
def test_a_track_file_is_loaded_once_for_all_passes_where_there_is_room(tmp_path, monkeypatch, held):
    """Metrics, scripts of papers and baselines each go over all rows, which need not lie together by video."""
    data = synthetic.build(tmp_path / "data", 1, 3, seed=4, progress=False)
    file = add_tracks(data)
    loaded, stock = [], tracked.load
    monkeypatch.setattr(tracked, "load", lambda path: loaded.append(path) or stock(path))
    monkeypatch.setattr(tracked, "HELD_MASKS", held)
    folder = evaluate(tmp_path / "evaluation", file, 1.0)
    first = (folder / "scores.json").read_text()
    assert len(set(loaded)) == 3 and (len(loaded) == 3) == (held > 100)
    monkeypatch.undo()
    assert (evaluate(tmp_path / "again", file, 1.0) / "scores.json").read_text() == first
