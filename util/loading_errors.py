"""Whatever is raised while an encoder is loaded becomes a ValueError of one line."""

import contextlib


@contextlib.contextmanager
def one_line_errors(name: str):
    """Every exception of the block -> ValueError "NAME: cannot be loaded: CLASS: the library's last line".

    Signals and a lack of memory are not errors of the encoder: they pass.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"{name}: cannot be loaded: {type(error).__name__}: {lines[-1] if lines else ''}") from None
