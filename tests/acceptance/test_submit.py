"""`ott-worker submit` as its user sees it: files, a terminal, exit codes."""

import asyncio
import csv
import json
import resource
import signal
import sys

import aio_pika
import pytest

from tests.acceptance.submit_command import Command, ended, lines, pages_called, told, write_pages
from tests.acceptance.terminal import in_a_terminal
from tests.commands import begin
from tests.rig import Rig, messenger, until
from tests.sandbox_faults import Latency, Status
from tests.unit.test_replies import REGISTERED
from worker.cli.app import main
from worker.contract.reply import reply_body
from worker.settings import Settings


class WorkerByHand:
    """Takes requests and answers them, in the order in which a test wants it."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._requests: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()

    async def start(self, prefix: str) -> None:
        for service in self._rig.services:
            await self._rig.stop_worker(service)
        queue = await self._rig.requester.channel.get_queue(f"{prefix}.requests", ensure=False)
        await queue.consume(self._requests.put, no_ack=True)

    async def take(self) -> aio_pika.abc.AbstractIncomingMessage:
        return await asyncio.wait_for(self._requests.get(), 30)

    async def answer(self, request: aio_pika.abc.AbstractIncomingMessage, status: str) -> None:
        page = json.loads(request.body)["ottPlatformAttributes"]["pageId"]
        told = REGISTERED._replace(request_id=request.message_id or "", status=status, resource_id=page)
        message = aio_pika.Message(reply_body(told), correlation_id=request.correlation_id)
        assert request.reply_to is not None
        await self._rig.requester.channel.default_exchange.publish(message, request.reply_to)


async def test_a_csv_file_is_registered_with_a_line_for_each_row(submit, rig, tmp_path):
    pages = write_pages(tmp_path / "pages.csv", range(1, 51))
    results = tmp_path / "results.jsonl"
    end = await submit(pages, "--results", results)
    assert (end.code, end.err) == (0, "")
    assert end.out.startswith("50 rows read in 0:00:0")
    assert end.out.endswith(": 50 registered.\n")
    written = sorted(lines(results), key=lambda line: line["row"])
    assert [line["row"] for line in written] == list(range(1, 51))
    assert written[1] == {
        "row": 2,
        "requestId": written[1]["requestId"],
        "status": "registered",
        "ottPlatformName": "messenger",
        "resourceId": "2",
        "errors": [],
        "line": 3,
        "file": str(pages),
    }
    assert len({line["requestId"] for line in written}) == 50
    assert sorted(pages_called(rig), key=int) == [str(number) for number in range(1, 51)]


async def test_what_is_not_registered_is_told_by_error_and_first_rows(submit, rig, tmp_path):
    rows = [
        messenger("1"),
        messenger("2", ""),
        b"{not json",
        messenger("4", "", endpointUrl=None),
        messenger("5"),
        b"[1]",
    ]
    rig.sandbox.faults.add(
        Status(status=403, errorcode=20002, message="Insufficient privileges", resource_id="5")
    )
    (tmp_path / "pages.jsonl").write_bytes(b"\n".join(rows))
    end = await submit("pages.jsonl", "--results", "results.jsonl")
    assert end.code == 1
    assert "6 rows read" in end.out
    assert ": 1 registered, 1 failed, 4 invalid.\n" in end.out
    table = [line.split() for line in end.out.splitlines()[2:]]
    assert table[0] == ["invalid", "2", "PageName", "must", "be", "provided", "2,", "4"]
    assert ["failed", "1", "Insufficient", "privileges", "5"] in table
    written = {line["row"]: line for line in lines(tmp_path / "results.jsonl")}
    assert (written[3]["status"], written[3]["errors"]) == ("invalid", ["The row is not valid JSON."])
    assert written[4]["errors"] == ["EndpointUrl must be provided", "PageName must be provided"]
    assert written[5]["status"] == "failed"
    assert written[6]["errors"] == ["The row is not a JSON object."]


async def test_no_secret_is_written_or_shown(submit, tmp_path, secret_values):
    names = ("applicationSecret", "pageAccessToken", "callbackVerifyToken")
    given = {name: secret_values[name] for name in names}
    rows = [messenger("1", **given), messenger("2", "", **given), messenger("3", **given)[:-1]]
    (tmp_path / "pages.jsonl").write_bytes(b"\n".join(rows))
    end = await submit("pages.jsonl", "--results", "results.jsonl")
    assert end.code == 1
    checked = await submit("pages.jsonl", "--check")
    shown = end.out + end.err + checked.out + checked.err + (tmp_path / "results.jsonl").read_text()
    assert [value for value in secret_values.values() if value in shown] == []


async def test_rows_of_standard_input_are_sent_as_they_come(submit, rig):
    process = await submit.start("-")
    assert process.stdin is not None
    process.stdin.write(messenger("1") + b"\n" + messenger("2") + b"\n")
    await process.stdin.drain()
    await until(lambda: sorted(pages_called(rig)) == ["1", "2"])
    assert (await ended(process, messenger("3"))).code == 0
    assert sorted(pages_called(rig)) == ["1", "2", "3"]


async def test_several_files_are_one_job_whose_rows_are_counted_on(submit, tmp_path):
    write_pages(tmp_path / "a.csv", [1, 2])
    (tmp_path / "b.json").write_bytes(b"[" + messenger("3") + b"]")
    assert (await submit("a.csv", "b.json", "--results", "results.csv")).code == 0
    written = list(csv.DictReader((tmp_path / "results.csv").open(encoding="utf-8-sig")))
    shown = [tuple(line[name] for name in ("row", "resourceId", "file", "line")) for line in written]
    rows = [("1", "1", "a.csv", "2"), ("2", "2", "a.csv", "3"), ("3", "3", "b.json", "1")]
    assert sorted(shown) == rows
    assert list(written[0])[:6] == ["row", "requestId", "status", "ottPlatformName", "resourceId", "errors"]


async def test_no_wait_only_publishes(submit, rig, tmp_path):
    write_pages(tmp_path / "pages.csv", [1, 2, 3])
    end = await submit("pages.csv", "--no-wait")
    assert end.code == 0
    assert end.out.endswith(": 3 published.\n")
    replies = [json.loads((await rig.requester.take("replies")).body) for _ in range(3)]
    assert {reply["status"] for reply in replies} == {"registered"}
    assert {reply["resourceId"] for reply in replies} == {"1", "2", "3"}


async def test_without_a_broker_it_ends_with_3(tmp_path):
    write_pages(tmp_path / "pages.csv", [1])
    end = await Command(Settings(amqp_url="amqp://u:hidden@127.0.0.1:1/"))("pages.csv")
    assert end.code == 3
    assert end.err == "ott-worker: RabbitMQ at 127.0.0.1:1 cannot be reached: connection refused\n"
    assert end.out == ""


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["missing.csv"], "missing.csv cannot be read: No such file or directory"),
        (["pages.csv", "--platform", "telegram"], "--platform must be messenger or line"),
        (["pages.csv", "--resume"], "--resume needs --results FILE and cannot be combined"),
        (["pages.csv", "--no-wait", "--results", "r.jsonl"], "--no-wait follows no replies"),
        (["headless.csv"], "headless.csv: no column has the name of an attribute (such as pageId)"),
        (["pages.csv", "--results", "nowhere/r.jsonl"], "--results nowhere/r.jsonl cannot be written"),
        (["pages.csv", "--results", "headless.csv"], "--results headless.csv is not a results file in line"),
        (
            ["pages.csv", "--failed", "/dev/null"],
            "--failed /dev/null cannot be written: it is not a regular file",
        ),
        (["pages.csv", "--failed", "f.jsonl"], "pages.csv: --failed gives rows of a table back as CSV or"),
        (["pages.csv", "p.jsonl", "--failed", "f.csv"], "p.jsonl: --failed gives rows of a table back as"),
        (["pages.csv", "--failed", "nowhere/f.csv"], "--failed nowhere/f.csv cannot be written: its folder"),
        (["pages.csv", "--failed", "/proc/f.csv"], "--failed /proc/f.csv cannot be written: its folder: No"),
        (["pages.csv", "--failed", "pages.csv"], "--failed pages.csv and pages.csv are the same file: name"),
        (["pages.csv", "--sheet", "Pages"], "pages.csv: a CSV file has no sheets: leave out --sheet"),
        (["-", "-"], "- and - are the same file: name another file"),
        (["pages.csv", "--encoding", "klingon"], "--encoding must be the name of a text encoding"),
        (["pages.csv", "--encoding", "undefined"], "--encoding must be the name of a text encoding"),
        ([], "Missing argument 'FILE...'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_ends_with_2_and_one_line(arguments, error, tmp_path, monkeypatch, capsys):
    write_pages(tmp_path / "pages.csv", [1])
    (tmp_path / "headless.csv").write_text("messenger,1\nmessenger,2\n")
    (tmp_path / "p.jsonl").write_bytes(messenger("1"))
    monkeypatch.setattr(sys, "argv", ["ott-worker", "submit", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"ott-worker: {error}")
    assert err.count("\n") == 1


async def test_results_of_an_earlier_run_are_not_overwritten(submit, tmp_path):
    write_pages(tmp_path / "pages.csv", [1])
    assert (await submit("pages.csv", "--results", "r.jsonl")).code == 0
    before = (tmp_path / "r.jsonl").read_text()
    end = await submit("pages.csv", "--results", "r.jsonl")
    assert end.code == 2
    assert "holds the results of an earlier run: add --resume to continue it" in end.err
    assert (tmp_path / "r.jsonl").read_text() == before


@pytest.mark.parametrize("results", ["pages.csv", "link.jsonl", "other.jsonl"])
@pytest.mark.parametrize("more", [[], ["--check"], ["--resume"]])
async def test_a_file_that_holds_something_else_is_never_written_to(tmp_path, results, more):
    (tmp_path / "pages.csv").write_text("pageId")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "pages.csv")
    (tmp_path / "other.jsonl").write_bytes(messenger("1"))
    before = (tmp_path / results).read_bytes()
    command = Command(Settings(amqp_url="amqp://127.0.0.1:1/"))
    end = await command("pages.csv", "--platform", "messenger", "--results", results, *more)
    assert (end.code, end.out, end.err.count("\n")) == (2, "", 1)
    assert "name another file" in end.err
    assert (tmp_path / results).read_bytes() == before


async def test_a_results_file_that_takes_no_more_ends_the_job(submit, tmp_path):
    write_pages(tmp_path / "pages.csv", [1])
    end = await submit("pages.csv", "--results", "/dev/full")
    assert end.code == 1
    assert "ott-worker: /dev/full cannot be written: No space left on device\n" in end.err


@pytest.mark.parametrize("more", [[], ["--check"]])
async def test_a_full_folder_for_temporary_files_ends_the_job_with_one_line(submit, rig, tmp_path, more):
    rig.sandbox.faults.add(Status(path="registration", status=404))
    write_pages(
        tmp_path / "pages.csv", range(300), applicationSecret="" if more else "s", pageName="y" * 20_000
    )
    full = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))}
    command = ("submit", "pages.csv", "--failed", "failed.csv", *more)
    end = await ended(await begin(rig.settings(), *command, process=full))
    assert end.code == 1
    assert "ott-worker: the folder for temporary files is full: name another one in TMPDIR\n" in end.err
    assert "Traceback" not in end.err


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_it_while_it_waits_for_standard_input(submit, tmp_path, sign):
    process = await submit.start("-", "--results", "r.jsonl")
    assert process.stdin is not None
    process.stdin.write(messenger("1") + b"\n")
    await until(lambda: (tmp_path / "r.jsonl").exists() and lines(tmp_path / "r.jsonl"))
    process.send_signal(sign)
    assert await asyncio.wait_for(process.wait(), 30) == 130
    assert "Interrupted after row 1. No row is outstanding" in (await ended(process)).err


async def test_ctrl_c_stops_and_resume_goes_on_without_sending_again_what_was_registered(
    submit, rig, tmp_path
):
    rig.sandbox.faults.add(Latency(path="registration", seconds=0.1))
    write_pages(tmp_path / "pages.csv", range(1, 401))
    results = tmp_path / "r.jsonl"
    process = await submit.start("pages.csv", "--results", "r.jsonl", "--outstanding", "20")
    await until(lambda: results.exists() and len(lines(results)) >= 40)
    process.send_signal(signal.SIGINT)
    end = await ended(process)
    assert end.code == 130
    assert "ott-worker: Interrupted after row" in end.err
    assert "No row is outstanding; continue with --resume" in end.err
    first = {line["resourceId"] for line in lines(results)}
    assert 40 <= len(first) < 400
    assert sorted(pages_called(rig)) == sorted(first)

    rig.sandbox.heal()
    end = await submit("pages.csv", "--results", "r.jsonl", "--resume")
    assert end.code == 0
    assert f"{400 - len(first)} registered, {len(first)} settled before.\n" in end.out
    assert sorted(pages_called(rig), key=int) == [str(number) for number in range(1, 401)]
    assert len(lines(results)) == 400


async def test_resume_after_kill_9_goes_on_past_a_torn_line(submit, rig, tmp_path):
    rig.sandbox.faults.add(Latency(path="registration", seconds=0.05))
    write_pages(tmp_path / "pages.csv", range(1, 301))
    results = tmp_path / "r.jsonl"
    process = await submit.start("pages.csv", "--results", "r.jsonl", "--outstanding", "50")
    await until(lambda: results.exists() and len(lines(results)) >= 60)
    process.kill()
    await ended(process)
    with results.open("a") as file:
        file.write('{"row": 299, "requestId": "torn')
    rig.sandbox.heal()
    assert (await submit("pages.csv", "--results", "r.jsonl", "--resume")).code == 0
    assert {line["row"] for line in lines(results)} == set(range(1, 301))
    assert {line["status"] for line in lines(results)} == {"registered"}


async def test_resume_sends_the_newest_row_of_a_page_behind_an_older_one_that_it_repeats(
    submit, rig, tmp_path, prefix
):
    worker = WorkerByHand(rig)
    await worker.start(prefix)
    rows = [messenger("p", "old"), *(messenger(str(n)) for n in range(2, 12)), messenger("p", "new")]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(rows))
    results = tmp_path / "r.jsonl"
    first = await submit.start("in.jsonl", "--results", "r.jsonl")
    old, *others, new = [await worker.take() for _ in rows]
    for request in others:
        await worker.answer(request, "failed")
    await until(lambda: len(lines(results)) == len(others))
    first.kill()
    await first.wait()

    second = await submit.start("in.jsonl", "--results", "r.jsonl", "--resume", "--outstanding", "5")
    again = await worker.take()
    assert again.message_id == old.message_id
    await worker.answer(old, "registered")
    await worker.answer(new, "registered")
    await until(lambda: lines(results)[-1]["row"] == len(rows))
    for request in others:
        assert (await worker.take()).message_id == request.message_id
        await worker.answer(request, "registered")
    assert (await worker.take()).message_id == new.message_id
    await worker.answer(again, "registered")
    await worker.answer(new, "registered")
    assert (await ended(second)).code == 0


@pytest.mark.parametrize("corrected", [messenger("3"), messenger("2", "corrected")])
async def test_the_answer_to_what_a_row_said_before_it_was_corrected_is_not_its_own(
    submit, rig, tmp_path, prefix, corrected
):
    worker = WorkerByHand(rig)
    await worker.start(prefix)
    (tmp_path / "in.jsonl").write_bytes(messenger("1") + b"\n" + messenger("2"))
    results = tmp_path / "r.jsonl"
    first = await submit.start("in.jsonl", "--results", "r.jsonl")
    one, before = [await worker.take() for _ in range(2)]
    await worker.answer(one, "registered")
    await until(lambda: results.exists() and lines(results))
    first.kill()
    await first.wait()

    (tmp_path / "in.jsonl").write_bytes(messenger("1") + b"\n" + corrected)
    second = await submit.start("in.jsonl", "--results", "r.jsonl", "--resume")
    after = await worker.take()
    await worker.answer(before, "registered")
    await worker.answer(after, "failed")
    await worker.answer(before, "registered")
    end = await ended(second)
    assert (end.code, "1 failed, 1 settled before" in end.out) == (1, True)
    assert [(line["row"], line["status"]) for line in lines(results)] == [(1, "registered"), (2, "failed")]


async def test_resume_never_rolls_a_page_back_to_an_older_row(submit, rig, tmp_path):
    rows = [messenger("1", "old"), messenger("2"), messenger("1", "new")]
    (tmp_path / "pages.jsonl").write_bytes(b"\n".join(rows))
    rig.sandbox.faults.add(Status(status=404, resource_id="1", count=1))
    assert (await submit("pages.jsonl", "--results", "r.jsonl")).code == 1
    assert len(pages_called(rig)) == 3
    end = await submit("pages.jsonl", "--results", "r.jsonl", "--resume")
    assert end.code == 0
    assert len(pages_called(rig)) == 3
    last = lines(tmp_path / "r.jsonl")[-1]
    assert (last["row"], last["status"]) == (1, "superseded")
    assert last["errors"] == ["Row 3, a later one, is registered for the same resource."]


async def test_resume_notices_that_the_input_is_another_one(submit, rig, tmp_path):
    write_pages(tmp_path / "pages.csv", [1, 2])
    assert (await submit("pages.csv", "--results", "r.jsonl")).code == 0
    write_pages(tmp_path / "pages.csv", [3, 1, 2])
    end = await submit("pages.csv", "--results", "r.jsonl", "--resume")
    assert end.code == 2
    assert "Row 1 has another resource than in the results file, so the input has changed" in end.err
    assert sorted(pages_called(rig)) == ["1", "2"]


async def test_without_a_worker_it_says_so_and_tells_at_its_end_what_is_out(submit, rig, tmp_path, prefix):
    await rig.stop_first()
    write_pages(tmp_path / "pages.csv", [1, 2])
    process = await submit.start("pages.csv")
    await told(process, f"No worker consumes requests from {prefix}.requests: start one.")
    process.send_signal(signal.SIGINT)
    end = await ended(process)
    assert end.code == 130
    assert "Interrupted after row 2. 2 rows are published and not answered; with --results" in end.err
    requests = await rig.requester.channel.get_queue(f"{prefix}.requests", ensure=False)
    async with requests.iterator(no_ack=True, timeout=30) as messages:
        kept = str((await anext(messages)).reply_to)
    assert kept.startswith(f"{prefix}.job.")
    await rig.requester.channel.queue_delete(kept)


async def test_of_several_rows_for_one_page_the_last_one_is_what_remains(submit, rig, tmp_path):
    names = [f"Page {number}" for number in range(40)]
    (tmp_path / "pages.jsonl").write_bytes(b"\n".join(messenger("1", name) for name in names))
    assert (await submit("pages.jsonl")).code == 0
    assert rig.names_called == names


async def test_two_jobs_do_not_write_one_results_file(submit, tmp_path):
    write_pages(tmp_path / "pages.csv", [1])
    first = await submit.start("-", "--results", "r.jsonl")
    await until((tmp_path / "r.jsonl").exists)
    end = await submit("pages.csv", "--results", "r.jsonl", "--resume")
    assert (end.code, end.err) == (2, "ott-worker: --results r.jsonl is being written by another job\n")
    assert (await ended(first)).code == 0


async def test_on_a_terminal_a_bar_is_shown_and_taken_away_again(submit, rig, tmp_path):
    rig.sandbox.faults.add(Latency(path="registration", seconds=0.5))
    write_pages(tmp_path / "pages.csv", range(1, 301))
    command = f"{sys.executable} -m worker submit pages.csv"
    code, shown = await in_a_terminal(command, {**submit.environment, "TERM": "xterm"}, tmp_path)
    assert code == 0
    for name in ("━", "rows/s", "read", "published", "registered", "rejected", "failed"):
        assert name in shown
    assert shown.rpartition("\x1b[2K")[2].endswith("300 registered.\n")
