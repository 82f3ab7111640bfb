"""Names of models: a folder of this machine or a name on the Hugging Face hub, found out before anything else is done.

The libraries that load models ask the hub for each file, again and again where it does not answer: minutes until a
traceback that does not say which of the user's words was wrong. Here it is asked once, for seconds.
"""

import difflib
import logging
import os
import re
from pathlib import Path

logger = logging.getLogger(__name__)

CONFIG = "config.json"
"""The file that every model of transformers has."""
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SECONDS = 5.0


class ModelNameError(ValueError):
    """A name under which there is no model; the message says where it was looked for, and what to do."""


def located(name: str, file: str = CONFIG) -> str:
    """The name of a model that is there, as loaders take it: a folder, or its name on the hub.

    Args:
        name: a folder, or a name on the hub; one of another remote place (``hdfs://...``) is taken as it is.
        file: that the model must have.

    Raises:
        ModelNameError: no such folder, a folder without a model, or a name that neither the cache of this machine nor
            the hub knows; or the hub does not answer.
    """
    if "://" in name:
        return name
    elsewhere = os.environ.get("VERL_USE_MODELSCOPE", "").lower() in ("true", "1")  # verl's loaders ask another hub
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / file).is_file():
            raise ModelNameError(f"{name} holds no model ({file}); correct the path")
        return str(folder)
    if folder.is_file():
        raise ModelNameError(f"{name}: is a file; name the folder of a model")
    if folder.is_absolute() or name.startswith((".", "~")) or not _HUB_NAME.fullmatch(name):
        raise ModelNameError(
            f"{name}: no such folder{_near(folder)}; name a model's folder, a checkpoint of verl, or a hub model"
        )
    if not elsewhere:
        _on_the_hub(name, file, _near(folder))
    return name


def _on_the_hub(name: str, file: str, near: str) -> None:
    """See that a model's file can be had from the hub or its cache on this machine."""
    import httpx
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    known = isinstance(try_to_load_from_cache(name, file), str)
    download = f"or download it where the hub answers (hf download {name} --local-dir FOLDER) and name the folder"
    if constants.HF_HUB_OFFLINE:
        if known:
            return
        raise ModelNameError(
            f"{name}: no such folder{near}, HF_HUB_OFFLINE is set, and the cache {constants.HF_HUB_CACHE} has no "
            f"{file} of a hub model of this name; correct the name, unset HF_HUB_OFFLINE, {download}"
        )
    try:
        get_hf_file_metadata(hf_hub_url(name, file), timeout=_SECONDS)
    except errors.GatedRepoError as error:
        raise ModelNameError(
            f"{name}: its owner on the hub wants to be asked for access; ask on its page, then log in (hf auth login)"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ModelNameError(f"{name}: the hub has no {file} under this name; name a model, not adapters") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNameError(
            f"{name}: no such folder{near}, and no such model on the hub; correct the name, or log in if it is private "
            "(hf auth login)"
        ) from error
    except (OSError, httpx.HTTPError) as error:
        if known:
            logger.warning(
                "%s: the hub does not answer at %s; what the cache of this machine has of it is used. HF_HUB_OFFLINE=1 "
                "saves the time that loaders spend on asking",
                name,
                constants.ENDPOINT,
            )
            return
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise ModelNameError(
            f"{name}: no such folder{near}, and the hub does not answer at {constants.ENDPOINT} ({said}); "
            f"correct the name, {download}"
        ) from error


def _near(folder: Path) -> str:
    """What may have been meant: a folder of a name like the first one on the way that is not there."""
    path = folder.absolute()
    missing = [part for part in (path, *path.parents) if not part.exists()]
    if not missing:
        return ""
    first = missing[-1]
    there = [entry for entry in os.listdir(first.parent) if (first.parent / entry).is_dir()]
    found = difflib.get_close_matches(first.name, there, 1)
    if not found:
        return ""
    rest = path.relative_to(first)
    meant = first.parent / found[0] / rest
    return f" (did you mean {meant if meant.exists() else first.parent / found[0]}?)"
