"""How a model is asked: the options of every command that asks one, and the settings that are made of them."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from verl_stvg.cli.options import Decoder, Fit

if TYPE_CHECKING:
    from verl_stvg.inference.settings import Settings

REQUIRED = inspect.Parameter.empty
_MODEL = (
    "Folder or hub name of a model, or a checkpoint of verl (global_step_N), merged once. Without one, `select` judges "
    "the answers that are there."
)
_TEMPLATE = (
    "KEY=VALUE for the chat template, as data.apply_chat_template_kwargs.KEY in training; may be given several times. "
    "Default: those of the training that made the checkpoint."
)
_BATCH = "Prompts that the engine has at a time; default: 256 of vllm, 8 of transformers."
_CACHE = "Folder of decoded frames, as in training; default: in the user's cache folder."
_TYPE = "Type of the weights; auto: the engine's."
_RAY = "Work on the running Ray cluster, one engine per GPU; without one, here."
OPTIONS: dict[str, tuple[Any, Any, Any]] = {
    "model": (str | None, None, typer.Option(help=_MODEL)),
    "engine": (Literal["vllm", "transformers"], "vllm", typer.Option(help="Program that runs the model.")),
    "samples": (int, 1, typer.Option(min=1, help="Answers per row; where answers are scored, the first one is.")),
    "temperature": (float, 0.0, typer.Option(min=0, help="0 is greedy.")),
    "top_p": (float, 1.0, typer.Option(help="Share of the probability that is sampled from.")),
    "top_k": (int, -1, typer.Option(help="Most likely tokens that are sampled from; -1 for all.")),
    "max_tokens": (int, 1024, typer.Option(min=1, help="Longest answer.")),
    "seed": (int, 0, typer.Option(help="Of the samples.")),
    "template_option": (list[str] | None, None, typer.Option(help=_TEMPLATE)),
    "fit": (list[str] | None, None, get_args(Fit)[1]),
    "max_model_len": (int | None, None, typer.Option(help="Tokens of prompt and answer; default: the model's limit.")),
    "dtype": (Literal["auto", "bfloat16", "float16", "float32"], "auto", typer.Option(help=_TYPE)),
    "tensor_parallel": (int, 1, typer.Option(min=1, help="GPUs per vLLM engine.")),
    "gpu_memory_utilization": (float, 0.9, typer.Option(help="Share of a GPU's memory that vLLM takes.")),
    "batch": (int | None, None, typer.Option(min=1, help=_BATCH)),
    "cache": (Path | None, None, typer.Option(help=_CACHE)),
    "decoder": (str, "pyav", get_args(Decoder)[1]),
    "fold_size": (int | None, None, typer.Option(help="Rows of a fold; default: all.")),
    "fold_index": (int, 0, typer.Option(help="Number of the fold, from 0.")),
    "ray": (bool, False, typer.Option("--ray", help=_RAY)),
    "engines": (int | None, None, typer.Option(min=1, help="With --ray: how many engines.")),
}
"""Name, type, default and help of each; `Settings` says more."""


def settings_of(
    model: str | None = None,
    template_option: list[str] | None = None,
    fit: list[str] | None = None,
    cache: Path | None = None,
    decoder: str = "pyav",
    **given: Any,
) -> "Settings | None":
    """How rows are answered.

    Args:
        model: None where rows are not answered.
        template_option: of the chat template, over those of the model's training.
        fit: keys over those of the model's training.
        cache: folder of frames.
        decoder: of videos.
        given: the other fields of `Settings`.
    """
    if model is None:
        return None
    from verl_stvg.inference.settings import Settings
    from verl_stvg.rows.chat_template import options_for
    from verl_stvg.rows.fit import fit_for
    from verl_stvg.video.store import FrameStore, default_folder

    return Settings(
        model=model,
        template=options_for(model, template_option or ()),
        fit=fit_for(model, fit),
        store=FrameStore(str(cache.expanduser().absolute()) if cache else default_folder(), decoder=decoder),
        **given,
    )


def asking(**defaults: Any) -> Callable[[Callable], Callable]:
    """Give a command all `OPTIONS`, some with other defaults, as one argument: ``settings``."""
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
        for name, (kind, usual, option) in OPTIONS.items()
        for default in [defaults.get(name, usual)]
    ]

    def decorate(command: Callable) -> Callable:
        own = [one for name, one in inspect.signature(command).parameters.items() if name != "settings"]

        @functools.wraps(command)
        def wrapped(**given: Any) -> None:
            mine = {one.name: given.pop(one.name) for one in own if one.name in given}
            command(**mine, settings=settings_of(**given))

        both = [*(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own), *options]
        vars(wrapped)["__signature__"] = inspect.Signature(both)
        wrapped.__annotations__ = {one.name: one.annotation for one in both}
        return wrapped

    return decorate
