"""The model's chat template: its options, the text that it makes of messages, and what it writes of the answer itself.

Training, its checks, evaluation and data selection render prompts here, so that all of them ask the same. The options
are those of ``data.apply_chat_template_kwargs`` in training and of ``--template-option`` elsewhere.

The template of a thinking model may end the prompt with ``<think>``. The model then continues that thought and never
writes the tag, so what is scored is the opened text followed by what the model wrote (`opened`).
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_stvg.base import nesting

logger = logging.getLogger(__name__)

OPENED = "opened"
"""Key of a row's ``extra_info``, and of ``run.json``, that holds what the template has written of the answer."""
FIXED = ("add_generation_prompt", "continue_final_message", "conversation", "return_dict", "return_tensors", "tokenize")
"""Arguments of ``apply_chat_template`` that are no options: every prompt is a text that asks for an answer."""
_OPENED = re.compile(r"<think>[^<]*\Z")
_PROBE = ({"role": "user", "content": [{"type": "text", "text": "Why?"}]},)
_TRAINING_KEY, _CUSTOM_KEY = "data.apply_chat_template_kwargs", "actor_rollout_ref.model.custom_chat_template"
_LEVELS = 5


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a chat template as a plain dictionary.

    Raises:
        ValueError: an option that is fixed here (`FIXED`).
    """
    if fixed := sorted(options.keys() & set(FIXED)):
        raise ValueError(f"the chat template's options hold {', '.join(fixed)}, which cannot be chosen; leave it out")
    return dict(options)


def parse(given: Iterable[str]) -> dict[str, Any]:
    """Options of a command line, each ``KEY=VALUE``.

    A value that is JSON is read as JSON, also ``True``, ``False`` and ``Null`` in any case; any other is a text.

    Raises:
        ValueError: an option without ``=``, given twice, or fixed.
    """
    found = pairs("--template-option", given, "enable_thinking=false")
    return checked({name: _value(value) for name, value in found.items()})


def pairs(option: str, given: Iterable[str], example: str) -> dict[str, str]:
    """Names and values of an option that is given several times, each ``KEY=VALUE``.

    Args:
        option: as the user writes it, for messages.
        given: what stands behind it.
        example: of one that is right.

    Raises:
        ValueError: one without ``=`` or a name, or a name that is given twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"{option} {text} is not of the form KEY=VALUE, such as {example}")
        if name in found:
            raise ValueError(f"{option} {name} is given twice; leave one of them out")
        found[name] = value
    return found


def _value(text: str) -> Any:
    try:
        return nesting.loads(text.lower() if text.lower() in ("true", "false", "null") else text)
    except ValueError:
        return text


def options_for(model: str, given: Iterable[str] = ()) -> dict[str, Any]:
    """Options for a model: those of the training that made it (`of_training`), and over them those that are given.

    Args:
        model: as a user names it, see `verl_stvg.inference.checkpoint.resolve`.
        given: of the command line, see `parse`.

    Raises:
        ValueError: see `parse`.
    """
    return {**of_training(model), **parse(given)}


def of_training(model: str) -> dict[str, Any]:
    """Options on the command line of the run of ``verl-stvg train`` that wrote a checkpoint; empty if there is no such.

    The run's ``run.json`` is looked for above the checkpoint, where the launcher puts it. What a recipe's yaml says is
    not known there.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    path, record = training_record(model)
    if record is None:
        return {}
    named = [text for text in record["arguments"] if text.lstrip("+~").startswith((_TRAINING_KEY, _CUSTOM_KEY))]
    said = OmegaConf.create()
    for override in OverridesParser.create().parse_overrides(named):
        if not override.is_delete():
            OmegaConf.update(said, override.key_or_group, override.value(), force_add=True)
    given = OmegaConf.to_container(OmegaConf.select(said, _TRAINING_KEY) or OmegaConf.create())
    options = {str(name): value for name, value in given.items()} if isinstance(given, dict) else {}
    if custom := OmegaConf.select(said, _CUSTOM_KEY):
        options.setdefault("chat_template", custom)
    if options:
        logger.info("options of the chat template, from the training in %s: %s", path, json.dumps(options))
    return checked(options)


def training_record(model: str) -> tuple[Path | None, dict[str, Any] | None]:
    """``run.json`` of the run of ``verl-stvg train`` that wrote a checkpoint, and what it says; None twice without one.

    It is looked for above the checkpoint, where the launcher puts it.
    """
    folder = Path(model).expanduser().resolve()
    for parent in (folder, *folder.parents)[:_LEVELS] if folder.is_dir() else ():
        path = parent / "run.json"
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if isinstance(record, dict) and record.get("arguments") is not None:
            return path, record
    return None, None


def settle(processor, custom: str | None = None) -> None:
    """Give a processor the chat template that verl gives it: the run's own, or the tokenizer's where it has none."""
    if custom is not None:
        processor.chat_template = custom
    elif not getattr(processor, "chat_template", None):
        processor.chat_template = processor.tokenizer.chat_template


def render(processor, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
    """The prompt of messages as a text, which ends where the model's answer begins.

    Args:
        processor: of the model, or its tokenizer.
        messages: of a chat.
        options: that the template reads beside the messages.
    """
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **options)


def opened(text: str) -> str:
    """What the template has written of the answer and left open: from a last ``<think>`` to the end, or "".

    A thought that the template has closed is a part of the prompt, and so is a tag in what the user says: the marks of
    the turns follow it.

    Args:
        text: a prompt, of `render`.
    """
    found = _OPENED.match(text, max(0, text.rfind("<")))
    return found.group() if found else ""


def of_dump(record: Mapping[str, Any]) -> str:
    """The answer of a line of verl's dumps (``trainer.validation_data_dir``) from where the chat template began it.

    Args:
        record: with ``input``, the prompt without the marks of its turns, and ``output``.
    """
    prompt = str(record.get("input", ""))
    return (opened(prompt) if prompt.rstrip().endswith("<think>") else "") + record["output"]


def opened_by(model: str, options: Mapping[str, Any]) -> str:
    """What the chat template of a model leaves open, see `opened`.

    Args:
        model: folder or hub name of a Hugging Face model.
        options: of the template.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model)
    settle(processor)
    return opened(render(processor, _PROBE, options))
