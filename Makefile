# Everything that is done with this project, on a machine with Python (3.11 or newer), pip and make.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# A virtual environment knows its own path, so one that came along with a moved folder is made anew.
VENV := .venv/made-here-$(shell pwd | cksum | cut -d' ' -f1)
RUN := .venv/installed-to-run
DEVELOP := .venv/installed-to-develop
NODE := tests/node/node_modules/installed
PIP := $(PYTHON) -m pip --python .venv/bin/python --disable-pip-version-check --quiet --no-input

.DEFAULT_GOAL := help
.PHONY: help run test check bench faults documents clean rabbitmq wrk

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(RUN) rabbitmq ## Run the whole system on this machine until Ctrl-C (FPSO_PORT=8088)
	@.venv/bin/python -m infra.local.supervisor

test: $(DEVELOP) $(NODE) rabbitmq ## Run all tests, or some: make test ARGS="tests/domain -x"
	@.venv/bin/python -m pytest -n logical --maxprocesses=4 --durations=15 $(ARGS)

check: $(DEVELOP) ## Lint, types, import rules; no released event broken, no document stale
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python -m infra.documents --check

bench: $(DEVELOP) rabbitmq wrk ## Measure, each figure beside its reference, into benchmarks/results.json
	@.venv/bin/python -m benchmarks $(ARGS)

faults: $(DEVELOP) rabbitmq ## Random faults under load, then every promise: make faults MINUTES=30 SEED=
	@command -v faketime >/dev/null || sh infra/local/apt-install.sh faketime >&2 || true
	@.venv/bin/python -m tests.faults --minutes $(or $(MINUTES),5) --seed "$(SEED)" $(ARGS)

documents: $(DEVELOP) ## Write anew what is made of the code: OpenAPI, AsyncAPI, docs/events.md, schemas
	@.venv/bin/python -m infra.documents

clean: ## Remove everything that was made here: .venv, .fpso with all data, caches
	@$(or $(PYTHON),python3) -m infra.local.clean
	@rm -rf .venv .fpso-faults tests/node/node_modules build *.egg-info .coverage* htmlcov .mypy_cache .ruff_cache \
		.pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

rabbitmq:
	@sh infra/local/install-rabbitmq.sh

wrk:
	@command -v wrk >/dev/null || reason=$$(sh infra/local/apt-install.sh wrk) || \
		echo "wrk is not installed, and $$reason: what is measured with it cannot be." >&2

$(VENV):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; this is $$(python3 --version 2>&1). \
	Say where one is: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Making .venv with $$($(PYTHON) --version) ..."
	@rm -rf .venv
	@$(PYTHON) -m venv --without-pip .venv # pip works from outside: Debian's venv cannot bring one
	@touch $@

$(RUN): $(VENV) requirements-local.txt pyproject.toml
	@echo "Installing what the system needs (requirements-local.txt) ..."
	@$(PIP) install --root-user-action ignore --require-hashes -r requirements-local.txt
	@$(PIP) install --root-user-action ignore --no-deps --no-build-isolation --editable .
	@touch $@

$(DEVELOP): $(VENV) requirements-dev.txt pyproject.toml
	@echo "Installing what tests and checks need (requirements-dev.txt) ..."
	@$(PIP) install --root-user-action ignore --require-hashes -r requirements-dev.txt
	@$(PIP) install --root-user-action ignore --no-deps --no-build-isolation --editable .
	@touch $@ $(RUN)

$(NODE): tests/node/package-lock.json tests/node/.npmrc | $(DEVELOP)
	@echo "Installing what tests need of Node.js (tests/node/package-lock.json) ..."
	@cd tests/node && ../../.venv/bin/npm ci --loglevel error
	@touch $@
