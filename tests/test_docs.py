"""README and guide: examples run as they stand, links lead somewhere, and the API pages leave out no name."""

import ast
import configparser
import importlib
import inspect
import re
from pathlib import Path

import pytest
import yaml

import solvers
from experiments.commands.options import parser

ROOT = Path(__file__).parents[1]
GUIDE = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *GUIDE]
PACKAGES = ["solvers", "implicit", "implicit.diagnostics", "implicit.plots", "models"]
PACKAGES += ["models.methods", "models.parallel", "experiments"]


def called(path):
    return str(path.relative_to(ROOT))


def blocks(path, language):
    """Line number and text of the fenced blocks."""
    text = path.read_text(encoding="utf-8")
    for found in re.finditer(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, found.start(1)), found.group(1)


def prose(path):
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def identifiers(path):
    """What mkdocstrings is asked to render."""
    return re.findall(r"^::: (\S+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def resolved(name):
    """The object of a dotted name, its module the longest part that imports."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            thing = getattr(thing, attribute)
        return thing
    raise ModuleNotFoundError(name)


def anchors(path):
    """Those of a page's headings, as mkdocs and GitHub both make them of plain ones, and of its API entries."""
    headings = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
    assert len(set(headings)) == len(headings), f"{called(path)} has a heading twice"
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings} | set(identifiers(path))


def printed_as(text, other):
    """Whether two outputs have the same words and whole numbers, and others that agree to a tenth."""
    number = r"\d+(?:\.\d+)?(?:e[-+]\d+)?"
    if re.split(number, text.strip()) != re.split(number, other.strip()):
        return False
    pairs = zip(re.findall(number, text), re.findall(number, other), strict=True)
    return all(abs(float(a) - float(b)) <= ("." in b) * 0.1 * float(b) for a, b in pairs)


@pytest.mark.parametrize("path", [page for page in PAGES if any(blocks(page, "python"))], ids=called)
def test_examples_run(path, default_device, capsys):
    """A block of text right after a block of code is what that prints."""
    namespace = {"__name__": "page"}
    lines = path.read_text().splitlines()
    for line, block in blocks(path, "python"):
        capsys.readouterr()
        exec(compile("\n" * line + block, called(path), "exec"), namespace)  # errors name the page's own line
        end = line + block.count("\n") + 1
        if lines[end + 1 : end + 2] == ["```text"]:
            expected = "\n".join(lines[end + 2 : lines.index("```", end + 2)])
            found = capsys.readouterr().out
            assert printed_as(found, expected), f"{called(path)}:{end + 3} says\n{expected}\nand it prints\n{found}"
    if path.name == "README.md":
        shapes = {namespace[reading].shape for reading in ("explicit", "proximal", "infinite", "parallel")}
        assert len(shapes) == 1


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "models.methods"])
def test_every_public_name_has_an_example_that_runs(package):
    """In a block of code of the README or the site, all of which `test_examples_run` runs."""
    code = "\n".join(block for page in (ROOT / "README.md", *GUIDE) for _, block in blocks(page, "python"))
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)}
    missing = [name for name in importlib.import_module(package).__all__ if name not in used]
    assert not missing


def test_the_readmes_output_is_compared():
    text = (ROOT / "README.md").read_text()
    assert re.search(r"^```python\n[^`]*print\([^`]*^```\n\n```text\n", text, flags=re.MULTILINE), "no printed output"
    assert printed_as("8 rows in 9 steps, 8.3e-05", "8 rows in 9 steps, 8.0e-05")
    assert not printed_as("8 rows in 9 steps, 8.3e-05", "8 rows in 9 steps, 3.3e-05")
    assert not printed_as("8 rows in 9 steps", "7 rows in 9 steps")
    assert not printed_as("8 rows converged", "8 rows diverged")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "guide").glob("*.md")), ids=called)
def test_guide_pages_are_short_and_show_code(path):
    assert any(blocks(path, "python"))
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 180


@pytest.mark.parametrize("path", PAGES, ids=called)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if link.startswith("http"):
            continue
        target, _, anchor = link.partition("#")
        other = (path.parent / target).resolve() if target else path
        assert other.exists(), f"{link}: no such file"
        if path in GUIDE:
            assert ROOT / "docs" in other.parents, f"{link} leads out of the site"
        if anchor:
            assert anchor in anchors(other), f"{link}: no such heading in {called(other)}"


def test_the_page_for_readers_of_the_source_names_what_is_there():
    """Files, and private classes and functions, which no example would miss."""
    page = prose(ROOT / "docs" / "guide" / "three-ways.md")
    source = {path: path.read_text(encoding="utf-8") for path in (ROOT / "implicit").rglob("*.py")}
    missing = [
        name for name in re.findall(r"`([\w/]+\.py)`", page) if not any(str(p).endswith(f"/{name}") for p in source)
    ]
    for owner, attribute in re.findall(r"`(_?[A-Z][a-z]\w+|[a-z]+_\w+)(?:\.(?!py`)(\w+))?[`(]", page):
        defined = [
            text for text in source.values() if re.search(rf"^(?:class|def) {owner}\b", text, flags=re.MULTILINE)
        ]
        if not defined and not hasattr(solvers, owner):
            missing.append(owner)
        elif attribute and not any(f"def {attribute}(" in text for text in defined):
            missing.append(f"{owner}.{attribute}")
    assert not missing


@pytest.mark.parametrize("package", PACKAGES)
def test_the_api_pages_leave_out_no_public_name(package):
    shown = [name for page in GUIDE for name in identifiers(page)]
    module = importlib.import_module(package)
    public = getattr(module, "__all__", None) or [name for name in vars(module) if name.startswith("plot_")]
    # a name that two packages export is shown under one of them
    things = {id(resolved(name)) for name in shown}
    missing = [name for name in public if f"{package}.{name}" not in shown and id(getattr(module, name)) not in things]
    assert not missing


def test_what_the_api_pages_show_exists_once_and_is_documented():
    shown = [name for page in GUIDE for name in identifiers(page)]
    assert len(set(shown)) == len(shown)
    for name in shown:
        thing = resolved(name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__doc__, name


def test_every_page_is_in_the_navigation():
    def files(entry):
        if isinstance(entry, str):
            yield entry
        else:
            for part in entry.values() if isinstance(entry, dict) else entry:
                yield from files(part)

    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(files(settings["nav"])) == sorted(str(page.relative_to(ROOT / "docs")) for page in GUIDE)


def test_the_command_lines_page_has_every_command_and_option():
    text = (ROOT / "docs" / "api" / "command-line.md").read_text(encoding="utf-8")
    (commands,) = (action.choices for action in parser()._actions if isinstance(action.choices, dict))
    for name, command in commands.items():
        assert f"`implicit {name}" in text
        for action in command._actions:
            for option in set(action.option_strings) - {"-h", "--help"}:
                assert f"`{option}`" in text, f"implicit {name} {option}"


def metadata():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser["metadata"]


def test_the_citation_is_that_of_this_distribution():
    citation, own = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8")), metadata()
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["title"] == own["name"]
    assert citation["version"] == solvers.__version__
    assert citation["license"] == own["license"]
    assert citation["authors"] == [{"name": own["author"]}]
    assert ", ".join(citation["keywords"]) == own["keywords"]
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()


def test_the_changelog_knows_this_version():
    assert re.search(
        rf"^## \[?{re.escape(solvers.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )


def test_a_commit_is_checked_by_what_lint_runs():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (lint,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    expected = [line.strip().replace("$(BIN)", ".venv/bin") for line in lint.splitlines()]
    settings = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in settings["repos"] for hook in repository["hooks"]]
    assert [hook["entry"] for hook in hooks] == expected
    assert all(hook["language"] == "system" for hook in hooks), "nothing is fetched"


@pytest.mark.parametrize("target", ["demo", "lint", "test", "coverage", "docs"])
def test_the_commands_behind_make_are_written_out(target):
    """In CONTRIBUTING, for a system without make: the same programs with the same arguments."""
    makefile, text = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "CONTRIBUTING.md"))
    (recipe,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    for line in re.findall(r"\$\(BIN\)/(.*)", re.sub(r"\t@echo.*", "", recipe)):
        command = line.partition(" #")[0].removesuffix(" --quiet").removeprefix("python -m coverage ")
        assert f"{command}`" in text, command
