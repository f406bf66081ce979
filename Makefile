# One command for each thing that people do here. Options for the program go in ARGS: make chat ARGS="--port 7861"
PYTHON ?= python3
ARGS ?=
IN_VENV := .venv/bin/python

.PHONY: chat train convert test test-all lint fix bench clean

chat:  ## install what is missing and serve the chat on http://127.0.0.1:7860
	@$(PYTHON) scripts/setup_env.py chat
	@exec $(IN_VENV) app.py $(ARGS)

train:  ## fine-tune by a recipe: make train ARGS="smollm2-quotes"
	@$(PYTHON) scripts/setup_env.py train
	@exec $(IN_VENV) train/qlora.py $(or $(ARGS),smollm2-quotes)

convert:  ## turn the newest run into a GGUF: make convert ARGS="--quant q4,q5"
	@$(PYTHON) scripts/setup_env.py convert
	@exec $(IN_VENV) convert/to_gguf.py $(ARGS)

test:  ## install what is missing, check style and types, run every test that this machine can run
	@$(PYTHON) scripts/setup_env.py test
	@$(MAKE) --no-print-directory style
	@$(MAKE) --no-print-directory -j2 types run-tests

# A page is asked as a person would, with a stop in the middle of a reply: nothing else may take its cores then.
.PHONY: run-tests
run-tests:
	$(IN_VENV) -m pytest -m 'unit or integration' -rs -n auto --dist loadfile --no-loadscope-reorder --durations=10 $(ARGS) || [ $$? = 5 ]
	$(IN_VENV) -m pytest -m 'e2e or gpu' -rs --durations=10 $(ARGS) || [ $$? = 5 ]

test-all:  ## the same, with what many users are promised tried at its whole length (about half an hour more)
	@TUNE2CHAT_TEST_ALL=1 $(MAKE) --no-print-directory test ARGS="--timeout 3600 $(ARGS)"

lint:  ## check style and types
	@$(PYTHON) scripts/setup_env.py lint
	@$(MAKE) --no-print-directory style types

.PHONY: style types
style:
	$(IN_VENV) -m ruff check
	$(IN_VENV) -m ruff format --check
types:
	$(IN_VENV) -m mypy

fix:  ## repair what the linter can repair
	@$(PYTHON) scripts/setup_env.py lint
	$(IN_VENV) -m ruff check --fix
	$(IN_VENV) -m ruff format

bench:  ## measure the chat's speed on this machine, for one user and for many, in some twenty minutes
	@$(PYTHON) scripts/setup_env.py lint
	$(IN_VENV) -m bench.chat $(ARGS)

clean:  ## remove everything that these commands made, except your models/ and outputs/
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
