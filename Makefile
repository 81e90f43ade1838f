# `make demo` and `make test` need nothing but Python 3.11 and a package registry: the first call builds .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PROTOS := $(wildcard federation/wire/*.proto)
DEPLOY = $(shell grep -rl 'mark\.deploy' tests --include='test_*.py')
.DEFAULT_GOAL := help
.PHONY: help demo test check docs mutants gpu proto clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

demo: $(STAMP) ## a whole federation on this machine: authority, agency, four institutions; prints the gain
	@$(BIN)/sovfed demo

test: check ## the checks, then every test
	$(BIN)/pytest -n 2 -m "not deploy"
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m deploy $(DEPLOY)

check: $(STAMP) ## lint, format, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_imports.py

# Not --quiet: warnings would no longer count.
docs: $(STAMP) ## the documents as a site, in build/docs: strict, and nothing in it is fetched from elsewhere
	$(BIN)/mkdocs build

mutants: $(STAMP) ## break each security decision in a copy: some test must notice (long)
	$(BIN)/python -m tests.mutants

# Nothing here is skipped on such a machine; elsewhere `sovfed bench gpu --device cpu` runs the same code.
gpu: $(STAMP) ## on a machine with an NVIDIA or AMD GPU: its tests, and tokens a second in build/gpu-*.json
	mkdir -p build
	$(BIN)/pytest -q -n 0 tests/clients/training tests/clients/dpsgd
	$(BIN)/sovfed bench gpu --quick --device cuda --precision bf16 --json build/gpu-bf16.json
	$(BIN)/sovfed bench gpu --quick --device cuda --precision tf32 --json build/gpu-tf32.json

proto: $(STAMP) ## regenerate the code of federation/wire/*.proto
	$(BIN)/python -m grpc_tools.protoc -I.src --python_out=.src --pyi_out=.src $(PROTOS:%=sovfed/%)

clean: ## remove .venv and everything that tools leave behind
	rm -rf .venv build dist .bench/build .src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Reinstalled only when the requirements change; the package itself is editable. The extra `dev` brings all but the
# distribution sovfed-bench, whose files are in the tree.
$(STAMP): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
