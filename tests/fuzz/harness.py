"""Runs malformed inputs through the real entry points, and sorts what happens.

Each case is made from (kind, seed, number) alone, so that a single one can be repeated.
"""

import collections
import contextlib
import dataclasses
import io
import pathlib
import random
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from infinity_jax.errors import UserError, first_line

TIME_LIMIT = 10  # seconds of processor time per case
PATIENCE = 6  # times that many seconds in all, for a case that waits and for a busy machine
LONGEST_LINE = 4000  # characters of an error that is still read as a line
REFUSED, REPORTED, ACCEPTED = 'refused', 'reported', 'accepted'
UNCLEAR, SILENT, TRACEBACK, HANG = 'unclear', 'silent', 'traceback', 'hang'
BUGS = (UNCLEAR, SILENT, TRACEBACK, HANG)


@dataclasses.dataclass(frozen=True)
class Case:
    """A malformed input.

    Attributes:
      name: how it was made.
      run: reads it as the program does; raises `UserError` to refuse it.
      judge: gets what `run` returned. Its result is '', or the reason why the input must not be
        accepted without a word.
      reported: gets the same; whether a part of the input was refused, such as a broken record.
    """

    name: str
    run: Callable[[], Any]
    judge: Callable[[Any], str] = lambda result: ''
    reported: Callable[[Any], bool] = lambda result: False


class Fuzzer(Protocol):
    """Makes the cases of one kind; its constructor gets a folder for unharmed inputs."""

    def case(self, rng: random.Random, folder: pathlib.Path) -> Case:
        """A case whose files are in an empty folder."""


class Outcome(NamedTuple):
    """What became of a case: its number and name, one of the verdicts above, and a text."""

    number: int
    name: str
    verdict: str
    text: str


class Hang(BaseException):
    """Not an `Exception`, so that no handler of the program takes it for an error of its own."""


def run_cases(
    kind: str,
    fuzzer: Fuzzer,
    numbers: Iterable[int],
    seed: int,
    folder: pathlib.Path,
    keep: pathlib.Path | None = None,
) -> Iterator[Outcome]:
    """Makes and runs cases.

    Args:
      kind: name of the fuzzer, a part of the seed.
      fuzzer: makes the cases.
      numbers: of the cases.
      seed: of all of them.
      folder: for their files, which are deleted after each case.
      keep: gets the files of cases that show a bug.
    """
    for number in numbers:
        place = folder / f'{number:04}'
        place.mkdir(parents=True)
        rng = random.Random(f'{kind} {seed} {number}')
        case = fuzzer.case(rng, place)
        verdict, text = outcome_of(case)
        text = text.replace(str(place), 'CASE')
        if keep is not None and verdict in BUGS:
            with contextlib.suppress(shutil.Error):  # of a pipe or of a link to nothing
                kept = keep / f'{kind}_{seed}_{number:04}'
                shutil.copytree(place, kept, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(place)
        yield Outcome(number, case.name, verdict, text)


def outcome_of(case: Case) -> tuple[str, str]:
    """Runs a case in this process; returns its verdict and the error's text or the reason."""
    output = io.StringIO()
    try:
        with (
            time_limit(TIME_LIMIT, PATIENCE * TIME_LIMIT),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            warnings.simplefilter('ignore')
            result = case.run()
            reason = case.judge(result)
    except UserError as error:
        text = str(error)
        clear = text.strip() and len(text.splitlines()) == 1 and len(text) <= LONGEST_LINE
        return (REFUSED if clear else UNCLEAR), text
    except Hang:
        return HANG, f'more than {TIME_LIMIT} s in {_place(_frames_of_last_error())}'
    except (Exception, SystemExit) as error:
        place = _place(traceback.extract_tb(error.__traceback__))
        return TRACEBACK, f'{type(error).__name__}: {first_line(error, 200)} in {place}'
    if reason:
        return SILENT, reason
    return (REPORTED if case.reported(result) else ACCEPTED), ''


@contextlib.contextmanager
def time_limit(processor_seconds: float, seconds: float) -> Iterator[None]:
    """Raises `Hang` in the main thread where the block takes longer than one of the limits."""

    def stop(*_: Any) -> None:
        raise Hang

    timers = {
        signal.SIGPROF: (signal.ITIMER_PROF, processor_seconds),
        signal.SIGALRM: (signal.ITIMER_REAL, seconds),
    }
    before = {number: signal.signal(number, stop) for number in timers}
    try:
        for timer, limit in timers.values():
            signal.setitimer(timer, limit)
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def _frames_of_last_error() -> list[traceback.FrameSummary]:
    error = __import__('sys').exc_info()[1]
    return list(traceback.extract_tb(error.__traceback__))


def _place(frames: Iterable[traceback.FrameSummary]) -> str:
    """The last line of the package in a traceback, and the last of all."""
    frames = list(frames)
    ours = [f for f in frames if 'infinity_jax' in f.filename and 'tests' not in f.filename]
    chosen = [ours[-1], frames[-1]] if ours and ours[-1] is not frames[-1] else frames[-1:]
    return ', '.join(f'{pathlib.Path(f.filename).name}:{f.lineno}' for f in chosen)


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """Counts of the verdicts of each kind, as Markdown."""
    verdicts = (REFUSED, REPORTED, ACCEPTED, *BUGS)
    lines = [f'| kind | cases | {" | ".join(verdicts)} |', '|---' * (2 + len(verdicts)) + '|']
    total: collections.Counter[str] = collections.Counter()
    for kind, found in outcomes.items():
        counts = collections.Counter(outcome.verdict for outcome in found)
        total += counts
        lines.append(_row(kind, counts, verdicts))
    return '\n'.join([*lines, _row('all', total, verdicts)])


def _row(kind: str, counts: collections.Counter[str], verdicts: Iterable[str]) -> str:
    return f'| {kind} | {counts.total()} | {" | ".join(str(counts[v]) for v in verdicts)} |'
