# make demo [CT=PATH]   a synthetic patient, and your own scan, through the whole road
# make test             the quick tests, of every room; ARGS="tests/scan -k zip" for some, WORKERS=1 for one process
# make test-all         every test; ARGS="-m slow" for the slow ones alone
# make coverage         every test, with the branch coverage of each file; takes half as long again
# make test-system      as root: Debian packages that tests use where they are there
# make bench            what a scan takes, beside other libraries in an environment of their own (6 GB, half an hour)
# make lint             ruff and mypy, as pre-commit runs them
# make changelog        CHANGELOG.md as the next release would have it, from changelog.d/
# make clean

PYTHON ?= $(firstword $(foreach python,python3.11 python3 python,$(shell \
	$(python) -c 'import sys; sys.version_info >= (3, 11) and print("$(python)")' 2>/dev/null)))
VENV ?= .venv
PEERS ?= .venv-peers
BIN := $(VENV)/bin
CT ?=
DEMO ?= demo
ARGS ?=
WORKERS ?= 2

# TensorFlow's start-up chatter; 0 shows it.
export TF_CPP_MIN_LOG_LEVEL ?= 3
# As in the command line: TensorFlow itself leaves oneDNN out on older processors.
export TF_ENABLE_ONEDNN_OPTS ?= 1
# Tests run in several processes: threads of each would wait for each other.
test test-all coverage: export TF_NUM_INTRAOP_THREADS ?= 1

.PHONY: demo test test-all coverage test-system bench lint changelog clean

demo: $(VENV)/.installed $(DEMO)/phantom/manifest.csv
	$(BIN)/tfcovid infer $(DEMO)/phantom/manifest.csv $(if $(CT),"$(CT)") --out $(DEMO)/results --overwrite
	@echo; echo "Open in a browser:"; find "$(CURDIR)/$(DEMO)/results" -name report.html | sort

$(DEMO)/phantom/manifest.csv: $(VENV)/.installed
	rm -rf $(DEMO)/phantom
	$(BIN)/tfcovid phantom --cases 1 --seed 7 --out $(DEMO)/phantom

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadscope -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadscope $(ARGS)

coverage: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadscope --cov --cov-report=term:skip-covered $(ARGS)

test-system:
	apt-get update
	DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium poppler-utils orthanc orthanc-dicomweb

bench: $(VENV)/.installed-test $(PEERS)/.installed
	$(BIN)/python benchmarks/peers.py --peers $(PEERS)/bin/python $(ARGS)
	$(BIN)/python benchmarks/memory.py --of infer

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	# Of the measuring programs, whether what they name and call is there: most are not run by a test.
	MYPYPATH=.:benchmarks $(BIN)/mypy --explicit-package-bases benchmarks \
	    $(addprefix --disable-error-code=,arg-type assignment import-not-found import-untyped index misc no-any-return operator union-attr unused-ignore)

changelog: $(VENV)/.installed-test
	$(BIN)/towncrier build --draft

clean:
	rm -rf $(VENV) $(PEERS) $(DEMO) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .coverage*
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it with make PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

$(PEERS)/.installed: benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --requirement benchmarks/peers.txt
	@touch $@
