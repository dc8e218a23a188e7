"""Updates the line counts in the README's reading order.

    python scripts/reading_order.py

A row is `| [path](path) | lines | contents |`; the row of sums ends each table.
"""

import pathlib
import re

REPOSITORY = pathlib.Path(__file__).parent.parent
README = REPOSITORY / 'README.md'
ROW = re.compile(r'^\| \[([\w./]+)\]\(\1\) \| (\d+) \|', re.M)
SUM = re.compile(r'^\| \d+ files \| [\d,]+ \|', re.M)


def table(name: str) -> re.Match[str]:
    """The table under the heading that ends in `name`."""
    found = re.search(rf'^### [^\n]*{name}\n.*?(?=^##|\Z)', README.read_text(), re.DOTALL | re.M)
    if found is None:
        raise ValueError(f'README.md has no heading that ends in {name!r}')
    return found


def listed(name: str) -> dict[str, int]:
    """Path to stated number of lines, in the order of the table."""
    return {path: int(lines) for path, lines in ROW.findall(table(name)[0])}


def counted(text: str) -> str:
    """A table with the line counts of the files as they are now."""
    lines = {
        path: len((REPOSITORY / path).read_text().splitlines()) for path, _ in ROW.findall(text)
    }
    text = ROW.sub(lambda row: f'| [{row[1]}]({row[1]}) | {lines[row[1]]} |', text)
    return SUM.sub(f'| {len(lines)} files | {sum(lines.values()):,} |', text)


def main() -> None:
    for name in ('one image', 'one training step'):
        found = table(name)
        text = README.read_text()
        README.write_text(text[: found.start()] + counted(found[0]) + text[found.end() :])


if __name__ == '__main__':
    main()
