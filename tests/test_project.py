"The files of the project agree with one another, and what is stored in them may be published."

import ast
import base64
import configparser
import filecmp
import getpass
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import types
from importlib.metadata import packages_distributions
from pathlib import Path

import authoring
import nbformat
import pytest

import vidcourse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest on 3.10

ROOT = Path(__file__).resolve().parent.parent
BOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
PACKAGE = sorted((ROOT / "vidcourse").rglob("*.py"))


def cells(path: Path, kind: str = "code") -> list[str]:
    "The sources of a notebook's cells of one kind."
    book = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


def imports(tree: ast.AST) -> set[str]:
    "The modules that a piece of code imports, as it writes them."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


# The package is what the notebooks export -----------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A copy of what nbdev needs."
    copy = tmp_path_factory.mktemp("project")
    left_out = shutil.ignore_patterns("__pycache__", "weights", ".ipynb_checkpoints")
    for name in ("nbs", "vidcourse"):
        shutil.copytree(ROOT / name, copy / name, ignore=left_out)
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    return copy


def nbdev(command: str, folder: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / command],
        cwd=folder,
        env=os.environ | {"JUPYTER_DATA_DIR": str(folder / "jupyter")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_package_equals_notebooks(project):
    nbdev("nbdev_export", project)
    here = {path.relative_to(ROOT) for path in PACKAGE}
    there = {path.relative_to(project) for path in (project / "vidcourse").rglob("*.py")}
    assert here == there, f"run make export: {here ^ there}"
    different = [
        str(path)
        for path in sorted(here)
        if not filecmp.cmp(ROOT / path, project / path, shallow=False)
    ]
    assert not different, f"run make export: {different}"
    for name in ("settings.ini", "pyproject.toml"):
        assert (project / name).read_text() == (ROOT / name).read_text(), (
            f"nbdev rewrites {name}; keep it as it writes it"
        )


def test_cleaning_changes_nothing(project):
    nbdev("nbdev_clean", project)
    dirty = [
        path.name
        for path in BOOKS
        if not filecmp.cmp(path, project / "nbs" / path.name, shallow=False)
    ]
    assert not dirty, f"run make export: {dirty}"


def test_no_nbdev_at_run_time():
    for path in PACKAGE:
        top = {name.split(".")[0] for name in imports(ast.parse(path.read_text("utf-8")))}
        assert not top & {"nbdev", "fastcore", "execnb"}, path


def test_every_public_function_is_described():
    bare = []
    for path in PACKAGE:
        if path.name == "_modidx.py":
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            described = isinstance(node, (ast.FunctionDef, ast.ClassDef))
            if described and not node.name.startswith("_") and not ast.get_docstring(node):
                bare.append(f"{path.name}: {node.name}")
    # Clips takes over the docstring of its base
    assert set(bare) <= {"data.py: Clips"}, "without a docstring"


def test_runner_and_command_import_nothing_heavy():
    heavy = ("torch", "numpy", "matplotlib", "papermill", "nbconvert")
    code = (
        "import sys, vidcourse.runner, vidcourse.cli; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# Code as the formatter leaves it, and as the linter accepts it --------------------------------


def test_code_is_formatted():
    assert authoring.unformatted() == [], "run make export"


def test_the_linter_accepts_the_code():
    lines = [line for lines in authoring.complaints().values() for line in lines]
    assert not lines, "mend by hand:\n" + "\n".join(lines)


def test_formatter_and_linter_reach_folded_solutions(tmp_path):
    def fold(code):
        text = f"<details><summary>Solution</summary>\n\n```python\n{code}\n```\n</details>"
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
        nbformat.write(book, tmp_path / "solved.ipynb")

    fold("def answer( x ):\n    keep = lambda: x\n    return keep")
    assert authoring.unformatted(tmp_path) == ["nbs/solved.ipynb"]
    (first, *_) = authoring.complaints(tmp_path)["nbs/solved.ipynb"]
    assert "fenced code 1" in first and "E731" in first

    authoring.format_fences(tmp_path)
    (page,) = cells(tmp_path / "solved.ipynb", "markdown")
    assert "```python\ndef answer(x):\n" in page and page.endswith("```\n</details>")
    assert authoring.unformatted(tmp_path) == []

    fold("def answer(:")
    assert authoring.unformatted(tmp_path) == ["nbs/solved.ipynb"]
    with pytest.raises(SystemExit, match="markdown cells"):
        authoring.format_fences(tmp_path)


# Stored outputs -------------------------------------------------------------------------------


def private_paths() -> str:
    "A pattern for paths, and for a user's name, that have no place in a published notebook."
    user, here = getpass.getuser(), re.escape(str(ROOT))
    pattern = r"/home/\w|/root\b|/Users/\w|/tmp/\w|/var/folders|[A-Z]:\\+Users|site-packages"
    telling = user not in ("root", "runner", "user")
    return f"{pattern}|{here}" + (rf"|\b{re.escape(user)}\b" if telling else "")


def texts(output: dict) -> str:
    "All that an output says in words."
    parts = [output.get("text", "")]
    parts += [v for kind, v in output.get("data", {}).items() if kind.startswith("text")]
    return "".join("".join(part) for part in parts)


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_stored_outputs(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in book["metadata"], "GitHub shows no notebook with widget state"
    assert path.stat().st_size < 1.5 * 2**20
    outputs = [output for cell in book["cells"] for output in cell.get("outputs", [])]
    assert outputs or path.stem == "index", "no outputs are stored: make outputs NOTEBOOKS=..."
    private = private_paths()
    for output in outputs:
        text, data = texts(output), output.get("data", {})
        assert output["output_type"] != "error", output.get("evalue")
        assert output.get("name") != "stderr", text[:200]
        assert "application/vnd.jupyter.widget-view+json" not in data, "a live widget is stored"
        found = re.search(f".{{0,60}}(?:{private}).{{0,40}}", text)
        assert not found, found[0]
        assert not re.search(r"Warning:|Traceback \(most recent", text), text[:300]
        if output["output_type"] == "stream":
            assert not re.search(r"\d%\|.*\|", text), "a progress bar is stored: " + text[:200]
        if "image/png" in data:
            picture = base64.b64decode("".join(data["image/png"]))
            assert len(picture) <= 2**20, "a stored picture is larger than 1 MB"


def stream(text: str, name: str = "stdout") -> dict:
    return dict(output_type="stream", name=name, text=text)


def test_authoring_cleans_outputs():
    outputs = [stream(f"saved {ROOT}/x\n"), stream("done\n"), stream("Warning: old", "stderr")]
    kept, complaints = authoring.cleaned(outputs, authoring.private())
    assert [output.text for output in kept] == ["saved ./x\ndone\n"]
    assert complaints == "Warning: old"


def test_authoring_hides_temporary_folders():
    temporary = Path(tempfile.gettempdir())
    text = f"in {temporary / 'tmpab_12xy/work/no/where'}, not in {temporary / 'tmp0000'}/run\n"
    kept, _ = authoring.cleaned([stream(text)], authoring.private())
    assert kept[0].text == "in .../no/where, not in .../run\n"


# What the project says of itself --------------------------------------------------------------


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_versions_agree():
    config = configparser.ConfigParser()
    config.read(ROOT / "settings.ini")
    settings, project = config["DEFAULT"], pyproject()
    assert settings["version"] == vidcourse.__version__ and "version" in project["dynamic"]
    assert settings["lib_name"] == project["name"] == vidcourse.__name__
    assert project["requires-python"] == f">={settings['min_python']}"
    assert settings["description"] == project["description"]
    assert settings["license"] == "apache2" and project["license"] == "Apache-2.0"
    kept = settings.get("allowed_cell_metadata_keys", "")
    assert "tags" in kept, "cleaning would drop papermill's tag"


def test_what_the_notebooks_import_is_installed_for_readers():
    "By the course's own dependencies, not by the tools of its authors."

    def spelled(name):
        return re.sub(r"[-_.]+", "-", name).lower()

    needed = {spelled(re.match(r"[\w.-]+", name)[0]) for name in pyproject()["dependencies"]}
    known, missing = packages_distributions(), set()
    for path in BOOKS:
        for source in cells(path):
            code = re.sub(r"^(\s*)[%!].*", r"\1pass", source, flags=re.MULTILINE)
            names = {name.split(".")[0] for name in imports(ast.parse(code))}
            for name in names - {"vidcourse", "", *sys.stdlib_module_names}:
                if not needed & {spelled(package) for package in known.get(name, [name])}:
                    missing.add(f"{path.stem}: {name}")
    assert not missing, f"not in pyproject.toml's dependencies: {sorted(missing)}"


def test_readme_is_the_index():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == authoring.readme(), "run make export"


def test_links_of_readme_and_contributing_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md"):
        links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text(encoding="utf-8"))
        inside = [link for link in links if not re.match(r"[a-z]+:|#", link)]
        missing = [link for link in inside if not (ROOT / link).exists()]
        assert not missing, f"{name}: {missing}"


def test_index_names_every_notebook():
    text = authoring.readme()
    numbered = [path.name for path in BOOKS if path.stem != "index"]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    told = {name: sum(f"](nbs/{name})" in row for row in rows) for name in numbered}
    contents = [row for row in rows if row.count("](nbs/") == 1]
    assert {n: k for n, k in told.items() if k == 0} == {}, "not in the contents"
    twice = [n for n in numbered if sum(f"](nbs/{n}) |" in row for row in contents) != 1]
    assert twice == [], "more than once, or never, in the contents"


# Colab ----------------------------------------------------------------------------------------


def colab_cell(path: Path) -> str:
    "The cell that installs the package in Colab, without what stands before its imports."
    cells = ("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
    first = next(text for text in cells if "google.colab" in text)
    return first[first.index("import sys") :]


def test_every_notebook_installs_in_the_same_way():
    cells = {colab_cell(path) for path in BOOKS if path.stem != "index"}
    assert len(cells) == 1, cells


@pytest.mark.parametrize("codes, calls", [([0], 1), ([1, 0], 2), ([1, 1], 2)])
def test_colab_gets_the_package_and_keeps_its_torch(monkeypatch, codes, calls):
    done = []

    def run(words):
        done.append(words)
        return types.SimpleNamespace(returncode=codes[len(done) - 1])

    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(subprocess, "run", run)
    cell = compile(colab_cell(BOOKS[0]), "cell", "exec")
    if any(code == 0 for code in codes):
        exec(cell, {})
    else:
        with pytest.raises(SystemExit, match="could not be installed"):
            exec(cell, {})
    assert len(done) == calls
    torch = importlib.metadata.version("torch")
    assert all(f"torch=={torch}" in words for words in done), "torch is never replaced"


def test_the_citation_has_the_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {vidcourse.__version__}\n" in text
