"""Links, commands, Python blocks and generated parts of README, docs/ and launch/."""

import ast
import re
import shlex

import pytest
from helpers.paths import REPOSITORY, script

from infinity_jax.cli import build_parser
from infinity_jax.tools.commands.config_flags import read_config_file

PAGES = sorted(
    [
        *REPOSITORY.glob('*.md'),
        *(REPOSITORY / 'docs').rglob('*.md'),
        *(REPOSITORY / 'launch').glob('*.md'),
    ]
)
TRAIN = ('python -m infinity_jax.main ', 'infinity-jax train ')
each_page = pytest.mark.parametrize(
    'page', PAGES, ids=lambda page: str(page.relative_to(REPOSITORY))
)


def blocks(page, language):
    """The fenced code blocks of a language, without the indentation of a list item."""
    found = re.findall(rf'^( *)```{language}\n(.*?)^ *```', page.read_text(), re.DOTALL | re.M)
    return [re.sub(rf'^{indent}', '', text, flags=re.M) for indent, text in found]


def run_imports(code):
    """Does what the import statements of a piece of code do."""
    statements = [
        n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Import | ast.ImportFrom)
    ]
    exec(compile(ast.Module(statements, []), 'imports', 'exec'), {})


def prose(page):
    """The text of a page without its fenced code blocks."""
    return re.sub(r'^ *```.*?^ *```', '', page.read_text(), flags=re.DOTALL | re.M)


def shell_lines(page):
    """Commands of shell blocks, continuation lines joined."""
    text = '\n'.join(blocks(page, 'bash')).replace('\\\n', ' ')
    return [part.strip() for line in text.splitlines() for part in line.split('&&')]


def inline_code(page):
    return [' '.join(code.split()) for code in re.findall(r'`([^`]+)`', prose(page))]


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    build = script('build_api_page').anchor
    return {build(heading) for heading in re.findall(r'^#+ (.*)$', prose(page), re.M)}


def test_the_pages_are_found():
    names = {page.name for page in PAGES}
    assert {'README.md', 'data.md', 'api.md', 'slurm.md', 'CHANGELOG.md'} <= names


@each_page
def test_relative_links_lead_somewhere(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
        if re.match(r'https?:', link):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f'{link} leads nowhere'
        assert not anchor or anchor in anchors(target), f'{link}: {target.name} has no such heading'


@each_page
def test_files_named_in_code_exist(page):
    if page.name == 'CHANGELOG.md':  # it also names the files of earlier versions
        return
    for name in re.findall(r'`([\w./]+/[\w.]+\.(?:py|sh|yaml|md))`', page.read_text()):
        places = (REPOSITORY, REPOSITORY / 'infinity_jax', page.parent)
        if 'NAME' in name:
            continue
        assert any((place / name).exists() for place in places), f'{name} does not exist'


@each_page
def test_commands_parse(page):
    for line in [*shell_lines(page), *inline_code(page)]:
        words = shlex.split(line, comments=True) if line.startswith('infinity-jax ') else []
        if not words or words[1] == 'train':  # training takes fields of its config, see below
            continue
        overrides = [word for word in words if word.startswith('--config.')]
        words = [word for word in words[1:] if word not in overrides]
        if line in inline_code(page) and not any(word.startswith('-') for word in words):
            with pytest.raises(SystemExit, match='^0$'):  # the name of a command, without flags
                build_parser().parse_args([*words, '--help'])
            continue
        args = build_parser().parse_args(words)
        assert not overrides or hasattr(args, 'overrides'), line


@each_page
def test_training_commands_name_fields_of_their_config(page):
    for line in [*shell_lines(page), *inline_code(page)]:
        words = shlex.split(line, comments=True) if line.startswith(TRAIN) else []
        settings = [word for word in words if word.startswith('--')]
        if not settings or not settings[0].startswith('--config=configs/'):
            continue
        spec, *overrides = settings
        assert all(word.startswith('--config.') for word in overrides), line
        read_config_file(f'{REPOSITORY}/{spec.removeprefix("--config=")}', overrides)


@each_page
def test_python_blocks_compile_and_import(page):
    for code in blocks(page, 'python'):
        run_imports(code)


@pytest.mark.parametrize(
    'path', sorted((REPOSITORY / 'examples').glob('*.py')), ids=lambda p: p.name
)
def test_imports_of_examples(path):
    run_imports(path.read_text())


def test_the_api_page_is_current():
    page = script('build_api_page').build()
    current = (REPOSITORY / 'docs' / 'api.md').read_text()
    assert current == page, 'docs/api.md is old: run python scripts/build_api_page.py'


def test_the_reading_order_is_short_and_current():
    order = script('reading_order')
    for name, limit in (('one image', 20), ('one training step', 22)):
        listed = order.listed(name)
        assert 0 < len(listed) <= limit
        for path, lines in listed.items():
            actual = len((REPOSITORY / path).read_text().splitlines())
            assert abs(lines - actual) <= 0.1 * actual + 5, (
                f'{path} has {actual} lines: run python scripts/reading_order.py'
            )


def test_a_page_is_for_users_or_for_measurements():
    """Dates of measurements are in the notebook alone."""
    for page in (REPOSITORY / 'docs').glob('*.md'):
        assert not re.search(r'\b\d{1,2} \w+ 20\d\d\b', page.read_text()), page.name
