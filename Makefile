# One word each; every target works on a bare Debian machine: tools/setup.sh installs what it
# needs, once, into .venv.  To have a smaller torch than the default, set PIP_EXTRA_INDEX_URL
# to an index with one.
.PHONY: help run plugins plugins-cuda plugins-hip test test-targets test-serving lint bench clean
.DEFAULT_GOAL := help
.SUFFIXES:

QUESTION ?= What is the capital of France?
# pytest's workers.  A worker compiles what its tests need: more than cores is slower.
JOBS ?= 2
BENCH_ARGS ?=

bin := .venv/bin
demo := .cache/demo/SmolLM2-135M-Instruct.Q4_1.gguf
export LLMIR_CACHE := $(CURDIR)/.cache/llmir

help:
	@echo 'make run           fetch the demo model, compile it, ask it: $(QUESTION)'
	@echo 'make plugins       compile the kernels again, those that changed: C, Vulkan, CUDA, HIP'
	@echo 'make plugins-cuda  those of CUDA, and assemble them with ptxas: registers and spills'
	@echo 'make plugins-hip   those of HIP'
	@echo 'make test          all tests but those of the next two'
	@echo 'make test-targets  the slow compiles, for every target'
	@echo 'make test-serving  servers under load and long random runs'
	@echo 'make lint          ruff and mypy'
	@echo 'make bench         how fast the demo model is on this machine'
	@echo 'make clean         remove all that these targets made'

run:
	@tools/setup.sh compile plugins
	@$(bin)/python plugins/build.py
	@$(bin)/python tools/fetch_demo.py >/dev/null
	@$(bin)/llmir compile $(demo)
	@echo && echo '> $(QUESTION)'
	@$(bin)/llmir run $(demo) '$(QUESTION)' --temperature 0

plugins:
	@tools/setup.sh plugins glslang
	@$(bin)/python plugins/build.py

plugins-cuda:
	@tools/setup.sh plugins ptxas
	@$(bin)/python plugins/build_gpu.py cuda --check .cache/ptxas/bin/ptxas

plugins-hip:
	@tools/setup.sh plugins
	@$(bin)/python plugins/build_gpu.py hip

# The demo model is compiled before the tests, so that two workers do not both compile it.
test:
	@tools/setup.sh dev vulkan qemu glslang
	@$(bin)/python plugins/build.py
	@$(bin)/python tools/fetch_demo.py >/dev/null
	@$(bin)/llmir compile $(demo)
	$(bin)/pytest -m 'not targets and not serving' -n $(JOBS) --dist worksteal

test-targets:
	@tools/setup.sh dev vulkan qemu glslang ptxas
	@$(bin)/python plugins/build.py
	@$(bin)/python tools/fetch_demo.py >/dev/null
	$(bin)/pytest -m targets -n $(JOBS) --dist worksteal

test-serving:
	@tools/setup.sh dev chromium
	@$(bin)/python plugins/build.py
	@$(bin)/python tools/fetch_demo.py >/dev/null
	@$(bin)/llmir compile $(demo)
	$(bin)/pytest -m serving -n $(JOBS) --dist worksteal

lint:
	@tools/setup.sh dev
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy

bench:
	@tools/setup.sh compile plugins
	@$(bin)/python plugins/build.py
	@$(bin)/python tools/fetch_demo.py >/dev/null
	$(bin)/llmir bench latency $(demo) $(BENCH_ARGS)

clean:
	rm -rf .venv .cache llmir/objects build dist *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
