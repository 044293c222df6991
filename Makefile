# make demo   the main job on a real pretrained model, fetched once (98 MB)
# make test   formatting, lint, types and tests; needs no torch. Plain pytest runs the unit tests among them
# make test-versions   a cross-section of the tests under each other Python (3.11, 3.12, 3.13) that this machine has
# make fuzz   thousands of damaged inputs and a hundred kills: CASES=5000 KILLS=100 SEED=0, figures in out/fuzz.json
# make docs   the documentation, into site/
# All make a virtual environment on the first call and reuse it afterwards.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CASES ?= 5000
KILLS ?= 100
SEED ?= 0

.PHONY: demo test test-versions fuzz docs parity-deps clean

demo: $(VENV)/installed
	$(BIN)/python -m analyze.lifecycle --out out/demo
	@echo "Open the report: $(CURDIR)/out/demo/report.html"

test: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile -q -m "not endurance and not gpu"

# In environments of their own, and without what make parity-deps brings.
VERSIONS := 3.11 3.12 3.13
CROSS_SECTION := tests/test_loading.py tests/test_capture.py tests/convert tests/data tests/models tests/training/test_workdir.py tests/statistics/test_collect.py

test-versions:
	@tested=""; \
	this=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	for version in $(VERSIONS); do \
		[ $$version = $$this ] && continue; \
		for python in python$$version $$HOME/.pyenv/versions/$$version.*/bin/python; do \
			$$python --version >/dev/null 2>&1 || continue; \
			echo "Python $$version: $$python"; \
			[ -e $(VENV)-$$version/installed ] || { $$python -m venv $(VENV)-$$version && \
				$(VENV)-$$version/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]' && \
				touch $(VENV)-$$version/installed; } || exit 1; \
			$(VENV)-$$version/bin/python -m pytest -n 2 --dist loadfile -q -m "not slow and not endurance and not gpu and not parity" \
				$(CROSS_SECTION) || exit 1; \
			tested="$$tested $$version"; break; \
		done; \
	done; \
	echo "Pythons tested beside $$this:$${tested:- none, this machine has no other}"

fuzz: $(VENV)/installed
	@mkdir -p out
	$(BIN)/python -m tests.adversary --cases $(CASES) --kills $(KILLS) --seed $(SEED) --json out/fuzz.json

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Open the documentation: $(CURDIR)/site/index.html"

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
	rm -rf $(VENV) $(VENV)-* out build site *.egg-info
