"""A store in the memory of the test's process."""

import uuid

import fsspec


def memory_store(tmp_path, monkeypatch):
    """A fixture's generator: the URL of an empty folder in fsspec's memory, and an empty cache."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    url = f'memory://{uuid.uuid4().hex}'
    yield url
    system = fsspec.filesystem('memory')
    if system.exists(url):
        system.rm(url, recursive=True)


def contents(url):
    """Name -> bytes of the files below a folder."""
    system = fsspec.filesystem('memory')
    root = system._strip_protocol(url)
    found = system.find(root) if system.exists(root) else []
    return {path[len(root) :].strip('/'): system.cat_file(path) for path in found}


def upload(folder, url):
    """Copies a folder of the machine; returns the URL."""
    for path in folder.rglob('*'):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            fsspec.filesystem('memory').pipe_file(f'{url}/{name}', path.read_bytes())
    return url
