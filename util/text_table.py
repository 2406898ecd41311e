"""Tables as text: aligned columns for a terminal, and scores with their confidence intervals."""


def aligned(rows: list[list[str]]) -> str:
    """Rows of cells, the header first -> lines. The first column is aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:]))]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def with_interval(scores: dict, name: str) -> str:
    """A score with half the width of its 95 % confidence interval: "0.8858 ± 0.021". Older runs have no intervals."""
    interval = scores.get(f"{name}_ci95")
    is_known = interval and interval != [0, 1]  # a score without entities can be anything
    half_width = f" ± {(interval[1] - interval[0]) / 2:.3f}" if is_known else ""
    return f"{scores[name]:.4f}{half_width}"


def format_p_value(value: float | None) -> str:
    """The p-value of 1,000 draws: "0.012", or "< 0.001"; "" if there is none."""
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def replace_unprintable(stream) -> None:
    """Makes a text stream print ? for characters, such as ±, that its encoding does not have, instead of an error."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
