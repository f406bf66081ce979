"""Bring the app to a Hugging Face Space: python publish/space.py USER/NAME [--model models/x.gguf]"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as a script: import from the repository's root, not from this folder
    sys.path[0] = str(ROOT)

from core.command import Parser, missing, run  # noqa: E402

try:
    from core.errors import ChatError
    from core.machine import human_size
    from publish.contents import (
        UNKNOWN_REVISION,
        Chosen,
        Repository,
        choose,
        model_repository,
        placed,
        space_repository,
    )
except ModuleNotFoundError as error:
    sys.exit(missing(error))


def main(argv: list[str] | None = None) -> int:
    """Read the options and do it; returns the exit code."""
    parser = Parser(
        prog="python publish/space.py",
        description="Bring the app to a Hugging Face Space, and a model to a repository of its own.",
    )
    parser.add_argument("space", metavar="USER/NAME", help="the Space; USER may be an organisation")
    parser.add_argument("--model", metavar="FILE.gguf", help="the model that it begins with, to be uploaded")
    parser.add_argument("--private", action="store_true", help="seen by you only")
    parser.add_argument("--dry-run", action="store_true", help="list every file with its size, send nothing")
    given = parser.parse_args(argv)
    if (problem := name_problem(given.space)) is not None:
        parser.error(problem)

    def work() -> int:
        chosen = choose(ROOT, given.model)
        if given.dry_run:
            return dry_run(given.space, chosen, given.private)
        return publish(given.space, chosen, given.private)

    return run(work, "Stopped. The same command goes on; what is uploaded stays.")


def name_problem(repo_id: str) -> str | None:
    """Say what is wrong with the name of a Space; None if the hub would take it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if repo_id.count("/") != 1:
        return f"{repo_id!r} is not USER/NAME"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        return " ".join(str(error).split()).rstrip(".")
    return None


def plan(space: str, chosen: Chosen, private: bool, revision: str) -> tuple[Repository | None, Repository]:
    """Return the model's repository, if there is a file to bring, and the Space's."""
    model = model_repository(space.split("/")[0], chosen) if chosen.file else None
    there = placed(chosen, model, revision) if model else chosen
    # The builder has no token: it can't fetch a private model.
    return model, space_repository(ROOT, space, there, preload=not (private and model))


def dry_run(space: str, chosen: Chosen, private: bool) -> int:
    """List what would be uploaded."""
    for repository in plan(space, chosen, private, UNKNOWN_REVISION):
        if repository:
            sizes = repository.sizes()
            total = human_size(sum(sizes.values()))
            print(f"{repository.kind} {repository.repo_id}: {len(sizes)} files, {total}")
            for name, size in sizes.items():
                print(f"{size:>15,}  {name}")
    print("Nothing was sent. The same command without --dry-run does it.")
    return 0


def publish(space: str, chosen: Chosen, private: bool) -> int:
    """Make both repositories and fill them; what is there already is not sent again."""
    from publish.hub import sign_in

    hub = sign_in()
    hub.check_owner(space.split("/")[0])
    model, app = plan(space, chosen, private, UNKNOWN_REVISION)
    wanted = [repository for repository in (app, model) if repository]
    there = {each.repo_id + each.kind: hub.look(each) for each in wanted}  # both, before anything is made
    for each in wanted:
        if there[each.repo_id + each.kind] is None:
            hub.create(each, private)
    if model:
        print(f"Uploading {human_size(sum(model.sizes().values()))} to {model.repo_id}.", flush=True)
        revision = hub.commit(model, [], "Model of tune2chat")
        _, app = plan(space, chosen, private, revision)
        print(f"The model is at {hub.api.endpoint}/{model.repo_id}", flush=True)
    hub.commit(app, there[app.repo_id + app.kind] or [], "App of tune2chat")
    page = f"{hub.api.endpoint}/spaces/{space}"
    if model and private:
        print(
            f"The model is private: give the Space a token that may read, as secret HF_TOKEN: {page}/settings"
        )
    print(f"The Space is at {page}; it is built within minutes.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ChatError as error:
        sys.exit(f"error: {error}")
