# make report | publish | test | test-long | test-clients | bench | slurm-check | lint | docs | lock | clean | help. Each sets up what it needs.
#   make report PYTHON=/path/python             the Python that .venv is made with
#   make report PYTHON=/path/python VENV=none   use that environment as it is: install nothing
#   make report PUBLISHED=h200                  render reports/published/h200, measure nothing; so for publish
PYTHON ?= python3
VENV   ?= .venv
CORES  ?= all
# more arguments for snakemake, e.g. ARGS="--configfile config/smoke.yaml"
ARGS   ?=
# how many tests run at once, 0 for one after another in this process: tests/turns.py
WORKERS ?= 2
# folders of reports/published to render instead of measuring, e.g. PUBLISHED="h200 2x_h200"
PUBLISHED ?=

HAVE_GPU := $(wildcard /proc/driver/nvidia/version)$(shell command -v nvidia-smi 2>/dev/null)
LOCK     := envs/$(if $(HAVE_GPU),gpu,cpu).txt
PIP      := -m pip install --quiet --disable-pip-version-check

ifeq ($(VENV),none)
  PY    := $(PYTHON)
  READY :=
  TESTS :=
else
  PY    := $(VENV)/bin/python
  READY := $(VENV)/.ready
  TESTS := $(VENV)/.tests
endif
CLIENTS := .venv-clients/.ready
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

.PHONY: report publish test test-long test-clients bench slurm-check lint docs lock clean help
.DEFAULT_GOAL := help

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

report: $(READY) ## measure this machine and render reports/index.html
ifeq ($(PUBLISHED),)
	$(PY) -m snakemake --cores $(CORES) $(ARGS)
else
	$(PY) scripts/report.py --results $(addprefix reports/published/,$(PUBLISHED))
endif
	@echo "report: $(CURDIR)/reports/index.html"

publish: $(READY) ## reports/site/ for any static host: index, reports, data, RO-Crates; or PUBLISHED="h200 2x_h200"
	$(PY) scripts/publish.py $(if $(PUBLISHED),--results $(addprefix reports/published/,$(PUBLISHED)))

test: $(TESTS)   ## all tests, a real browser among them
	@sh tests/install_browser.sh
	@sh tests/install_axe.sh
	@sh tests/install_prometheus.sh
	$(PY) -m pytest -n $(WORKERS) $(ARGS)

test-long: $(TESTS) ## what takes minutes: two of overload through the server, the quick DAG through SLURM with accounting
	SERVEPROOF_LONG=1 $(PY) -m pytest tests/server/test_reliability.py tests/slurm/test_run.py -k "twice or smoke" $(ARGS)

test-clients: $(TESTS) $(CLIENTS) ## guidellm, aiperf and lm-eval against the server (2.3 GB, a few minutes); writes docs/clients.md
	SERVEPROOF_CLIENTS=$(CURDIR)/.venv-clients/bin $(PY) -m pytest tests/clients $(ARGS)

bench: $(READY)  ## how well this machine can detect a slowdown, from the samples of the last run; how fast the load client is; what HTTP costs
	$(PY) scripts/detection_rates.py --samples results/*/pairs/*/samples.parquet
	$(PY) scripts/load_client_benchmark.py
	$(PY) scripts/server_benchmark.py --model results/inputs/model
	$(PY) scripts/ranges_benchmark.py

slurm-check: $(READY) ## whether the SLURM cluster at hand can take a run; e.g. ARGS="--configfile config/smoke.yaml"
	$(PY) scripts/slurm_check.py $(ARGS)

lint: $(TESTS) docs ## ruff, mypy, import contracts, snakefmt, snakemake --lint, the docs site
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"
	$(PY) -m snakefmt --check Snakefile rules
	$(PY) -m snakemake --lint

docs: $(TESTS)   ## the documentation as a site, into build/docs; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

lock: $(TESTS)   ## resolve pyproject.toml into envs/*.txt
	$(PY) $(PIP) uv
	$(PY) envs/lock.py

clean:           ## delete results and reports; the history of runs, published results and the environment stay
	rm -rf $(filter-out results/history,$(wildcard results/*)) build reports/index.html reports/logs reports/site

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'serveproof needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11')"
	$(PYTHON) -m venv $(VENV)

# Transformer Engine's PyTorch part is built against the torch that is there: torch first, then without isolation.
$(VENV)/.ready: $(LOCK) pyproject.toml | $(VENV)/bin/python
	@echo "installing $(LOCK) into $(VENV)"
ifneq ($(HAVE_GPU),)
	$(PY) $(PIP) setuptools wheel ninja pybind11 $$(grep -E '^torch==' $(LOCK))
	$(PY) $(PIP) --no-build-isolation -r $(LOCK)
else
	$(PY) $(PIP) -r $(LOCK)
endif
	$(PY) $(PIP) --no-deps -e .
	@touch $@

$(VENV)/.tests: envs/test.txt $(VENV)/.ready
	$(PY) $(PIP) -r envs/test.txt
	@touch $@

# Not beside ours: they pin what we pin otherwise. torch comes with the lock, else they bring CUDA's packages.
$(CLIENTS): envs/clients.txt | $(TESTS)
	$(PY) -m venv .venv-clients
	.venv-clients/bin/python $(PIP) -r envs/clients.txt
	@touch $@
