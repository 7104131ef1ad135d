# What a contributor runs. .ci/run and .github/workflows/ci.yml run the same.

export OMP_WAIT_POLICY = PASSIVE

.PHONY: help check lint types fast test docs site lowest

help:  ## List these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

check: lint types fast  ## Check a change in a minute: lint, types and fast tests

lint:  ## Check the code's style and format
	ruff check .
	ruff format --check .

types:  ## Check the package's types
	mypy

fast:  ## Run the tests that are not marked slow
	python -m pytest -m "not slow"

test:  ## Run every test
	python -m pytest

docs:  ## Run the code of the teaching pages and rewrite their outputs and figures
	python docs/build.py

site:  ## Build the site with the API reference into build/site (needs the extra site)
	python -m sphinx -W -q -b html docs build/site

lowest:  ## Run the fast tests with the lowest version of every requirement (needs Python 3.11)
	.ci/lowest
