# Every target creates the virtual environment that it needs. Requirements: Python 3.11+ and make.
#
#   make test PYTHON=python3.12 VENV=.venv-3.12     another interpreter in its own environment
#   make test ARGS='-k retry -x'                    arguments for pytest (test, test-all, coverage, lowest) or `make demo`

PYTHON ?= python3
VENV   := .venv
ARGS   :=
BASE   :=

LOWEST := .venv-lowest
BACKENDS := .venv-backends
PHOENIX := .venv-phoenix
BROWSER := .venv-browser
DASK := .venv-dask
FLEET := .venv-fleet
BENCH := .venv-bench
AUDIT := .venv-audit
AIOHTTP := .venv-aiohttp
DOCS := .venv-docs
DIST := .venv-dist
# What a user may install beside the package.
EXTRAS := cli,oauth,parquet,postgres,redis,sdk
, := ,
RUN    := $(VENV)/bin/python -m
# Modules are compiled as they are used: most of them never are.
INSTALL := pip install --quiet --disable-pip-version-check --no-compile
# pyright finds lamella through the python on the path. The variable stops its check for a newer version.
PYRIGHT := PATH="$(VENV)/bin:$$PATH" PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(RUN) pyright
# Three processes for two cores (tests/selection.py). ARGS='-n 0' runs the tests in one, for a debugger.
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 8 --dist worksteal
EVERY_TEST := -m '' --hypothesis-profile thorough

# Targets ignore variables that the user has set for other programs. Installations keep proxies, certificates and package
# indexes. Without a locale Python uses UTF-8, also for the path of the checkout.
unexport $(filter-out PYTHON,$(filter BANDIT_% COVERAGE_% HYPOTHESIS_% LAMELLA_% LC_% MAESN_% MYPY% NODE_% OTEL_% \
	PIP_AUDIT_% PYRIGHT_% PYTEST_% PYTHON% RUFF_%,$(.VARIABLES))) LANG LANGUAGE PIP_PREFIX PIP_TARGET PIP_USER SSLKEYLOGFILE
# The benchmarks measure libraries that read a proxy from the environment, with local servers.
DIRECT := NO_PROXY='*' no_proxy='*'

# The checkout of an environment. An environment in a copied checkout would test the code of the original.
export MADE_FOR := $(CURDIR) $(PYTHON)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint format types docs dist audit coverage lowest backends browser dask test-fleet fleet bench bench-against bench-instructions bench-profile bench-storm bench-batch bench-sync bench-dask soak aiohttp-tests picture clean FORCE

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s%s\n", $$1, $$2 }' Makefile
	@echo "One file: make test ARGS=tests/layers/test_retry.py   One test: make test ARGS='-n 0 -k refused_at_random'"

demo: $(VENV)/.installed  ## Run a demonstration: `lamella sync --sandbox`
	@# With -m, because the first line of a script in bin cannot contain every path.
	@$(RUN) lamella sync --sandbox $(ARGS)

test: $(VENV)/.installed  ## Run all tests except slow ones and most of many cases: 100 seconds
	@$(RUN) pytest $(SIDE_BY_SIDE) $(ARGS)

test-all: $(VENV)/.installed  ## Run all tests, including the whole fault matrix and more random examples
	@$(RUN) pytest $(SIDE_BY_SIDE) $(EVERY_TEST) $(ARGS)

lint: $(VENV)/.installed  ## Check style, formatting, imports between modules, and the English of docs and docstrings
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@$(RUN) interrogate --quiet src
	@$(VENV)/bin/python -c 'from importlinter.cli import lint_imports_command as run; run()' --no-cache --no-logo
	@$(VENV)/bin/python scripts/prose/lint.py

format: $(VENV)/.installed  ## Format the code and apply ruff's fixes
	@$(RUN) ruff check --fix
	@$(RUN) ruff format

types: $(VENV)/.installed  ## Check types, and that each public name has one
	@$(RUN) mypy
	@$(PYRIGHT) src
	@# It lists every module; show the list only if a type is missing.
	@found=$$($(PYRIGHT) --verifytypes lamella --ignoreexternal) || { echo "$$found"; exit 1; }

docs: $(DOCS)/.installed  ## Build the documentation site into build/site; a broken link fails
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH= $(DOCS)/bin/python -m mkdocs build --quiet --strict
	@echo "the site: build/site/index.html"

dist: $(DIST)/.installed  ## Build the sdist and the wheel twice, compare them, and sync from an installation
	@$(DIST)/bin/python scripts/dist.py

audit: $(AUDIT)/.installed  ## Look for vulnerabilities: bandit on the code, pip-audit on the packages
	@$(AUDIT)/bin/python scripts/audit.py $(ARGS)

coverage: $(VENV)/.installed  ## Run all tests and show uncovered lines
	@# The plugin imports lamella when pytest starts, so coverage has to start before pytest.
	@$(RUN) coverage run -m pytest $(EVERY_TEST) $(ARGS)
	@$(RUN) coverage report

lowest: $(LOWEST)/.installed  ## Run the tests with the lowest versions that pyproject.toml allows
	@echo "lowest versions:" $$(cat $(LOWEST)/constraints.txt)
	@$(LOWEST)/bin/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

backends: $(BACKENDS)/.installed $(PHOENIX)/.installed  ## Run the tests against a real Phoenix and Prometheus
	@$(BACKENDS)/bin/python scripts/backends.py --phoenix $(PHOENIX)/bin/python -- \
		$(BACKENDS)/bin/python -m pytest --confcutdir tests/backends tests/backends $(ARGS)

browser: $(BROWSER)/.installed docs  ## Test the page of --report and the site in headless Chromium
	@$(BROWSER)/bin/python tests/browser/with_chromium.py \
		$(BROWSER)/bin/python -m pytest --confcutdir tests/browser tests/browser $(ARGS)

dask: $(DASK)/.installed  ## Test the sync on real Dask workers and on an S3 server (ARGS='-m slow': 20 random kills)
	@$(DASK)/bin/python -m pytest --confcutdir tests/dask tests/dask $(ARGS)

test-fleet: $(FLEET)/.installed  ## Test stores that processes share, against a real Redis and PostgreSQL
	@$(FLEET)/bin/python -m scripts.fleet -- \
		$(FLEET)/bin/python -m pytest --confcutdir tests/fleet tests/fleet $(ARGS)

bench: $(BENCH)/.installed  ## Measure the cost of a call, compared with other libraries: ten minutes (ARGS=--quick: two)
	@$(DIRECT) $(BENCH)/bin/python benchmarks/cost.py $(ARGS)

bench-against: $(VENV)/.installed  ## Compare the cost of a call with another commit: BASE=main (ARGS=--quick)
	@$(if $(BASE),,echo 'BASE must be a commit or branch to compare with: make bench-against BASE=main' >&2; exit 2;) \
		$(DIRECT) $(VENV)/bin/python benchmarks/against.py $(ARGS) -- '$(BASE)'

bench-instructions: $(BENCH)/.installed  ## Count the instructions of a call with valgrind, beside other libraries: minutes (BASE=main)
	@$(DIRECT) $(BENCH)/bin/python benchmarks/instructions.py $(if $(BASE),--base '$(BASE)') $(ARGS)

bench-profile: $(VENV)/.installed  ## Show the CPU time of a call by code: half a minute
	@$(DIRECT) $(VENV)/bin/python benchmarks/shares.py $(ARGS)

bench-storm: $(BENCH)/.installed  ## Compare lamella with other libraries under rate limits and an outage: half an hour
	@$(DIRECT) $(BENCH)/bin/python benchmarks/storm.py $(ARGS)

bench-batch: $(BENCH)/.installed  ## Compare a batch of a million items with other libraries: some minutes
	@$(DIRECT) $(BENCH)/bin/python benchmarks/batch.py $(ARGS)

bench-sync: $(BENCH)/.installed  ## Compare a sync of 300,000 records with other tools: ten minutes (ARGS=--quick: two)
	@$(DIRECT) $(BENCH)/bin/python benchmarks/sync.py $(ARGS)

bench-dask: $(DASK)/.installed  ## Compare a sync on Dask with the plain one, and measure its driver: five minutes
	@$(DIRECT) $(DASK)/bin/python benchmarks/on_dask.py $(ARGS)

fleet: $(FLEET)/.installed  ## Measure processes that share an account on a real Redis and PostgreSQL: half an hour (ARGS='--store redis': half)
	@$(DIRECT) $(FLEET)/bin/python benchmarks/fleet.py $(ARGS)

soak: $(BENCH)/.installed  ## Sync for ten minutes under random faults and check for leaks
	@$(DIRECT) $(BENCH)/bin/python benchmarks/soak.py $(ARGS)

aiohttp-tests: $(AIOHTTP)/.installed  ## Run aiohttp's client tests with the stack in each session: ten minutes
	@$(AIOHTTP)/bin/python scripts/aiohttp_tests.py $(ARGS)

picture: $(VENV)/.installed  ## Redraw docs/throttle.svg
	@$(VENV)/bin/python scripts/throttle_plot.py docs/throttle.svg

clean:  ## Remove environments, caches, builds and reports
	rm -rf .venv .venv-* build dist htmlcov .coverage .coverage.* coverage.xml
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml Makefile scripts/make_venv.sh
	@sh scripts/make_venv.sh "$(PYTHON)" $(VENV)
	@echo "lamella: installing the package and its tools into $(VENV)"
	@$(RUN) $(INSTALL) --editable '.[$(EXTRAS)]' --group dev --group lint
	@printf '%s\n' "$$MADE_FOR" >$@

$(LOWEST)/.installed: pyproject.toml Makefile scripts/make_venv.sh scripts/lowest_versions.py
	@# Never reused: a package of an earlier, higher set could hide a bound that is too low.
	@rm -rf $(LOWEST)
	@sh scripts/make_venv.sh "$(PYTHON)" $(LOWEST)
	@$(LOWEST)/bin/python scripts/lowest_versions.py >$(LOWEST)/constraints.txt
	@echo "lamella: installing the lowest versions into $(LOWEST)"
	@$(LOWEST)/bin/python -m $(INSTALL) --constraint $(LOWEST)/constraints.txt \
		--editable '.[$(EXTRAS)]' --group dev
	@printf '%s\n' "$$MADE_FOR" >$@

$(PHOENIX)/.installed: tests/backends/phoenix.txt scripts/make_venv.sh
	@sh scripts/make_venv.sh "$(PYTHON)" $(PHOENIX)
	@echo "lamella: installing Phoenix into $(PHOENIX), which takes some minutes"
	@$(PHOENIX)/bin/python -m $(INSTALL) --requirement tests/backends/phoenix.txt
	@printf '%s\n' "$$MADE_FOR" >$@

# The package with a dependency group, in an environment of its own: $(1) where, $(2) the group, $(3) the extras, $(4) what
# comes with it.
define install_group
$(1)/.installed: pyproject.toml Makefile scripts/make_venv.sh
	@sh scripts/make_venv.sh "$$(PYTHON)" $(1)
	@echo "lamella: installing the package and $(4) into $(1)"
	@$(1)/bin/python -m $(INSTALL) --editable '.[$(3)]' --group $(2)
	@printf '%s\n' "$$$$MADE_FOR" >$$@
endef
$(eval $(call install_group,$(BACKENDS),backends,cli$(,)sdk,its exporters))
$(eval $(call install_group,$(BROWSER),browser,cli$(,)sdk,selenium))
$(eval $(call install_group,$(DASK),dask-tests,cli$(,)dask$(,)parquet$(,)s3$(,)sdk,Dask))
$(eval $(call install_group,$(FLEET),fleet,cli$(,)postgres$(,)redis$(,)sdk,its stores))
$(eval $(call install_group,$(BENCH),bench,cli$(,)sdk,its peers))
$(eval $(call install_group,$(AUDIT),audit,$(EXTRAS),bandit and pip-audit))
$(eval $(call install_group,$(AIOHTTP),aiohttp-tests,sdk,the requirements of aiohttp's tests))
$(eval $(call install_group,$(DOCS),docs,cli,MkDocs))
$(eval $(call install_group,$(DIST),dist,cli,twine))

# An environment for another checkout or interpreter, or without its interpreter, is out of date.
define remake_unless_made_for_this
ifneq ($$(file <$(1)/.installed)$$(if $$(realpath $(1)/bin/python),, no python),$$(MADE_FOR))
$(1)/.installed: FORCE
endif
endef
$(foreach venv,$(VENV) $(LOWEST) $(BACKENDS) $(PHOENIX) $(BROWSER) $(DASK) $(FLEET) $(BENCH) $(AUDIT) $(AIOHTTP) $(DOCS) $(DIST),$(eval $(call remake_unless_made_for_this,$(venv))))
