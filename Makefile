# `make demo` and `make test` start from nothing but python3, make and a C++ compiler.
PYTHON ?= python3
BIN := .venv/bin
# A file at a time on each core, in the order of tests/conftest.py.
CORES := -n auto --dist loadfile --no-loadscope-reorder
CPP := $(shell git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.cpp' 'tests/*.h')
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.cpp csrc/*/*)

.PHONY: help build demo test test-all lint format bench speeds gpu package clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

build: .venv/built  ## the environment and the extension, in place

# torch first: the build needs it, and isolation would install it twice.
.venv/torch:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install 'setuptools>=77' wheel 'pybind11>=2.13' ninja numpy $(or $(TORCH),torch)
	@touch $@

.venv/built: .venv/torch $(SOURCES)
	$(BIN)/pip install --no-build-isolation -e '.[demo,test,bench,lint]'
	@touch $@

demo: build  ## the main job: train, compress and compare on real images
	$(BIN)/simmim demo $(ARGS)

test: build  ## the tests, a few minutes; a file at a time on each core
	$(BIN)/python -m pytest $(CORES) $(ARGS)

test-all: build  ## with the long ones: kills, architectures, every CPU capability
	$(BIN)/python -m pytest $(CORES) -m '' $(ARGS)
	@for capability in portable avx2; do \
	  SIMMIM_CPU_CAPABILITY=$$capability $(BIN)/python -m pytest -q tests/test_ops.py || exit 1; done

lint: build  ## ruff, mypy --strict and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: build  ## rewrite in the house style
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: build  ## every operator against its baselines
	@mkdir -p results
	$(BIN)/python -m pytest benchmarks -s --benchmark-json=results/bench.json $(ARGS)
	$(BIN)/python benchmarks/summary.py results/bench.json

# Ten minutes on a quiet machine with AMX; OMP_NUM_THREADS as the defaults are for one thread, and
# torch's bfloat16 products without what the capability lacks. The defaults of avx2, avx512 and
# avx512_bf16 are the slower of two machines': benchmarks/slower.py.
speeds: build  ## measure the default speed tables of sparse layers anew
	@for capability in portable avx2 avx512 avx512_bf16 amx; do \
	  case $$capability in avx512) isa=AVX512_CORE_VNNI;; avx512_bf16) isa=AVX512_CORE_BF16;; \
	    *) isa=DEFAULT;; esac; \
	  SIMMIM_CPU_CAPABILITY=$$capability ONEDNN_MAX_CPU_ISA=$$isa OMP_NUM_THREADS=1 \
	  $(BIN)/simmim tune --output simmim_ext/nn/speeds/$$capability.json || exit 1; done

gpu:  ## on a machine with a CUDA GPU: build, test, measure; STAGES=build,tests,bench,sanitizer
	$(PYTHON) benchmarks/gpu/run.py $(if $(STAGES),--stages $(STAGES)) $(ARGS)

package: build  ## sdist and wheel
	$(BIN)/pip install build && $(BIN)/python -m build --no-isolation

clean:  ## all that make made
	rm -rf .venv build dist *.egg-info simmim_ext/_build.py simmim_ext/_C.*.so
