# Every target makes the virtual environment that it needs. On the machine: Python 3.11+, make, nothing else.
#
#   make test PYTHON=python3.12 VENV=.venv-3.12     another interpreter, an environment of its own
#   make test ARGS='-k retry -x'                    arguments for pytest (test, test-all, coverage, lowest) or `make demo`

PYTHON ?= python3
VENV   := .venv
ARGS   :=
BASE   :=

LOWEST := .venv-lowest
BACKENDS := .venv-backends
PHOENIX := .venv-phoenix
BROWSER := .venv-browser
FLEET := .venv-fleet
BENCH := .venv-bench
AUDIT := .venv-audit
AIOHTTP := .venv-aiohttp
RUN    := $(VENV)/bin/python -m
# It looks for lamella with the python on the path, and without the variable for a newer version of itself on the index.
PYRIGHT := PATH="$(VENV)/bin:$$PATH" PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(RUN) pyright
# As many processes as there are cores. ARGS='-n 0' runs the tests in one, for a debugger.
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 8 --dist worksteal
EVERY_TEST := -m '' --hypothesis-profile thorough

# No target depends on what the user has set for other programs. Installations keep what they need: proxies,
# certificates, package indexes. Without a locale Python takes UTF-8, also for the path of the checkout.
unexport $(filter-out PYTHON,$(filter BANDIT_% COVERAGE_% HYPOTHESIS_% LAMELLA_% LC_% MAESN_% MYPY% NODE_% OTEL_% \
	PIP_AUDIT_% PYRIGHT_% PYTEST_% PYTHON% RUFF_%,$(.VARIABLES))) LANG LANGUAGE PIP_PREFIX PIP_TARGET PIP_USER SSLKEYLOGFILE
# The benchmarks measure libraries that take a proxy from the environment, at servers on this machine.
DIRECT := NO_PROXY='*' no_proxy='*'

# What an environment was made for. One that came along in a copy of the checkout would test the original's code.
export MADE_FOR := $(CURDIR) $(PYTHON)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint format types audit coverage lowest backends browser fleet bench bench-against bench-profile bench-storm bench-batch bench-sync soak aiohttp-tests picture clean FORCE

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s%s\n", $$1, $$2 }' Makefile
	@echo "One file: make test ARGS=tests/layers/test_retry.py   One test: make test ARGS='-n 0 -k refused_at_random'"

demo: $(VENV)/.installed  ## Show lamella at work: `lamella sync --sandbox`
	@# By -m: the first line of a script in bin cannot hold every path.
	@$(RUN) lamella sync --sandbox $(ARGS)

test: $(VENV)/.installed  ## Run the tests without the slow ones: two minutes
	@$(RUN) pytest $(SIDE_BY_SIDE) $(ARGS)

test-all: $(VENV)/.installed  ## Run all tests, with every cell of the fault matrix and more random examples
	@$(RUN) pytest $(SIDE_BY_SIDE) $(EVERY_TEST) $(ARGS)

lint: $(VENV)/.installed  ## Check style, formatting, and which module imports which
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@$(VENV)/bin/python -c 'from importlinter.cli import lint_imports_command as run; run()' --no-cache --no-logo

format: $(VENV)/.installed  ## Format the code and fix what ruff can fix
	@$(RUN) ruff check --fix
	@$(RUN) ruff format

types: $(VENV)/.installed  ## Check the types, and that each public name has one
	@$(RUN) mypy
	@$(PYRIGHT) src
	@# It lists every module: show that only if a type is missing.
	@found=$$($(PYRIGHT) --verifytypes lamella --ignoreexternal) || { echo "$$found"; exit 1; }

audit: $(AUDIT)/.installed  ## Look for known holes: bandit on the code, pip-audit on the packages
	@$(AUDIT)/bin/python scripts/audit.py $(ARGS)

coverage: $(VENV)/.installed  ## Run all tests and show which lines they miss
	@# The plugin imports lamella as pytest starts: only a run from outside pytest sees those lines.
	@$(RUN) coverage run -m pytest $(EVERY_TEST) $(ARGS)
	@$(RUN) coverage report

lowest: $(LOWEST)/.installed  ## Run the tests with the lowest versions that pyproject.toml allows
	@echo "lowest versions:" $$(cat $(LOWEST)/constraints.txt)
	@$(LOWEST)/bin/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

backends: $(BACKENDS)/.installed $(PHOENIX)/.installed  ## Run the tests against a real Phoenix and Prometheus
	@$(BACKENDS)/bin/python scripts/backends.py --phoenix $(PHOENIX)/bin/python -- \
		$(BACKENDS)/bin/python -m pytest --confcutdir tests/backends tests/backends $(ARGS)

browser: $(BROWSER)/.installed  ## Run the tests of the page of --report in a headless Chromium
	@$(BROWSER)/bin/python tests/browser/with_chromium.py \
		$(BROWSER)/bin/python -m pytest --confcutdir tests/browser tests/browser $(ARGS)

fleet: $(FLEET)/.installed  ## Run the tests of stores that processes share, against a real Redis
	@$(FLEET)/bin/python -m scripts.fleet -- \
		$(FLEET)/bin/python -m pytest --confcutdir tests/fleet tests/fleet $(ARGS)

bench: $(BENCH)/.installed  ## Measure what lamella costs, beside other libraries: ten minutes (ARGS=--quick: two)
	@$(DIRECT) $(BENCH)/bin/python benchmarks/cost.py $(ARGS)

bench-against: $(VENV)/.installed  ## Compare what a call costs here and in another commit: BASE=main (ARGS=--quick)
	@$(if $(BASE),,echo 'BASE must be a commit or branch to compare with: make bench-against BASE=main' >&2; exit 2;) \
		$(DIRECT) $(VENV)/bin/python benchmarks/against.py $(ARGS) -- '$(BASE)'

bench-profile: $(VENV)/.installed  ## Show which code takes the CPU of a call: half a minute
	@$(DIRECT) $(VENV)/bin/python benchmarks/shares.py $(ARGS)

bench-storm: $(BENCH)/.installed  ## Measure lamella beside other libraries in storms: half an hour
	@$(DIRECT) $(BENCH)/bin/python benchmarks/storm.py $(ARGS)

bench-batch: $(BENCH)/.installed  ## Measure a batch of a million items beside other libraries: some minutes
	@$(DIRECT) $(BENCH)/bin/python benchmarks/batch.py $(ARGS)

bench-sync: $(VENV)/.installed  ## Measure a sync of 300,000 records beside one written by hand: two minutes
	@$(DIRECT) $(VENV)/bin/python benchmarks/sync.py $(ARGS)

soak: $(BENCH)/.installed  ## Sync for ten minutes under random faults, and see whether anything grows or is left
	@$(DIRECT) $(BENCH)/bin/python benchmarks/soak.py $(ARGS)

aiohttp-tests: $(AIOHTTP)/.installed  ## Run aiohttp's own client tests with the stack in each session: ten minutes
	@$(AIOHTTP)/bin/python scripts/aiohttp_tests.py $(ARGS)

picture: $(VENV)/.installed  ## Draw docs/sync.svg and docs/throttle.svg anew
	@$(VENV)/bin/python scripts/picture.py docs/sync.svg
	@$(VENV)/bin/python scripts/throttle_plot.py docs/throttle.svg

clean:  ## Remove environments, caches, builds and reports
	rm -rf .venv .venv-* build dist htmlcov .coverage .coverage.* coverage.xml
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml Makefile scripts/make_venv.sh
	@sh scripts/make_venv.sh "$(PYTHON)" $(VENV)
	@echo "lamella: installing the package and its tools into $(VENV)"
	@$(RUN) pip install --quiet --disable-pip-version-check --editable '.[dev,lint]'
	@printf '%s\n' "$$MADE_FOR" >$@

$(LOWEST)/.installed: pyproject.toml Makefile scripts/make_venv.sh scripts/lowest_versions.py
	@# Never kept: a package from an earlier, higher set could hide a bound that is too low.
	@rm -rf $(LOWEST)
	@sh scripts/make_venv.sh "$(PYTHON)" $(LOWEST)
	@$(LOWEST)/bin/python scripts/lowest_versions.py >$(LOWEST)/constraints.txt
	@echo "lamella: installing the lowest versions into $(LOWEST)"
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(LOWEST)/constraints.txt --editable '.[dev]'
	@printf '%s\n' "$$MADE_FOR" >$@

$(PHOENIX)/.installed: tests/backends/phoenix.txt scripts/make_venv.sh
	@sh scripts/make_venv.sh "$(PYTHON)" $(PHOENIX)
	@echo "lamella: installing Phoenix into $(PHOENIX), which takes some minutes"
	@# Its modules are compiled as they are used: most of them never are.
	@$(PHOENIX)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
		--requirement tests/backends/phoenix.txt
	@printf '%s\n' "$$MADE_FOR" >$@

# The package with an extra, in an environment of its own: $(1) where, $(2) the extra, $(3) what comes with it.
define install_extra
$(1)/.installed: pyproject.toml Makefile scripts/make_venv.sh
	@sh scripts/make_venv.sh "$$(PYTHON)" $(1)
	@echo "lamella: installing the package and $(3) into $(1)"
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$(2)]'
	@printf '%s\n' "$$$$MADE_FOR" >$$@
endef
$(eval $(call install_extra,$(BACKENDS),backends,its exporters))
$(eval $(call install_extra,$(BROWSER),browser,selenium))
$(eval $(call install_extra,$(FLEET),fleet,redis-py))
$(eval $(call install_extra,$(BENCH),bench,its peers))
$(eval $(call install_extra,$(AUDIT),audit,bandit and pip-audit))
$(eval $(call install_extra,$(AIOHTTP),aiohttp-tests,what aiohttp's tests need))

# An environment made for another place or interpreter, or one whose interpreter is gone, is out of date.
define remake_unless_made_for_this
ifneq ($$(file <$(1)/.installed)$$(if $$(realpath $(1)/bin/python),, no python),$$(MADE_FOR))
$(1)/.installed: FORCE
endif
endef
$(foreach venv,$(VENV) $(LOWEST) $(BACKENDS) $(PHOENIX) $(BROWSER) $(FLEET) $(BENCH) $(AUDIT) $(AIOHTTP),$(eval $(call remake_unless_made_for_this,$(venv))))
