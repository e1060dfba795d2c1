"""Models by hub id: which files are fetched, at which commit, and what is said when they cannot be had."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pruning_adapter.checkpoint.plausible import check_alone, check_files
from pruning_adapter.checkpoint.shards import INDEX, WHOLE, read_index
from pruning_adapter.errors import CheckpointError

__all__ = [
    "HUB_OPTIONS",
    "TOKENIZER_FILES",
    "Source",
    "explain",
    "find_model",
    "find_tokenizer",
    "note_commit_",
]

CONFIGS = ("config.json", "generation_config.json", "README.md")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json"),
    *(
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "tokenizer.model",
        "spm.model",
    ),
    *("chat_template.jinja", "bpe.codes"),
)
"""Text, and sentencepiece's tables: nothing that could run."""
HUB_OPTIONS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download")
"""Arguments of `from_pretrained` that say what to fetch and how."""


def note_commit_(model: Any, source: "Source") -> None:
    """Let `identify` find the commit in the config, where older releases of Transformers kept it; it is never saved."""
    if source.commit is not None:
        model.config._commit_hash = source.commit


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model lies, and how Transformers is told to take it from there without asking the Hub again."""

    name: str
    """Folder or hub id."""
    folder: Path
    """Where its files lie on this machine."""
    commit: str | None = None
    """Of the Hub; None for a folder."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """For `from_pretrained`."""


def find_model(name: str | Path, **options: Any) -> Source:
    """Find a model's folder, or fetch it from the Hub: config, model card and safetensors, no pickles, no code.

    Args:
        name: folder or hub id.
        options: revision, subfolder, token, cache_dir, local_files_only, force_download, as `from_pretrained` knows
            them.

    Raises:
        CheckpointError: no such folder, repository or revision; not in the cache and offline; no right to read it; or
            no safetensors.
    """
    prefix = f"{options['subfolder']}/" if options.get("subfolder") else ""
    weights = (WHOLE, INDEX, "model-*-of-*.safetensors")
    source = _find(name, [prefix + file for file in (*CONFIGS, *weights)], options)
    folder = source.folder / prefix
    check_alone(folder)
    if source.commit is None:
        return source
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{_say(name, options)} has no {prefix}config.json, so it holds no model.")
    if not (folder / WHOLE).is_file():
        others = [file for file in _shards(folder) if not (folder / file).is_file()]
        if others:
            _find(name, [prefix + file for file in others], {**options, "revision": source.commit})
        lost = [file for file in _shards(folder) if not (folder / file).is_file()]
        if lost or not (folder / INDEX).is_file():
            raise CheckpointError(
                f"{_say(name, options)} has no {prefix}{lost[0] if lost else WHOLE}. Pickled weights are never "
                "loaded; name a revision that holds safetensors (such as refs/pr/1), or convert the model where you "
                "trust it and pass the folder."
            )
    return source


def find_tokenizer(name: str | Path, **options: Any) -> Source:
    """As `find_model`, for the files of a tokenizer."""
    return _find(name, list(TOKENIZER_FILES), options)


def _find(name: str | Path, files: Sequence[str], options: Mapping[str, Any]) -> Source:
    revision, subfolder = options.get("revision"), options.get("subfolder")
    inside: dict[str, Any] = {"subfolder": subfolder} if subfolder else {}
    if Path(name).is_dir():
        if revision is not None:
            raise CheckpointError(
                f"The revision {revision!r} was given for {name}, which is a folder here; only hub ids have revisions. "
                "Leave it out, or rename the folder if the hub id was meant."
            )
        if (Path(name) / (subfolder or "")).is_dir():
            check_files(Path(name) / (subfolder or ""))
        return Source(name=str(name), folder=Path(name), options=inside)
    from huggingface_hub import snapshot_download

    how = {key: options[key] for key in HUB_OPTIONS[2:] if options.get(key) is not None}
    try:
        folder = Path(snapshot_download(str(name), revision=revision, allow_patterns=list(files), **how))
    except Exception as error:  # the Hub's client, its validators and the network each raise their own kinds
        raise CheckpointError(explain(error, str(name), revision)) from error
    commit = folder.name
    # What was fetched just now is what is loaded, although somebody may push meanwhile.
    taken = {key: how[key] for key in ("token", "cache_dir") if key in how}
    options = {**inside, **taken, "revision": commit, "local_files_only": True}
    return Source(name=str(name), folder=folder, commit=commit, options=options)


def explain(error: Exception, name: str, revision: str | None) -> str:
    """What went wrong between us and the Hub, and the way out, in one line."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    called = f"{name!r}" if revision is None else f"{name!r} at revision {revision!r}"
    gone = f"{name!r} is no folder here"
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, HFValidationError):
        return f"{gone}, and no hub id either. Check the name."
    if isinstance(error, GatedRepoError):
        return f"{name!r} is gated: accept its conditions on its page on the Hub, then {login}."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{gone}, and the Hub has no such repository, or it is private. Check the name; if it is private, {login}."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"The Hub has {name!r}, but no revision {revision or 'main'!r} of it. Name a branch, a tag or a commit."
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"The Hub refuses {called} to this login (HTTP {status}). If you have a right to it, {login}."
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        if _is_offline(error):
            return (
                f"{gone}, and {called} is not (wholly) in the local cache, while this process is offline "
                "(HF_HUB_OFFLINE or local_files_only). Go online once, or pass a folder."
            )
        return (
            f"{gone}, the Hub cannot be reached, and {called} is not (wholly) in the local cache. Check the connection."
        )
    first = next((line for line in str(error).strip().splitlines() if line), type(error).__name__)
    return f"{gone} and could not be had from the Hub ({first}). Check the name and the connection."


def _is_offline(error: BaseException) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    cause = error.__cause__
    # Without a cause, the client was told not to ask.
    return isinstance(error, OfflineModeIsEnabled) or (
        isinstance(error, LocalEntryNotFoundError) and (cause is None or isinstance(cause, OfflineModeIsEnabled))
    )


def _shards(folder: Path) -> list[str]:
    """The files that an index names."""
    return sorted({file.name for file in read_index(folder).values()})


def _say(name: str | Path, options: Mapping[str, Any]) -> str:
    revision = options.get("revision")
    return f"{str(name)!r} on the Hub" + (f", revision {revision!r}," if revision else "")
