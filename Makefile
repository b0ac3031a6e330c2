# Two commands do everything on a fresh Debian or Ubuntu: `make mnist` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: mnist alexnet test slow demo setup peers system clean

mnist: setup  ## run the plan plans/mnist.md: ends with pull requests whose numbers were measured
	$(BIN)/orchestrate run plans/mnist.md

alexnet: peers  ## run the plan plans/alexnet-quick.md, the short form of plans/alexnet.md: half an hour on two threads
	$(BIN)/orchestrate run plans/alexnet-quick.md --again

test: setup  ## lint, types, import contracts, plans, tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/orchestrate lint
	$(BIN)/pytest -n 2 --dist worksteal

slow: setup  ## what `make test` leaves out, far longer: planted errors, each kill alone, streams cut at every byte
	$(BIN)/pytest -m slow

demo: setup  ## play a recorded run again, offline: a language model adds a schedule to mlcore, and is reviewed
	$(BIN)/orchestrate demo plans/recordings/warmup.jsonl

setup: system .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Odyssey needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

peers: setup .venv/peers  ## with PyTorch, that mlcore is compared with

.venv/peers: .venv/installed
	$(BIN)/pip install --quiet --editable '.[dev,peers]'
	@touch $@

# The sandbox. As root it is installed; anyone else is told the one command to type.
system:
	@command -v bwrap >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq bubblewrap; \
	else echo "Odyssey runs agents' code in bubblewrap. Install it with: sudo apt-get install bubblewrap" >&2; exit 1; fi

clean:
	rm -rf .venv build *.egg-info
