"""Writes docs/api.md from the docstrings of the package.

    python scripts/build_api_page.py           # writes the page
    python scripts/build_api_page.py --check   # exits with 1 if the page is not current

Source files are parsed, not imported, so the page does not depend on versions of Python or JAX.
"""

import argparse
import ast
import inspect
import pathlib
import re
import sys

REPOSITORY = pathlib.Path(__file__).parent.parent
PAGE = REPOSITORY / 'docs' / 'api.md'
PACKAGE = 'infinity_jax'
# Sections of the page. `infinity_jax` itself re-exports: its names are listed and linked.
MODULES = (
    'infinity_jax.inference.pipeline',
    'infinity_jax.inference.generated_images',
    'infinity_jax.inference.sampling',
    'infinity_jax.inference.edit',
    'infinity_jax.inference.edit_masks',
    'infinity_jax.inference.job',
    'infinity_jax.config',
    'infinity_jax.errors',
    'infinity_jax.ranges',
    'infinity_jax.scales',
    'infinity_jax.sharding',
    'infinity_jax.tokenizer.quantizer',
    'infinity_jax.tokenizer.autoencoder',
    'infinity_jax.transformer.model',
    'infinity_jax.inference.generate',
    'infinity_jax.training.transformer.self_correction',
    'infinity_jax.training.transformer.loss',
    'infinity_jax.training.transformer.step',
    'infinity_jax.training.optimizer',
    'infinity_jax.weights.model_folder',
    'infinity_jax.weights.placement',
    'infinity_jax.data.config',
)
INTRODUCTION = """# API

Generated from the docstrings by `python scripts/build_api_page.py`; do not edit. Shapes are
suffixes of names: see the [glossary](../README.md#glossary). How to generate images from Python:
[generate.md](generate.md#in-python).
"""
HEADINGS = ('Args', 'Returns', 'Raises', 'Attributes', 'Yields')
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def build() -> str:
    """The whole page as Markdown."""
    exports = [f'- {link}' for link in exported()]
    contents = [f'- [`{name}`](#{anchor(name)})' for name in MODULES]
    parts = [
        INTRODUCTION,
        '`from infinity_jax import …` offers:\n',
        *exports,
        '\nModules:\n',
        *contents,
    ]
    page = '\n'.join([*parts, *map(module_section, MODULES)])
    return re.sub(r'\n{3,}', '\n\n', page).rstrip() + '\n'


def exported() -> list[str]:
    """The names in `__all__` of the package, with links where a module below defines them."""
    assigned = [node for node in parse(PACKAGE).body if isinstance(node, ast.Assign)]
    lists = [node.value for node in assigned if ast.unparse(node.targets[0]) == '__all__']
    homes = {node.name: name for name in MODULES for node in public(parse(name).body)}
    return [
        f'[`{name}`](#{anchor(homes[name])})' if name in homes else f'`{name}`'
        for name in (ast.literal_eval(lists[0]) if lists else ())
    ]


def module_section(name: str) -> str:
    """A module's docstring and its public classes and functions, in the order of the source."""
    tree, lines = parse(name), path_of(name).read_text().splitlines()
    link = path_of(name).relative_to(REPOSITORY).as_posix()
    parts = [f'\n## {name}\n', f'[source](../{link})\n', markdown(ast.get_docstring(tree) or '')]
    for node in public(tree.body):
        parts.append(
            class_section(node, lines) if isinstance(node, ast.ClassDef) else function(node)
        )
    return '\n'.join(parts) + '\n'


def class_section(node: ast.ClassDef, lines: list[str]) -> str:
    """A class: its docstring, fields with their comments, and public methods."""
    parts = [f'\n### `class {node.name}`\n', markdown(ast.get_docstring(node) or '')]
    fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
    rows = [field_line(field, lines) for field in fields if not field.target.id.startswith('_')]
    if rows:
        parts += ['\nFields:\n', *rows]
    for method in public(node.body, ('__init__', '__call__')):
        if ast.get_docstring(method):
            parts.append(function(method, f'{node.name}.'))
    return '\n'.join(parts)


def field_line(node: ast.AnnAssign, lines: list[str]) -> str:
    """A list item: name, type, default, and the comment behind the field or above it."""
    default = f' = {ast.unparse(node.value)}' if node.value is not None else ''
    last = lines[node.end_lineno - 1]
    comments = [last[node.end_col_offset :].partition('#')[2].strip()]
    above = node.lineno - 2
    while not comments[0] and lines[above].strip().startswith('#'):
        comments.insert(1, lines[above].strip().lstrip('# '))
        above -= 1
    text = ' '.join(filter(None, comments[:1] + comments[1:]))
    return f'- `{node.target.id}: {ast.unparse(node.annotation)}{default}`' + (text and f': {text}')


def function(node: ast.FunctionDef, owner: str = '') -> str:
    """A function or method: its signature and docstring."""
    decorators = [ast.unparse(each) for each in node.decorator_list]
    level = '####' if owner else '###'
    if 'property' in decorators:
        title = f'\n{level} `{owner}{node.name}` (property)\n'
        return title + '\n' + markdown(ast.get_docstring(node) or '')
    name = {'__init__': owner.rstrip('.'), '__call__': f'{owner}__call__'}.get(
        node.name, f'{owner}{node.name}'
    )
    arguments = [text for text in argument_texts(node.args) if text not in ('self', 'cls')]
    returns = f' -> {ast.unparse(node.returns)}' if node.returns else ''
    signature = f'{name}({", ".join(arguments)}){returns}'
    if len(signature) > 95:
        signature = f'{name}(\n    ' + ',\n    '.join(arguments) + f',\n){returns}'
    parts = [f'\n{level} `{name}`\n', f'```text\n{signature}\n```\n']
    return '\n'.join([*parts, markdown(ast.get_docstring(node) or '')])


def argument_texts(arguments: ast.arguments) -> list[str]:
    """Each argument as it would be written in a signature."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    texts = [with_default(each, default) for each, default in zip(positional, defaults)]
    if arguments.vararg:
        texts.append('*' + with_default(arguments.vararg, None))
    elif arguments.kwonlyargs:
        texts.append('*')
    texts += [with_default(each, d) for each, d in zip(arguments.kwonlyargs, arguments.kw_defaults)]
    if arguments.kwarg:
        texts.append('**' + with_default(arguments.kwarg, None))
    return texts


def with_default(argument: ast.arg, default: ast.expr | None) -> str:
    text = ast.unparse(argument)
    if default is None:
        return text
    return (
        f'{text} = {ast.unparse(default)}'
        if argument.annotation
        else f'{text}={ast.unparse(default)}'
    )


def markdown(docstring: str) -> str:
    """A docstring in Google's form; its sections become lists."""
    out, in_list = [], False
    for line in inspect.cleandoc(docstring).splitlines():
        heading = line.strip().rstrip(':')
        if line.strip().endswith(':') and heading in HEADINGS and not line.startswith(' '):
            out += [f'**{heading}**', '']
            in_list = True
        elif in_list and re.match(r'  \S', line):
            name, colon, text = line.strip().partition(': ')
            simple = colon and re.fullmatch(r'[\w*, ]+', name)
            out.append(f'- `{name}`: {text}' if simple else f'- {line.strip()}')
        else:
            in_list = in_list and (line.startswith(' ') or not line)
            out.append('  ' + line.strip() if in_list and line else line)
    return '\n'.join(out).rstrip() + '\n'


def public(body: list[ast.stmt], also: tuple[str, ...] = ()) -> list[Definition]:
    """Classes and functions without a leading underscore, and those of `also`."""
    kept = [node for node in body if isinstance(node, Definition)]
    return [node for node in kept if not node.name.startswith('_') or node.name in also]


def parse(name: str) -> ast.Module:
    return ast.parse(path_of(name).read_text())


def path_of(name: str) -> pathlib.Path:
    """The source file of a module, or the `__init__.py` of a package."""
    path = REPOSITORY / name.replace('.', '/')
    return path / '__init__.py' if path.is_dir() else path.with_suffix('.py')


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')


def main() -> None:
    parser = argparse.ArgumentParser(description='Writes docs/api.md from docstrings.')
    parser.add_argument('--check', action='store_true', help='write nothing; exit 1 if not current')
    args = parser.parse_args()
    page = build()
    if not args.check:
        PAGE.write_text(page)
    elif not PAGE.exists() or PAGE.read_text() != page:
        sys.exit('docs/api.md is not current; run python scripts/build_api_page.py')


if __name__ == '__main__':
    main()
