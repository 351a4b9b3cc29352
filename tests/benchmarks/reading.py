"""CPU and memory of reading files, without a broker.

    python -m tests.benchmarks.reading [--rows 10000,100000]

Each file is read by a process of its own. Prints the second table of `bulk.md`.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path

from tests.benchmarks.bulk import WRITERS
from tests.rig import MESSENGER
from worker.files.job_database import JobDatabase
from worker.files.rows import Reading
from worker.files.workbook import write

HEADING = """\
| rows | format | CPU a row, read | CPU a row, surveyed | peak memory |
|---:|---|---:|---:|---:|"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument("--rows", default="10000,100000")
    sizes = [int(rows) for rows in arguments.parse_args().rows.split(",")]
    print(HEADING)
    with tempfile.TemporaryDirectory() as folder:
        for rows in sizes:
            for ending, write in {**WRITERS, "xlsx": write_workbook}.items():
                path = Path(folder, f"{rows}.{ending}")
                write(path, rows)
                measure(path, rows)


def measure(path: Path, rows: int) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as process:
        read, _ = process.submit(read_file, str(path), rows).result()
        surveyed, peak = process.submit(survey_file, str(path), rows).result()
    print(
        f"| {rows:,} | {path.suffix[1:]} | {read / rows * 1000:.3f} ms | {surveyed / rows * 1000:.3f} ms | "
        f"{peak:.0f} MB |",
        flush=True,
    )


def read_file(path: str, rows: int) -> tuple[float, float]:
    """Seconds of CPU, and the most memory in megabytes; raises where a row is missing."""
    started = time.process_time()
    assert sum(1 for _ in Reading((path,)).rows()) == rows
    return time.process_time() - started, peak_memory()


def survey_file(path: str, rows: int) -> tuple[float, float]:
    """The same for the first of the two readings of a job, which looks at all rows together."""
    started = time.process_time()
    with JobDatabase() as database:
        database.take(Reading((path,)), stopped=lambda: False)
        assert database.where(rows) is not None
    return time.process_time() - started, peak_memory()


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_workbook(path: Path, rows: int) -> None:
    attributes = MESSENGER["ottPlatformAttributes"]
    header = ["ottPlatformName", *attributes]
    pages = (["messenger", *map(str, {**attributes, "pageId": n}.values())] for n in range(rows))
    with path.open("wb") as file:
        write(file, chain([header], pages))


if __name__ == "__main__":
    main()
