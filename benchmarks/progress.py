"""A bar on a terminal, where tqdm is installed; else nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(name: str) -> Iterator[Callable[[str], object]]:
    """Yields what to call with the name of each step; the bar counts steps and repeats."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda step: None
        return
    with tqdm(desc=name, unit="run", disable=None, leave=False, mininterval=0.5) as bar:

        def step(words: str) -> None:
            bar.set_postfix_str(words, refresh=False)
            bar.update()

        yield step
