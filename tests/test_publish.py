"""A run's model on the Hub: what is pushed is what is loaded, and tells nothing of the machine it came from.

The endpoint is read when huggingface_hub is imported, so its clients are processes of their own.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from hub_server import TOKEN, Hub, Repository, serve_hub
from pruning_adapter import cli
from pruning_adapter.errors import CheckpointError, OutputError
from pruning_adapter.evaluation.result import Result
from pruning_adapter.publish import push_run
from tiny_encoder import make_texts, save_tiny_encoder

pytest.importorskip("jinja2")

BASE = "somebody/tiny-base"
HOME = "a-home-of-someone"
"""A folder that everything lies in: no file that is pushed may know of it."""

START = r"""
import json, re, sys
from pathlib import Path
import torch
import pruning_adapter as pa
from huggingface_hub import hf_hub_download
from peft import PeftModel
from pruning_adapter.errors import PruningAdapterError
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification
folder, told = Path(sys.argv[1]), json.loads(sys.argv[2])
out = {}

def keep(name, model):
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    save_file(state, folder / f"{name}.safetensors")

def refused(call):
    try:
        call()
    except PruningAdapterError as error:
        return str(error)
    return "nothing was refused"

def use(repository, revision=None):
    # Models that the code of a repository's card makes, one for each piece of it.
    text = Path(hf_hub_download(repository, "README.md", revision=revision)).read_text(encoding="utf-8")
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        names = {}
        exec(code, names)
        assert names["tokenizer"]("w1 w2")["input_ids"][1:-1] == [6, 7]
        yield names["model"]

def end():
    (folder / "out.json").write_text(json.dumps(out))
"""

PUSH = """
run, other = Path(told["run"]), Path(told["other"])
out["first"] = pa.push_run(run, "somebody/small", license_id="mit")
out["second"] = pa.push_run(other, "somebody/small", message="again")
out["branch"] = pa.push_run(run, "somebody/small", revision="tried")
out["adapter"] = pa.push_run(run, "somebody/small-adapter", adapter=True, private=True)
for name in ("first", "second", "branch"):
    keep(name, pa.load_pruned("somebody/small", revision=out[name]))
keep("newest", pa.load_pruned("somebody/small"))
keep("plain", AutoModelForSequenceClassification.from_pretrained("somebody/small", revision=out["first"]))
base = pa.load_pruned("somebody/small-adapter", subfolder="base", revision=out["adapter"])
adapted = PeftModel.from_pretrained(base, "somebody/small-adapter", revision=out["adapter"])
keep("adapted", adapted.merge_and_unload())
for number, model in enumerate(use("somebody/small")):
    keep(f"card-{number}", model)
keep("card-adapter", next(use("somebody/small-adapter")).merge_and_unload())
# The libraries' own ways.
model = pa.load_pruned(run / "merged")
model.push_to_hub("somebody/by-transformers")
keep("by-transformers", pa.load_pruned("somebody/by-transformers"))
adapted = PeftModel.from_pretrained(pa.load_pruned(run / "base"), run / "adapter")
adapted.push_to_hub("somebody/by-peft")
again = PeftModel.from_pretrained(pa.load_pruned(run / "base"), "somebody/by-peft")
keep("by-peft", again.merge_and_unload())
out["refused"] = {
    "kind": refused(lambda: pa.push_run(run, "somebody/small", adapter=True)),
    "public": refused(lambda: pa.push_run(run, "somebody/small", private=True)),
    "no id": refused(lambda: pa.push_run(run, "not an id")),
}
end()
"""

REFUSED = """
for name in told["absent"]:
    out[name] = refused(lambda: pa.load_pruned(name))
out["revision"] = refused(lambda: pa.load_pruned("somebody/small", revision="nowhere"))
end()
"""

OFFLINE = """
keep("first", pa.load_pruned("somebody/small", revision=told["first"]))
keep("newest", pa.load_pruned("somebody/small"))
keep("plain", AutoModelForSequenceClassification.from_pretrained("somebody/small", revision=told["first"]))
out["push"] = refused(lambda: pa.push_run(told["run"], "somebody/small"))
out["unknown"] = refused(lambda: pa.load_pruned("somebody/other"))
out["revision"] = refused(lambda: pa.load_pruned("somebody/small", revision="nowhere"))
end()
"""

RUN = """
from pruning_adapter import cli
from pruning_adapter.training.base_model import load_base, load_tokenizer
sys.argv = ["pruning-adapter", "run", *told["arguments"], "--output-dir", str(folder / "run")]
try:
    cli.main()
except SystemExit as end_of_command:
    assert not end_of_command.code, end_of_command.code
sys.argv = ["pruning-adapter", "push", "somebody/of-hub", "--adapter", "--output-dir", str(folder / "run")]
try:
    cli.main()
except SystemExit as end_of_command:
    assert not end_of_command.code, end_of_command.code
keep("adapted", next(use("somebody/of-hub")).merge_and_unload())
out["no weights"] = refused(lambda: load_base("x/pickled", label_names=("a", "b"), seed=0))
out["no tokenizer"] = refused(lambda: load_tokenizer("x/nothing"))
end()
"""


def client(code: str, folder: Path, endpoint: str, told: dict[str, Any], *, offline: bool = False, **env: str) -> Any:
    """Run `code` in a process of its own, whose Hub is at `endpoint`; what it left in `out`."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder.parent / "cache"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        **env,
    }
    command = [sys.executable, "-c", START + code, str(folder), json.dumps(told)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "out.json").read_text())


def start_run(folder: Path, *options: object) -> list[object]:
    """Arguments of a short run; its data is written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train.csv", 40), ("dev.csv", 16)):
        lines = ["text,label", *(f"{text},{('no', 'yes')[place]}" for text, place in make_texts(name, count, 2))]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = ["--train-file", folder / "train.csv", "--validation-file", folder / "dev.csv"]
    columns = ["--text-columns", "text", "--label-column", "label"]
    plan = ["--keep-heads", 7, "--high-rank", 6, "--low-rank", 2, "--epochs", 1, "--scorer", "gradient"]
    return [*files, *columns, *plan, "--reconstruct", "none", *options]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("x") / HOME


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    """A run that trained before it pruned, from a model in a folder."""
    model = save_tiny_encoder(home / "encoder")
    folder = home / "secret-run"
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["run", "--model", model, *start_run(home / "data"), "--output-dir", folder]
        patch.setattr(sys, "argv", ["pruning-adapter", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 0
    # As releases before wrote it.
    config = json.loads((folder / "merged/config.json").read_text())
    config["pruning"]["dense"]["name"] = str(model)
    (folder / "merged/config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def other(run: Path) -> Path:
    """The same run with other weights, in files of other names."""
    folder = Path(shutil.copytree(run, run.parent / "other-run"))
    weights = load_file(folder / "merged/model.safetensors")
    (folder / "merged/model.safetensors").unlink()
    file = "model-00001-of-00001.safetensors"
    save_file({name: -value for name, value in weights.items()}, folder / "merged" / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": dict.fromkeys(weights, file)}
    (folder / "merged/model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def hub() -> Generator[Hub]:
    with serve_hub() as server:
        yield server


@pytest.fixture(scope="module")
def pushed(hub: Hub, home: Path, run: Path, other: Path) -> dict[str, Any]:
    """What a process found that pushed, and loaded again."""
    return client(PUSH, home / "pushed", hub.endpoint, {"run": str(run), "other": str(other)})


def same(found: Path, expected: dict[str, torch.Tensor]) -> bool:
    state = load_file(found)
    kept = {name: value for name, value in state.items() if name in expected}
    return len(kept) == len(expected) and all(torch.equal(kept[name], value) for name, value in expected.items())


def test_what_was_pushed_is_what_is_loaded_to_the_bit(home: Path, pushed: dict[str, Any], run: Path) -> None:
    merged = load_file(run / "merged/model.safetensors")
    turned = {name: -value for name, value in merged.items()}
    found = home / "pushed"
    for name in ("first", "branch", "plain"):
        assert same(found / f"{name}.safetensors", merged), name
    # The pinned commit is still the old one after a second push, and the main branch is the new one.
    for name in ("second", "newest", "card-0", "card-1"):
        assert same(found / f"{name}.safetensors", turned), name
    assert len({pushed[name] for name in ("first", "second", "branch")}) == 3


def test_an_adapter_brings_its_base_along(home: Path, pushed: dict[str, Any], hub: Hub, run: Path) -> None:
    there = hub.repositories["somebody/small-adapter"]
    assert there.private
    assert {"adapter_config.json", "adapter_model.safetensors", "base/model.safetensors"} <= set(there.files())
    for loaded in ("adapted", "card-adapter"):
        found = load_file(home / f"pushed/{loaded}.safetensors")
        for name, value in load_file(run / "merged/model.safetensors").items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_the_libraries_own_push_to_hub_gives_what_loads(
    home: Path, pushed: dict[str, Any], hub: Hub, run: Path
) -> None:
    merged = load_file(run / "merged/model.safetensors")
    assert same(home / "pushed/by-transformers.safetensors", merged)
    found = load_file(home / "pushed/by-peft.safetensors")
    assert all(torch.allclose(found[name], value, rtol=0, atol=1e-6) for name, value in merged.items())
    assert {"somebody/by-transformers", "somebody/by-peft"} <= set(hub.repositories)
    assert pushed


def test_a_second_push_leaves_no_weights_of_the_first(hub: Hub, pushed: dict[str, Any]) -> None:
    there = hub.repositories["somebody/small"]
    weights = {"model-00001-of-00001.safetensors", "model.safetensors.index.json"}
    assert {name for name in there.files(pushed["first"]) if name.startswith("model")} == {"model.safetensors"}
    assert {name for name in there.files(pushed["second"]) if name.startswith("model")} == weights
    assert there.messages[1] == "again"


def test_what_is_pushed_knows_nothing_of_the_machine(hub: Hub, pushed: dict[str, Any], home: Path) -> None:
    assert pushed
    places = (HOME, str(home.parent), "secret-run", "other-run", str(Path.home()) + "/", "train.csv/")
    for name in ("somebody/small", "somebody/small-adapter"):
        for files in hub.repositories[name].commits.values():
            for file, content in files.items():
                # Before the numbers, a safetensors file has text.
                text = content[:100_000] if file.endswith(".safetensors") else content
                assert not [place for place in places if place.encode() in text], f"{name}: {file}"
    adapter = json.loads(hub.repositories["somebody/small-adapter"].files()["adapter_config.json"])
    assert (adapter["base_model_name_or_path"], adapter["pruning"]["model"]["name"]) == ("encoder", "encoder")
    config = json.loads(hub.repositories["somebody/small"].files()["config.json"])
    assert config["pruning"]["dense"]["name"] == "encoder"
    assert "local_files_only" not in json.loads(hub.repositories["somebody/small"].files()["tokenizer_config.json"])


def test_a_pushed_card_tells_the_results_own_numbers(hub: Hub, pushed: dict[str, Any], run: Path) -> None:
    files = hub.repositories["somebody/small"].files(pushed["first"])
    card = ModelCard(files["README.md"].decode())
    result = Result.load(run / "result.json")
    assert card.data.license == "mit"
    assert card.data.base_model is None, "a folder is no model on the Hub"
    values = {each.metric_name: each.metric_value for each in card.data.eval_results or ()}
    assert values == {name: measure.value for name, measure in result.quality["validation"].metrics.items()}
    assert 'load_pruned("somebody/small")' in card.text
    assert "pruning.png" in card.text
    assert files["pruning.png"].startswith(b"\x89PNG")


def test_what_a_push_would_break_is_refused(pushed: dict[str, Any]) -> None:
    refused = pushed["refused"]
    assert "holds config.json, so there is a whole model in it" in refused["kind"]
    assert "somebody/small is there already and public" in refused["public"]
    assert "is no hub id" in refused["no id"]


def test_what_the_hub_does_not_give_is_one_clear_error(hub: Hub, home: Path, pushed: dict[str, Any]) -> None:
    small = hub.repositories["somebody/small"].files(pushed["first"])
    hub.repositories["x/gated"] = Repository(gated=True)
    hub.repositories["x/gated"].commits["0" * 40] = dict(small)
    hub.repositories["x/pickled"] = Repository()
    kept = {name: content for name, content in small.items() if not name.endswith(".safetensors")}
    hub.repositories["x/pickled"].commits["0" * 40] = {**kept, "pytorch_model.bin": b"\x80\x04."}
    absent = ["x/nothing", "x/gated", "x/pickled", "no/such/thing"]
    out = client(REFUSED, home / "refused", hub.endpoint, {"absent": absent})
    assert "the Hub has no such repository, or it is private" in out["x/nothing"]
    assert "log in" in out["x/nothing"]
    assert "is gated: accept its conditions" in out["x/gated"]
    assert "Pickled weights are never loaded" in out["x/pickled"]
    assert "no hub id either" in out["no/such/thing"]
    assert "has 'somebody/small', but no revision 'nowhere'" in out["revision"]
    assert ("x/pickled", "pytorch_model.bin") not in hub.fetched
    told = {"absent": ["somebody/small-adapter"]}
    # What is in the cache is served to every login.
    env = {"HF_TOKEN": "hf_wrong", "HF_HOME": str(home / "empty")}
    out = client(REFUSED, home / "private", hub.endpoint, told, **env)
    assert "or it is private" in out["somebody/small-adapter"]


def test_offline_the_cache_serves_what_was_fetched(hub: Hub, home: Path, pushed: dict[str, Any], run: Path) -> None:
    asked = len(hub.fetched)
    told = {"run": str(run), "first": pushed["first"]}
    out = client(OFFLINE, home / "offline", hub.endpoint, told, offline=True)
    merged = load_file(run / "merged/model.safetensors")
    assert same(home / "offline/first.safetensors", merged)
    assert same(home / "offline/plain.safetensors", merged)
    assert same(home / "offline/newest.safetensors", {name: -value for name, value in merged.items()})
    assert "offline" in out["push"]
    for name in ("unknown", "revision"):
        assert "not (wholly) in the local cache, while this process is offline" in out[name]
    assert len(hub.fetched) == asked


def test_a_run_starts_at_a_pinned_revision_and_remembers_it(hub: Hub, home: Path, pushed: dict[str, Any]) -> None:
    assert pushed
    model = save_tiny_encoder(home / "published")
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    card = b"---\nlicense: bsd-3-clause\nlanguage: en\n---\n"
    files |= {"README.md": card, "modeling.py": b"raise SystemExit", "pytorch_model.bin": b"\x80\x04."}
    commit, newer = "a" * 40, "b" * 40
    hub.repositories[BASE] = Repository(
        branches={"main": newer}, commits={commit: files, newer: {**files, "config.json": b"{}"}}
    )
    arguments = start_run(home / "data", "--model", BASE, "--revision", commit, "--prune-after", 0)
    told = {"arguments": [str(each) for each in arguments], "base": BASE, "commit": commit}
    out = client(RUN, home / "from-hub", hub.endpoint, told)
    folder = home / "from-hub/run"
    assert json.loads((folder / "plan.json").read_text())["model"]["revision"] == commit
    adapter = json.loads((folder / "adapter/adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (BASE, commit)
    result = Result.load(folder / "result.json")
    assert (result.model["id"], result.model["revision"]) == (BASE, commit)
    assert (result.model["license"], result.model["language"]) == ("bsd-3-clause", "en")
    text = hub.repositories["somebody/of-hub"].files()["README.md"].decode()
    data = ModelCard(text).data
    assert (data.base_model, data.license, data.language) == (BASE, "bsd-3-clause", "en")
    assert f'revision="{commit}"' in text
    merged = load_file(folder / "merged/model.safetensors")
    found = load_file(home / "from-hub/adapted.safetensors")
    assert all(torch.allclose(found[name], value, rtol=0, atol=1e-6) for name, value in merged.items())
    taken = {file for name, file in hub.fetched if name == BASE}
    assert taken == set(files) - {"modeling.py", "pytorch_model.bin"}
    assert taken
    assert "Pickled weights are never loaded" in out["no weights"]
    assert "no such repository" in out["no tokenizer"]


def test_what_a_run_lacks_is_said_before_the_hub_is_asked(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no result\.json. Run `pruning-adapter evaluate` first"):
        push_run(tmp_path, "somebody/small")
    shutil.copy(run / "result.json", tmp_path)
    with pytest.raises(CheckpointError, match="has no adapter"):
        push_run(tmp_path, "somebody/small", adapter=True)
    with pytest.raises(CheckpointError, match=r"The card .*own\.md is no file"):
        push_run(run, "somebody/small", card=tmp_path / "own.md")
    with pytest.raises(OutputError, match="Cannot push to 'somebody/small' offline"):
        push_run(run, "somebody/small")


@pytest.mark.parametrize(
    ("adapter", "lacks"),
    [
        (False, "merged/model.safetensors"),
        (True, "adapter/adapter_model.safetensors"),
        (True, "base/model.safetensors"),
    ],
)
def test_without_its_weights_nothing_is_pushed(run: Path, tmp_path: Path, adapter: bool, lacks: str) -> None:
    """The Hub's would go, because no file here has their name."""
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    (folder / lacks).unlink()
    with pytest.raises(CheckpointError, match=rf"lacks {Path(lacks).name}, so nothing is pushed"):
        push_run(folder, "somebody/small", adapter=adapter)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, '{"a": 1, "a": 2}', "[]"])
def test_a_damaged_config_is_said_before_the_hub_is_asked(run: Path, tmp_path: Path, content: str) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "merged" / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        push_run(tmp_path / "run", "somebody/small")


@pytest.mark.parametrize("linked", ["merged/notes.txt", "merged", "base"])
def test_nothing_is_pushed_that_lies_elsewhere(run: Path, tmp_path: Path, linked: str) -> None:
    mine, secret = Path(shutil.copytree(run, tmp_path / "run")), tmp_path / "secret"
    if (mine / linked).exists():
        (mine / linked).rename(secret)
    else:
        secret.write_text("a password")
    (mine / linked).symlink_to(secret)
    with pytest.raises(
        CheckpointError, match=rf"{linked}.* is, or lies in, a link to what lies elsewhere.* Put a copy"
    ):
        push_run(mine, "somebody/small", adapter=linked == "base")
