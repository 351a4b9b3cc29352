"""Tables in Markdown, row by row as they come about."""


def print_row(*cells: object) -> None:
    """A row of a table in Markdown."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_head(*names: str) -> None:
    print_row(*names)
    print(f"|{'---|' * len(names)}", flush=True)
