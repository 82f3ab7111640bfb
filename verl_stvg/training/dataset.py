"""Rows to messages and frames: the dataset class verl loads (``data.custom_cls``).

Differs from verl's own in four ways: video paths are relative to the parquet file, every row is checked when the
dataset is built, prompt lengths are computed from the sampling plan instead of decoding every video, and one video is
decoded once, into the frame cache, not once per rollout.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from omegaconf import DictConfig, open_dict
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_stvg.rows.chat_template import OPENED, opened, render
from verl_stvg.rows.files import RowFileError, root_of, table_in
from verl_stvg.rows.masks import RowFacts, crop_truth
from verl_stvg.rows.prompts import check_places, check_size, read_video
from verl_stvg.rows.row import FACTS, ROOT_KEY, VIDEO_COLUMN, Row, RowError, plan_of
from verl_stvg.rows.settings import fit_of, frame_source, template_options
from verl_stvg.rows.shape import row_shape_problems
from verl_stvg.training.curriculum import Curriculum
from verl_stvg.video.child import Decoder
from verl_stvg.video.film import TimelessVideo, VideoError
from verl_stvg.video.plan import SamplingPlan
from verl_stvg.video.positions import added_tokens, fit, patch_of
from verl_stvg.video.store import FrameStore

logger = logging.getLogger(__name__)

CHECKS = ("exist", "probe", "decode")
_SHOWN = 5
_READ = (*FACTS, "constant_rate", "frame_times", "file_end")  # of a row's `extra_info`


class VideoGroundingDataset(RLHFDataset):
    """Rows whose ``videos`` entries are ``{"video": path, "fps": ..., "max_pixels": ...}``.

    Beside verl's ``data`` keys it reads:
        check_videos: ``exist`` (size, rate and times are taken from the rows where they have them, see
            `verl_stvg.rows.row.Row.info`), ``probe`` (looks into every file; the default) or ``decode`` (every planned
            frame, into the cache).
        video_cache: ``folder`` (default: ``verl_stvg/frames`` in the user's cache folder), ``max_gb`` (default: no
            bound), ``decoder`` (``pyav``, the default, ``decord``, ``torchcodec`` or ``package.module:function``),
            ``timeout`` (seconds for a video, beside those for its length; default 60), ``enabled`` (false: videos are
            decoded again and again, and travel as pixels).
        fit: keys that stand in place of those of the rows, for a model for which these were not planned, see
            `verl_stvg.rows.fit`. ``max_prompt_length`` is then raised to the longest prompt, unless these are left out.
        video_root: folder that relative paths start from; default: what `manifest.json` beside the parquet file says,
            else the folder of the file.
        curriculum: see `verl_stvg.training.curriculum.Curriculum`; rows of ``train_files`` then need what a mask
        depends on. filter_unusable_videos: drop rows whose video is missing or damaged, and say which; otherwise they
        are an error.
            Rows whose video has no times (one picture, no index) are dropped, and named, in any case.
        filter_overlong_prompts: drop rows over ``max_prompt_length`` and say how many; otherwise they are an error.

    Raises:
        RowError: missing or damaged videos, prompts over the budget.
    """

    def _read_files_and_tokenize(self):
        self.apply_chat_template_kwargs = template_options(self.config)
        self.fit = fit_of(self.config)
        parts = []
        for original, local in zip(self.original_data_files, self.data_files, strict=True):
            if not Path(local).is_file():
                raise RowError(
                    f"{original}: no such file; build the rows first, or correct data.train_files / val_files"
                )
            part = undecoded(datasets.Dataset(table_of(local, original)), self.video_key)
            root = root_of(original, self.config.get(ROOT_KEY))
            parts.append(part.add_column(ROOT_KEY, [str(root)] * len(part)))
        self.dataframe = joined(parts, self.original_data_files)
        if not len(self.dataframe):
            raise RowError(f"{', '.join(map(str, self.original_data_files))}: no rows; build them again")
        if 0 < self.max_samples < len(self.dataframe):
            order = np.arange(len(self.dataframe))
            if self.shuffle:
                order = np.random.default_rng(self.seed).permutation(order)
            self.dataframe = self.dataframe.select(order[: self.max_samples].tolist())
        self.dataframe = self._check_rows(self.dataframe)

    def _check_rows(self, rows: datasets.Dataset) -> datasets.Dataset:
        check = self.config.get("check_videos") or "probe"
        if check not in CHECKS:
            raise RowError(f"data.check_videos={check} is unknown; choose one of {', '.join(CHECKS)}")
        source = frame_source(self.config)
        curriculum = Curriculum.of(self.config) if self._is_trained_on() else None
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(partial(self._check_row, check=check, source=source, curriculum=curriculum), rows))
        unusable = VideoError if self.config.get("filter_unusable_videos") else TimelessVideo
        dropped = {i: str(problem) for i, (problem, _) in enumerate(results) if isinstance(problem, unusable)}
        wrong = [(i, str(problem)) for i, (problem, _) in enumerate(results) if problem and i not in dropped]
        if wrong:
            remedy = "mend or drop these rows"
            if any(isinstance(results[i][0], VideoError) for i, _ in wrong):
                remedy += ", or leave those out whose video is at fault with +data.filter_unusable_videos=True"
            self._refuse(rows, wrong, f"cannot be used; {remedy}")
        if dropped:
            logger.warning("%s", self._listed(rows, list(dropped.items()), "are left out, their videos cannot be used"))
            results = [found for i, found in enumerate(results) if i not in dropped]
            rows = rows.select([i for i in range(len(rows)) if i not in dropped])
            if not len(rows):
                raise RowError(f"{self._files()}: no video can be used; see the reasons above")
        longest = max(length for _, length in results)
        if self.fit and not self.filter_overlong_prompts and longest > self.max_prompt_length:
            logger.info("data.max_prompt_length is raised to %d, the longest prompt of %s", longest, self._files())
            self.max_prompt_length = longest
            with open_dict(self.config):
                self.config.max_prompt_length = longest
        over = [i for i, (_, length) in enumerate(results) if length > self.max_prompt_length]
        if over and not self.filter_overlong_prompts:
            problems = [(i, f"prompt of {results[i][1]} tokens") for i in over]
            self._refuse(
                rows,
                problems,
                f"are over data.max_prompt_length={self.max_prompt_length}; raise it to {longest}, lower max_pixels or "
                "fps of the rows (+data.fit.max_pixels=..., without building them again), or set "
                "data.filter_overlong_prompts=True to drop them",
            )
        if over:
            logger.warning(
                "dropped %d of %d rows whose prompt is over %d tokens", len(over), len(rows), self.max_prompt_length
            )
            dropped = set(over)
            rows = rows.select([i for i in range(len(rows)) if i not in dropped])
            if not len(rows):
                raise RowError(f"every prompt is over data.max_prompt_length={self.max_prompt_length}; raise it")
        return rows

    def _is_trained_on(self) -> bool:
        """Whether these are the training rows; verl builds both datasets from one configuration."""
        files = self.config.get("train_files")
        return files is None or list(self.original_data_files) == ([files] if isinstance(files, str) else list(files))

    def _refuse(self, rows, problems: list[tuple[int, str]], verdict: str):
        raise RowError(self._listed(rows, problems, verdict))

    def _files(self) -> str:
        return ", ".join(map(str, self.original_data_files))

    def _listed(self, rows, problems: list[tuple[int, str]], verdict: str) -> str:
        lines = [f"  row {i} (uid {self.row(rows[i]).name}): {problem}" for i, problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"  and {len(problems) - _SHOWN} more")
        return f"{self._files()}: {len(problems)} of {len(rows)} rows {verdict}\n" + "\n".join(lines)

    def _check_row(
        self, row: dict, check: str, source: FrameStore | Decoder | None = None, curriculum: Curriculum | None = None
    ) -> tuple[str | VideoError | None, int]:
        """What is wrong with a row (None if nothing), and the tokens of its prompt."""
        source, opened_row = source or frame_source(self.config), self.row(row)
        if wrong := self._shape_problems(opened_row, curriculum is not None):
            return wrong[0], 0
        try:
            plans = [self._plan(opened_row, video, check, source) for video in opened_row.videos]
            if curriculum:
                check_maskable(curriculum, opened_row, plans)
            text = self._rendered(self._messages(row))
        except VideoError as error:
            return error, 0
        except ValueError as error:
            return str(error), 0
        tokens = sum(added_tokens(plan, self.processor) for plan in plans)
        return None, tokens + len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _shape_problems(self, row: Row, masked: bool) -> list[str]:
        """`row_shape_problems` of what is read here: the ground truth is the reward's, and of masks."""
        reward, prompt = row.get("reward_model") if masked else None, row.get(self.prompt_key)
        if not any(row.get(key) for key in (VIDEO_COLUMN, self.image_key, self.audio_key)) and isinstance(prompt, list):
            prompt = [  # without places for videos, the template alone reads what a turn holds
                {**turn, "content": ""} if isinstance(turn, dict) and isinstance(turn.get("content"), list) else turn
                for turn in prompt
            ]
        extra = row.get("extra_info") or {}
        if isinstance(extra, dict):
            extra = {key: extra[key] for key in ((*_READ, "duration") if masked else _READ) if key in extra}
        known = {"data_source": row.data_source, "prompt": prompt, "reward_model": reward}
        return row_shape_problems({**known, "extra_info": extra})

    def _plan(self, row: Row, video: dict, check: str, source: FrameStore | Decoder) -> SamplingPlan:
        """Sampling plan of one of a row's videos, which is looked into as ``check`` says."""
        path = video["video"]
        if check == "exist" and not Path(path).is_file():
            raise VideoError(f"{path}: no such video")
        info = (row.info if check == "exist" else None) or source.probe(path)
        plan = plan_of({**video, "patch": patch_of(self.processor)}, info)
        plan = plan.masked(video.get("hidden"), video.get("shown"))
        check_size(plan, self.processor)
        if check == "decode":
            (source.frames if isinstance(source, FrameStore) else source.try_out)(path, plan.whole)
        return plan

    def row(self, row: dict) -> Row:
        """A row of the dataframe, opened: its videos are those of ``data.video_key``, shown as ``data.fit`` says."""
        return Row({**row, VIDEO_COLUMN: row.get(self.video_key)}, row.get(ROOT_KEY), fit=self.fit)

    def _build_messages(self, example: dict, key: str):
        media = {"image": example.get(self.image_key), "video": self.row(example).videos}
        media |= {"audio": example.get(self.audio_key)}
        for kind, held in media.items() if any(media.values()) else ():
            check_places(example[key], kind, len(held or ()))
        return fit(super()._build_messages({**example, self.video_key: media["video"]}, key), self.processor)

    def __getitem__(self, item):
        row = super().__getitem__(item)
        row.pop(ROOT_KEY, None)
        if tag := opened(self._rendered(row["raw_prompt"])):
            row["extra_info"] = {**row["extra_info"], OPENED: tag}  # the reward reads the answer from there on
        return row

    def opened(self, row: dict) -> str:
        """What the chat template has written of the answer to a row, see `verl_stvg.rows.chat_template.opened`."""
        return opened(self._rendered(self._messages(row)))

    def _messages(self, row: dict) -> list[dict]:
        return self._build_messages({**row, self.prompt_key: [dict(m) for m in row[self.prompt_key]]}, self.prompt_key)

    def _rendered(self, messages: list[dict]) -> str:
        template = self.processor if self.processor is not None else self.tokenizer
        return render(template, messages, self.apply_chat_template_kwargs)

    @classmethod
    def _process_multi_modal_info(cls, messages: list[dict], image_patch_size, config: DictConfig):
        """Images and audio as verl reads them; videos as ``(frames, metadata)`` of their plan, see `read_video`."""
        videos, rest = [], []
        for message in messages:
            content = message.get("content")
            if isinstance(content, list):
                videos += [item for item in content if item.get("type") == "video"]
                content = [item for item in content if item.get("type") != "video"]
            rest.append({**message, "content": content})
        images, _, audios = super()._process_multi_modal_info(rest, image_patch_size, config)
        source = frame_source(config)
        return images, [read_video(video, source) for video in videos] or None, audios


def table_of(local: str, original: object) -> pa.Table:
    """The rows of a parquet file, in memory.

    Args:
        local: where the file is.
        original: what the run calls it, for the message.

    Raises:
        RowError: it is no parquet file, or a damaged one.
    """
    try:
        return table_in(local, original)
    except RowFileError as error:
        raise RowError(str(error)) from error


def undecoded(part: datasets.Dataset, column: str) -> datasets.Dataset:
    """Rows whose videos are read as they are written, also where ``datasets`` wrote them and would decode them."""
    kind, plain = part.features.get(column), datasets.Video(decode=False)
    if isinstance(kind, datasets.Video):
        return part.cast_column(column, plain)
    if isinstance(kind, datasets.List | datasets.LargeList) and isinstance(kind.feature, datasets.Video):
        return part.cast_column(column, type(kind)(plain))
    return part


def joined(parts: list[datasets.Dataset], files: Sequence[object]) -> datasets.Dataset:
    """Rows of several files as one table; a column or field that one of them lacks is null in its rows.

    Args:
        parts: the rows of each file.
        files: their names, for the message.

    Raises:
        RowError: a column or field is of one type in one file and of another in the next.
    """
    schemas = [part.features.arrow_schema.remove_metadata() for part in parts]
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise RowError(
            f"{', '.join(map(str, files))}: the columns of these files do not fit together ({error}); build all of "
            "them again with one version"
        ) from error
    if any(not found.equals(schema) for found in schemas):
        features = datasets.Features.from_arrow_schema(schema)
        parts = [_with_all(part, features) for part in parts]
    return datasets.concatenate_datasets(parts)


def _with_all(part: datasets.Dataset, features: datasets.Features) -> datasets.Dataset:
    for name in features.keys() - part.features.keys():
        part = part.add_column(name, [None] * len(part))
    return part.cast(features)


def check_maskable(curriculum: Curriculum, row: Row, plans: list[SamplingPlan]) -> None:
    """See that a row has what the curriculum's masks depend on.

    Args:
        curriculum: of the run.
        row: of the training rows.
        plans: of its videos, in order.

    Raises:
        ValueError: it has not.
    """
    facts = RowFacts.of(row)
    if facts.bin not in curriculum.bins:
        return
    if len(plans) != 1 or plans[0] != plans[0].whole:
        raise ValueError("the curriculum masks rows with one video, of which nothing is hidden yet; drop the row")
    crop_truth(row.truth, curriculum.mask(plans[0], facts, step=0, total=1), plans[0])
