"""A run's model on the Hub: its files, a card made from its result, and no path of this machine."""

import json
import logging
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from pruning_adapter.architectures.shapes import public_name
from pruning_adapter.checkpoint.shards import read_index
from pruning_adapter.errors import CheckpointError, OutputError
from pruning_adapter.evaluation.result import Result
from pruning_adapter.reading import read_object
from pruning_adapter.reporting.card import CARD, PICTURE, write_card
from pruning_adapter.reporting.card_text import Kind
from pruning_adapter.run_folder import check_needs
from pruning_adapter.storage import stays_in

__all__ = ["push_run"]

_LOGGER = logging.getLogger(__name__)

FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.codes")
"""What the library and its tokenizers write. Anything else in the folder stays here."""
WEIGHTS = re.compile(r"(?:base/)?(?:adapter_)?model(?:-\d{5}-of-\d{5})?\.safetensors(?:\.index\.json)?")
NAMES = ("base_model_name_or_path", "name_or_path", "_name_or_path")
"""Fields in which the libraries below note where a model was loaded from."""
OF_THIS_MACHINE = ("is_local", "local_files_only")
"""How a tokenizer was loaded here, which Transformers saves along."""


def push_run(
    folder: str | Path,
    repo_id: str,
    *,
    adapter: bool = False,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    license_id: str | None = None,
    card: str | Path | None = None,
) -> str:
    """Push what a run made to the Hub, in one commit; returns the commit, by which it can be loaded for ever.

    The login is huggingface_hub's own (`hf auth login`, or HF_TOKEN). Weights that an earlier push left under other
    names are removed in the same commit. The run's folder stays as it is.

    Args:
        folder: of a run that was evaluated.
        repo_id: such as "somebody/rte-small"; made if it is not there.
        adapter: push adapter/, with base/ inside where the run made one, instead of merged/.
        private: make the repository private, if it is made now.
        revision: branch to push to, made if it is not there; by default the main one.
        message: of the commit.
        license_id: such as "apache-2.0", in place of what the base's own files say.
        card: a Markdown file in place of the card that is made from result.json.

    Raises:
        CheckpointError: a step of the run is missing, or a file of it is a link to what lies elsewhere.
        OutputError: the Hub refuses, cannot be reached, or holds something that this would break.
    """
    folder = Path(folder)
    kind: Kind = "adapter" if adapter else "merged"
    check_needs(folder, "push")
    source = folder / kind
    if not source.is_dir():
        raise CheckpointError(f"{folder} has no {kind}. " + _way_to(kind, Result.load(folder / "result.json").method))
    result = Result.load(folder / "result.json")
    base = folder / "base" if adapter and (folder / "base").is_dir() else None
    with tempfile.TemporaryDirectory() as made:
        files = _collect(source, Path(made), folder)
        _check_whole(files, kind, source)
        if base is not None:
            files |= {f"base/{name}": file for name, file in _collect(base, Path(made) / "base", folder).items()}
            _check_whole({file.name: file for file in base.iterdir()}, "merged", base)
        if adapter:
            _say_base(files["adapter_config.json"], result)
        files |= _make_card(result, Path(made), kind, repo_id, base=base, license_id=license_id, card=card)
        said = message or f"{'Adapter' if adapter else 'Merged model'} of a pruning-adapter run"
        return _push(repo_id, files, kind, private=private, revision=revision, message=said)


def _check_whole(files: Mapping[str, Path], kind: Kind, source: Path) -> None:
    """What lacks its weights would take them away from the Hub.

    Raises:
        CheckpointError: a file that is missing.
    """
    needed = {"config.json"} if kind == "merged" else {"adapter_config.json", "adapter_model.safetensors"}
    if kind == "merged":
        shards = {file.name for file in read_index(source).values()}
        needed |= shards or {"model.safetensors"}
    missing = sorted(needed - set(files))
    if missing:
        raise CheckpointError(
            f"{source} lacks {missing[0]}, so nothing is pushed. Make it anew: `pruning-adapter merge`."
        )


def _way_to(kind: Kind, method: str) -> str:
    if kind == "adapter" and method == "full":
        return 'The method "full" trains no adapter; push without --adapter.'
    return "Run `pruning-adapter run --resume` first."


def _collect(source: Path, made: Path, run: Path) -> dict[str, Path]:
    """The files to push, by their name in the repository; those that name places are mended in `made`."""
    made.mkdir(parents=True, exist_ok=True)
    files = {file.name: file for pattern in FILES for file in sorted(source.glob(pattern)) if file.is_file()}
    for file in files.values():
        if not (stays_in(file, source) and stays_in(source, run)):
            raise CheckpointError(
                f"{file} is, or lies in, a link to what lies elsewhere, and nothing from elsewhere is pushed. Put a "
                "copy in its place, or remove it."
            )
    for name in ("config.json", "adapter_config.json", "tokenizer_config.json"):
        if name in files:
            content = read_object(files[name], "config")
            (made / name).write_text(json.dumps(_without_paths(content), indent=2) + "\n", encoding="utf-8")
            files[name] = made / name
    return files


def _without_paths(value: Any, *, of_model: bool = False) -> Any:
    """The value with names of models in place of the folders that they lay in, at any depth."""
    if isinstance(value, dict):
        content = cast("dict[str, Any]", value)
        # An identity's name, which files of earlier releases have as a path.
        known = (*NAMES, "name") if of_model else NAMES
        return {
            key: public_name(each)
            if key in known and isinstance(each, str)
            else _without_paths(each, of_model=key in ("dense", "model"))
            for key, each in content.items()
            if key not in OF_THIS_MACHINE
        }
    return [_without_paths(each) for each in cast("list[Any]", value)] if isinstance(value, list) else value


def _say_base(config: Path, result: Result) -> None:
    """Name the model that the adapter came from: the folder it was trained beside is nowhere but here."""
    content = {
        **read_object(config, "config"),
        "base_model_name_or_path": public_name(str(result.model.get("id", ""))),
        "revision": result.model.get("revision"),
    }
    config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _make_card(
    result: Result,
    made: Path,
    kind: Kind,
    repo_id: str,
    *,
    base: Path | None,
    license_id: str | None,
    card: str | Path | None,
) -> dict[str, Path]:
    if card is None and license_id is None and not result.model.get("license"):
        _LOGGER.warning(
            "the card names no license, because the files of %s tell none; say it with --license",
            result.model.get("id", "the base"),
        )
    write_card(result, made, kind=kind, place=repo_id, base=None if base is None else base.name, license_id=license_id)
    files = {name: made / name for name in (CARD, PICTURE) if (made / name).is_file()}
    return files if card is None else {**files, CARD: _own_card(card)}


def _own_card(card: str | Path) -> Path:
    if not Path(card).is_file():
        raise CheckpointError(f"The card {card} is no file here.")
    return Path(card)


def _push(
    repo_id: str, files: Mapping[str, Path], kind: Kind, *, private: bool, revision: str | None, message: str
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="pruning-adapter")
    try:
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        if private and not api.repo_info(repo_id).private:
            raise OutputError(f"{repo_id} is there already and public; make it private on its page, or name another.")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        _check_same_kind(repo_id, there, kind)
        stale = [name for name in there if WEIGHTS.fullmatch(name) and name not in files]
        operations = [
            *(CommitOperationDelete(path_in_repo=name) for name in stale),
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(file)) for name, file in files.items()),
        ]
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision).oid
    except OutputError:
        raise
    except Exception as error:  # the Hub's client, its validators and the network each raise their own kinds
        raise OutputError(_refused(error, repo_id, revision)) from error


def _check_same_kind(repo_id: str, there: Iterable[str], kind: Kind) -> None:
    """A folder with both is loaded as neither: Transformers would put the adapter onto the merged model."""
    other = {"merged": "adapter_config.json", "adapter": "config.json"}[kind]
    if other in set(there):
        raise OutputError(
            f"{repo_id} holds {other}, so there is {'an adapter' if kind == 'merged' else 'a whole model'} in it. Name "
            "another repository, or another branch with --revision."
        )


def _refused(error: Exception, repo_id: str, revision: str | None) -> str:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    first = next((line for line in str(error).strip().splitlines() if line), type(error).__name__)
    if isinstance(error, HFValidationError):
        return f"{repo_id!r} is no hub id: {first}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"Cannot push to {repo_id!r} offline; unset HF_HUB_OFFLINE."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403):
        return (
            f"The Hub does not let this login write to {repo_id!r} (HTTP {status}). Log in with `hf auth login` or set "
            "HF_TOKEN, with a token that may write there."
        )
    return f"Nothing was pushed to {repo_id!r}: {first}"
