# From a fresh clone: `make test` installs, builds and tests; `make bench` measures and writes reports/.
# Needs Python 3.10+, a C++ compiler and make. Everything is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REPORTS := reports
# A quick run of every benchmark, to see that it works: make bench QUICK=1
QUICK ?=
# Numbers of threads that the operators are measured on.
THREADS ?= 1,2
# Hold our kernels and, as far as they have a variable for it, the libraries they are compared with to an instruction
# set: make bench ISA=avx2
ISA ?=
HELD_avx2 := BTR_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 \
  OPENBLAS_CORETYPE=Haswell NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR" FAISS_OPT_LEVEL=AVX2

KERNEL_FLAGS := --threads $(THREADS) $(if $(QUICK),--quick)
READER_FLAGS := $(if $(QUICK),--shape tiny --passages 4 --passage-length 32 --new-tokens 2)
SOURCES := setup.py pyproject.toml CMakeLists.txt constraints.txt $(shell find csrc -type f)

# The Python of `make gpu`: nothing is installed into it. That of .venv if it is there, else the system's.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_FLAGS ?=

.PHONY: test bench gpu install lint check-all sanitize readme clean

install: $(VENV)/installed

# torch first: the package builds against the one that is installed.
$(VENV)/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch numpy setuptools wheel pybind11 cmake ninja
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[test]"
	touch $@

test: install
	$(BIN)/python -m pytest tests

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python benchmarks/readme_tables.py --check

bench: install
	mkdir -p $(REPORTS)
	$(if $(ISA),env $(or $(HELD_$(ISA)),$(error ISA: expected avx2, got $(ISA)))) \
	  $(BIN)/python -m btr_kernels.bench $(KERNEL_FLAGS) --json $(REPORTS)/kernels.json --plots $(REPORTS)
	$(BIN)/btr bench $(READER_FLAGS) --json $(REPORTS)/reader.json --plot $(REPORTS)/reader.png
	@echo "Report: $(REPORTS)/kernels.json, $(REPORTS)/reader.json and the plots beside them"

# On a machine with a GPU, offline, with the torch and Triton that are there: builds, checks and measures, and writes
# benchmarks/results/<gpu>/<date>.json.
gpu:
	@$(GPU_PYTHON) -c "import torch" 2> /dev/null || \
	  { echo "make gpu: $(GPU_PYTHON) has no torch; name one that has: make gpu GPU_PYTHON=..." >&2; exit 2; }
	$(GPU_PYTHON) -m btr_kernels.bench.gpu $(GPU_FLAGS)

# The kernels in programs of their own: against plain loops under the address and undefined-behaviour sanitizers, and
# from several threads at once under the thread sanitizer.
sanitize: install
	$(BIN)/cmake -S . -B build/sanitize -DBTR_SANITIZE=address,undefined -DCMAKE_BUILD_TYPE=RelWithDebInfo
	$(BIN)/cmake --build build/sanitize --parallel
	build/sanitize/btr_check
	build/sanitize/btr_threads
	$(BIN)/cmake -S . -B build/sanitize-threads -DBTR_SANITIZE=thread -DCMAKE_BUILD_TYPE=RelWithDebInfo
	$(BIN)/cmake --build build/sanitize-threads --parallel --target btr_threads
	build/sanitize-threads/btr_threads

# Every command of the README, small sizes where a command would take minutes.
readme: install
	$(BIN)/python tests/readme_commands.py README.md

check-all: lint sanitize readme
	HYPOTHESIS_PROFILE=full $(BIN)/python -m pytest tests
	$(BIN)/python -m pytest benchmarks --benchmark-disable

clean:
	rm -rf $(VENV) build $(REPORTS) btr_kernels/*.so
