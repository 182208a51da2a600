# The contract: `make run`, `make test`, `make bench`. Each works from an empty clone.
VENV := .venv
PY := $(VENV)/bin/python
ACCELERATOR := $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)

.PHONY: run test lint bench lock clean

run: $(VENV)/.$(ACCELERATOR)
	@$(PY) manage.py up

test: $(VENV)/.dev
	deploy/install-test-tools
	$(PY) -m pytest tests $(ARGS)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy mmserve registry routing inference

bench: $(VENV)/.dev
	$(PY) -m tests.bench.run $(ARGS)

# A stamp for each set of packages: a changed lock installs anew.
$(VENV)/.%: deploy/requirements/%.txt deploy/install
	deploy/install $*
	@touch $@

lock: $(VENV)/.dev
	deploy/lock

clean:
	rm -rf $(VENV) .venv-peers
