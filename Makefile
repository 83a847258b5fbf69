# make demo    the main job on this machine, from nothing          make check   ruff, mypy and the style tests
# make test    the tests, in a quarter of an hour                   make bench   the figures, with the peers that are installed
# make test-slow      those that take long: beside the peers, killed at many moments, under load, for other processors
# make test-machines  those that boot virtual machines
# make test-guests    the container tests in guests of our own, with Debian's kernels, version 2 of control groups and systemd
SHELL := /bin/bash
.DEFAULT_GOAL := help
unexport PYTHONDONTWRITEBYTECODE
PYTHON := .venv/bin/python
# What the installed command is built from; the package itself is installed as a link to src/.
BUILT_FROM := pyproject.toml README.md tools/venv.sh $(wildcard hatch_build.py native/*)
ARGUMENTS ?=
# A test module runs in one of so many processes.
PROCESSES ?= 2
IN_PROCESSES = -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-slow test-machines test-guests test-unit check bench bench-write recording reference packages packages-bench packages-demo packages-test clean

help:
	@sed -n 's/^# \(make.*\)/\1/p' Makefile

packages: packages-test

packages-demo:
	@bash tools/packages.sh demo

packages-bench:
	@bash tools/packages.sh bench

packages-test:
	@bash tools/packages.sh test

.venv/demo.stamp: $(BUILT_FROM) | packages-demo
	@echo "Making .venv and installing Bulle into it"
	@bash tools/venv.sh
	@touch $@

.venv/dev.stamp: $(BUILT_FROM) | packages-test
	@echo "Making .venv and installing Bulle and its tools into it"
	@bash tools/venv.sh dev
	@touch $@ .venv/demo.stamp

demo: packages-demo .venv/demo.stamp
	@$(PYTHON) demo/demo.py

test: packages-test .venv/dev.stamp
	@$(PYTHON) -m pytest -m "not slow and not machines and not guests" $(IN_PROCESSES) $(ARGUMENTS)

test-slow: packages-test .venv/dev.stamp
	@$(PYTHON) -m pytest -m "slow and not machines and not guests" $(IN_PROCESSES) $(ARGUMENTS)

test-machines: packages-test .venv/dev.stamp
	@$(PYTHON) -m pytest -m machines $(IN_PROCESSES) $(ARGUMENTS)

# Guests of one processor each, all at once.
test-guests: packages-test .venv/dev.stamp
	@$(PYTHON) tools/test_guests.py $(ARGUMENTS)

test-unit: .venv/dev.stamp
	@$(PYTHON) -m pytest tests/unit tests/style $(ARGUMENTS)

check: .venv/dev.stamp
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy
	@$(PYTHON) -m pytest tests/style $(ARGUMENTS)

bench: packages-bench .venv/dev.stamp
	@$(PYTHON) bench/run.py $(ARGUMENTS)

bench-write: packages-bench .venv/dev.stamp
	@$(PYTHON) bench/run.py --write docs/performance.md $(ARGUMENTS)

reference: .venv/dev.stamp
	@$(PYTHON) tools/reference.py > docs/reference.md.new && mv docs/reference.md.new docs/reference.md

recording: packages-demo .venv/dev.stamp
	@$(PYTHON) tools/recording.py docs/images/apps.svg demo/apps.commands examples/fail-over

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
