"""The command `verl-stvg eval`: a model's answers to the rows of a benchmark, and their scores."""

import logging
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from verl_stvg.cli.score import judge

logger = logging.getLogger(__name__)

TemplateOptions = Annotated[
    list[str] | None,
    typer.Option(
        help="KEY=VALUE for the chat template, as data.apply_chat_template_kwargs.KEY in training; may be given "
        "several times. Default: those of the training that made the checkpoint."
    ),
]
"""Of every command that asks a model."""
FitOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--fit",
        metavar="KEY=VALUE",
        help="Show videos by this key in place of the rows' own, as data.fit.KEY in training: fps, max_pixels, "
        "total_pixels and others; model=FOLDER takes a model's limits. Default: those of the training that made the "
        "checkpoint.",
    ),
]
"""Of every command that shows videos to a model."""


class EngineName(str, Enum):
    """Programs that answer."""

    vllm = "vllm"
    transformers = "transformers"


def eval_(
    rows: Annotated[list[Path], typer.Option(help="Rows of `verl-stvg build`; may be given several times.")],
    model: Annotated[
        str, typer.Option(help="Folder or hub name of a model, or a checkpoint of verl (global_step_N), merged once.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of answers and scores; a stopped run goes on in it.")],
    benchmark: Annotated[str | None, typer.Option(help="What to score; default: what the rows are.")] = None,
    engine: Annotated[EngineName, typer.Option(help="What answers.")] = EngineName.vllm,
    samples: Annotated[int, typer.Option(help="Answers per row; the first one is scored.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Share of the probability that is sampled from.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Most likely tokens that are sampled from; -1 for all.")] = -1,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 1024,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    template_option: TemplateOptions = None,
    fit: FitOptions = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Tokens of prompt and answer together; default: the model's.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    tensor_parallel: Annotated[int, typer.Option(help="GPUs per vLLM engine.")] = 1,
    gpu_memory_utilization: Annotated[float, typer.Option(help="Share of a GPU's memory that vLLM takes.")] = 0.9,
    batch: Annotated[
        int | None, typer.Option(help="Prompts that the engine has at a time; default: 256 of vllm, 8 of transformers.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of decoded frames, as in training; default: in the user's cache folder.")
    ] = None,
    decoder: Annotated[str, typer.Option(help="pyav, decord, torchcodec or module:function, as in training.")] = "pyav",
    video_root: Annotated[
        Path | None, typer.Option(help="Folder that paths in the rows start from; default: each parquet file's.")
    ] = None,
    fold_size: Annotated[int | None, typer.Option(help="Rows of a fold; default: all.")] = None,
    fold_index: Annotated[int, typer.Option(help="Which fold, from 0.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Only the first rows, for a try.")] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Work on the running Ray cluster, one engine per GPU; without one, here.")
    ] = False,
    engines: Annotated[int | None, typer.Option(help="With --ray: how many engines.")] = None,
) -> None:
    """Answer rows with a model, greedily by default, with prompts, frames and clock of training, and score the answers.
    May be stopped at any moment and called again. Exit status 1 if a row could not be answered.
    """
    from verl_stvg.eval.run import run
    from verl_stvg.inference.settings import Settings
    from verl_stvg.rows.chat_template import options_for
    from verl_stvg.rows.fit import fit_for
    from verl_stvg.video.store import FrameStore, default_folder

    settings = Settings(
        model=model,
        engine=engine.value,
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_tokens,
        seed=seed,
        template=options_for(model, template_option or ()),
        fit=fit_for(model, fit),
        max_model_len=max_model_len,
        dtype=dtype,
        tensor_parallel=tensor_parallel,
        gpu_memory_utilization=gpu_memory_utilization,
        batch=batch,
        store=FrameStore(str(cache.expanduser().absolute()) if cache else default_folder(), decoder=decoder),
        video_root=video_root,
        fold_size=fold_size,
        fold_index=fold_index,
        limit=limit,
        ray=ray,
        engines=engines,
    )
    counts = run(rows, out, settings, benchmark)["counts"]
    logger.info("answers, scores and items: %s", out)
    judge(counts)
