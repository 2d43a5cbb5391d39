# The commands of the course. Each sets up .venv when it is not there or no longer current.
#   make course    run every notebook, in order, and write pages to read       PROFILE=smoke|laptop|gpu NOTEBOOKS="00 12_mocogan" OUT=_course
#   make lab       open the notebooks in JupyterLab
#   make test      pass the tests                                              TESTS="tests/test_cli.py -k help"
#   make site      pages of the notebooks with the outputs they were stored with, nothing is run
# For authors (see CONTRIBUTING.md):
#   make export    write vidcourse/ and README.md from nbs/
#   make outputs   run NOTEBOOKS and keep their outputs, cleaned                NOTEBOOKS="12_mocogan" PROFILE=laptop
#   make pictures  redraw the front page's pictures from the shipped weights
#   make bench     train each system for a minute on each kind of data        BENCH="--minutes 3 --systems navs --data black"
#   make gpu       all that waits for a GPU, in pieces, into _gpu              GPU="--budget 1500 --only time train"
#   make clean     remove the environment and everything made
PROFILE ?= auto
OUT ?= _course
NOTEBOOKS ?=
TESTS ?= tests
BENCH ?=
GPU ?=
PYTHON ?=
BIN := .venv/bin

.PHONY: course lab test site export outputs pictures bench gpu clean
.DELETE_ON_ERROR:

course: .venv/.course
	@$(BIN)/python -m vidcourse run $(NOTEBOOKS) --profile $(PROFILE) --out $(OUT)

lab: .venv/.dev
	@$(BIN)/python -m jupyterlab nbs

test: .venv/.dev
	@echo "pytest $(TESTS)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -p no:cacheprovider -q --durations=8 $(TESTS)

site: .venv/.course
	@$(BIN)/python -m vidcourse run $(NOTEBOOKS) --stored --out _site

export: .venv/.dev
	@$(BIN)/python tests/authoring.py export

outputs: .venv/.dev
	@test -n "$(NOTEBOOKS)" || { echo 'Say which: make outputs NOTEBOOKS="12_mocogan" PROFILE=laptop' >&2; exit 2; }
	@$(BIN)/python tests/authoring.py outputs $(NOTEBOOKS) --profile $(PROFILE)

pictures: .venv/.dev
	@$(BIN)/python tests/authoring.py pictures

bench: .venv/.dev
	@$(BIN)/python tests/benchmark_training.py $(BENCH)

gpu: .venv/.dev
	@$(BIN)/python tests/gpu.py $(GPU)

clean:
	rm -rf .venv build dist *.egg-info _course _site _gpu

# The environment. A stamp file says that it was made from the pyproject.toml and constraints.txt that are here now.
.venv/.course: .venv/pyvenv.cfg pyproject.toml constraints.txt
	@echo "Installing the course into .venv (the first time about two minutes and 5 GB, most of it torch)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/pyvenv.cfg pyproject.toml constraints.txt
	@echo "Installing the course and its tools into .venv (the first time about two minutes and 5 GB, most of it torch)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@ .venv/.course

.venv/pyvenv.cfg:
	@for python in $(PYTHON) python3 python3.12 python3.13 python3.11 python3.10 python; do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then \
	    echo "Making .venv with $$($$python --version) ($$python)"; \
	    $$python -m venv .venv && exit 0; rm -rf .venv; \
	  fi; \
	done; \
	echo "No Python 3.10 to 3.13 that can make environments was found: install one (on Debian and Ubuntu also python3-venv)," >&2; \
	echo "or name it: make course PYTHON=/path/to/python3.12" >&2; exit 1
