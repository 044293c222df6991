# make demo   the main job on what the repository itself holds
# make test   formatting, lint, types and tests; needs no torch. Plain pytest runs the unit tests among them
# Both make a virtual environment on the first call and reuse it afterwards.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test parity-deps clean

demo: $(VENV)/installed
	$(BIN)/python -m analyze.lifecycle --bos --out out/demo
	@echo "Open the report: $(CURDIR)/out/demo/report.html"

test: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile -q -m "not endurance and not gpu"

# torch, transformers and libtpu, with which the same test command also compares live with transformers and compiles for TPUs
parity-deps: $(VENV)/installed
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet 'transformers>=5.0'
	$(BIN)/pip install --quiet --editable '.[tpu]'

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; run make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) out build *.egg-info
