"""The shape of the repository: who imports whom, what files are called, and how long they are."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("core", "chat", "train", "convert", "publish", "scripts", "bench", "studies", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
FILES.append(ROOT / "app.py")
APART = ("tests", "bench", "scripts", "studies")
PRODUCT = [path for path in FILES if path.relative_to(ROOT).parts[0] not in APART]

# What PyTorch for CUDA brings along: train/fused asks whether it is there before it imports it.
# On a ZeroGPU Space its builder brings `spaces`, and nothing else imports it.
BROUGHT = ("triton", "spaces")
# Which of our own modules a folder may import; bench, studies and tests may import anything.
ALLOWED = {
    "app.py": ("core.*", "chat", "chat.*"),
    "core": ("core", "core.*"),
    "chat": ("core.*", "chat", "chat.*"),
    "train": ("core.*", "train", "train.*"),
    "convert": ("core.*", "convert", "convert.*"),
    "publish": ("core.*", "publish", "publish.*"),
    "scripts": ("scripts", "scripts.*"),
}

# The only product files that may import a library.
KEPT_IN = {
    "llama_cpp": ("core/grammar_worker.py", "core/llama.py", "core/llama_sampler.py", "core/vocab_worker.py"),
    "llama_cpp_agent": ("chat/agent.py",),
    "gradio": ("chat/gradio_import.py",),
    "subprocess": ("core/child.py",),
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and full name of each import; for `from a import b`, `a.b` when that is a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} use an absolute import"
            assert node.module is not None
            below = ROOT / node.module.replace(".", "/")
            modules = [alias.name for alias in node.names if (below / f"{alias.name}.py").exists()]
            yield from ((node.lineno, f"{node.module}.{name}") for name in modules)
            if len(modules) < len(node.names):
                yield node.lineno, node.module


def test_what_is_imported_from_our_own_files_is_there() -> None:
    """Also in commands that no test can run, as they need a GPU."""
    defined = {name_of(path): set(_top_names(ast.parse(path.read_text()))) for path in FILES}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in FOLDERS:
                continue
            home = f"{(node.module or '').replace('.', '/')}.py"
            for alias in node.names:
                is_module = (ROOT / home.removesuffix(".py") / f"{alias.name}.py").exists()
                where = f"{name_of(path)}:{node.lineno}"
                assert is_module or alias.name in defined.get(home, ()), (
                    f"{where} {alias.name} isn't in {home}"
                )


def _top_names(tree: ast.AST) -> Iterator[str]:
    """What a file defines or imports, in any block but a function's or a class's."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        else:
            yield from _top_names(node)


def test_folders_import_only_what_the_arrow_allows() -> None:
    ours = {"app", *FOLDERS}
    for path in FILES:
        allowed = ALLOWED.get(path.relative_to(ROOT).parts[0])
        for line, module in imports_of(path):
            if allowed and module.split(".")[0] in ours:
                message = f"{name_of(path)}:{line} imports {module}; allowed are {', '.join(allowed)}"
                assert any(fnmatch(module, pattern) for pattern in allowed), message


def test_no_import_leads_back_to_where_it_began() -> None:
    """Also none that is inside a function, or for types only."""
    graph = {name_of(path).removesuffix(".py").replace("/", "."): path for path in FILES}
    after = {
        name: {m for _, m in imports_of(path) if m in graph and m != name} for name, path in graph.items()
    }
    while free := {name for name, imported in after.items() if not imported & after.keys()}:
        after = {name: imported for name, imported in after.items() if name not in free}
    assert not after, f"circles of imports among: {', '.join(sorted(after))}"


def test_each_large_library_stays_in_its_files() -> None:
    for path in PRODUCT:
        for line, module in imports_of(path):
            homes = KEPT_IN.get(module.split(".")[0], ("*",))
            message = f"{name_of(path)}:{line} imports {module}; only {', '.join(homes)} may"
            assert any(fnmatch(name_of(path), home) for home in homes), message


def test_the_prompt_is_pure() -> None:
    """Training renders with it too, so it and all of ours that it imports need the stdlib and jinja2 only."""
    waiting, seen = ["core.prompt"], set[str]()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        path = ROOT / (module.replace(".", "/") + ".py")
        for line, imported in imports_of(path):
            top = imported.split(".")[0]
            message = f"{name_of(path)}:{line} imports {imported}"
            assert top in sys.stdlib_module_names or top in ("jinja2", "core"), message
            if top == "core" and imported not in seen:
                waiting.append(imported)


def test_no_module_hides_a_library() -> None:
    taken = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions()}
    # A dependency that ships its tests under this name can't be helped, and nobody imports them.
    ours = {path.stem: name_of(path) for path in FILES if path.parts[-2] != "tests"}
    ours |= {folder: folder for folder in FOLDERS if folder != "tests"}
    hidden = {where for name, where in ours.items() if name in taken and not name.startswith("__")}
    assert not hidden, f"these have the name of a library: {sorted(hidden)}"


def test_what_the_product_imports_is_in_requirements() -> None:
    distributions = importlib.metadata.packages_distributions()
    unpinned = set()
    in_the_app = core_of_the_app()
    for path in PRODUCT:
        pinned = pins("requirements.txt")
        if (folder := name_of(path).split("/")[0]) in ("train", "convert"):
            pinned |= pins(f"{folder}/requirements.txt")
        elif folder == "core" and path not in in_the_app:  # what training and conversion share, and only they
            pinned |= pins("train/requirements.txt") & pins("convert/requirements.txt")
        for line, module in imports_of(path):
            top = module.split(".")[0]
            if top not in {*sys.stdlib_module_names, *FOLDERS, *BROUGHT}:
                names = {name.lower().replace("_", "-") for name in distributions.get(top, [top])}
                if not names & pinned:
                    unpinned.add(f"{name_of(path)}:{line} imports {module}")
    assert not unpinned, f"not in the requirements of its folder: {sorted(unpinned)}"


def core_of_the_app() -> set[Path]:
    """The files of core/ that the app, whose requirements are few, comes to import."""
    waiting = [path for path in PRODUCT if name_of(path).split("/")[0] in ("app.py", "chat", "publish")]
    found: set[Path] = set()
    while waiting:
        for _, module in imports_of(waiting.pop()):
            path = ROOT / (module.replace(".", "/") + ".py")
            if module.startswith("core.") and path.is_file() and path not in found:
                found.add(path)
                waiting.append(path)
    return found


def pins(requirements: str) -> set[str]:
    lines = (ROOT / requirements).read_text().splitlines()
    names = (re.match(r"[\w.-]+", line) for line in lines if not line.startswith(("#", "-")))
    return {name[0].lower().replace("_", "-") for name in names if name}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_short_and_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 300, f"{name_of(path)} has over 300 lines: split it"
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not tree.body, (
        f"{name_of(path)} needs a first line that says its purpose"
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, (
                f"{name_of(path)}:{node.lineno} {node.name} is too long"
            )


@pytest.mark.parametrize("study", ["quantised", "sms"])
def test_a_study_is_short_as_what_it_needs_is_the_products_or_in_bench(study: str) -> None:
    lines = {path.name: path.read_text().count("\n") for path in (ROOT / "studies").glob(f"{study}*.py")}
    assert lines
    assert sum(lines.values()) < 300, f"{lines}: what measures, tells and draws is in bench/"


def test_app_only_assembles_and_importing_it_loads_nothing() -> None:
    assert (ROOT / "app.py").read_text().count("\n") < 60
    code = "import sys, app; print(sorted({'torch', 'llama_cpp'} & set(sys.modules)))\n"
    code += "from pathlib import Path; maps = Path('/proc/self/maps')\n"
    code += "print('.gguf' in maps.read_text() if maps.exists() else False)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["[]", "False"]


def test_git_holds_no_weights_and_nothing_large() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        assert not name.endswith((".gguf", ".safetensors")), f"{name}: weights belong on a hub, not in git"
        picture = name.endswith((".png", ".jpg", ".webp", ".gif", ".svg"))
        path = ROOT / name
        assert picture or not path.is_file() or path.stat().st_size <= 500_000, (
            f"{name} is larger than 500 kB"
        )
