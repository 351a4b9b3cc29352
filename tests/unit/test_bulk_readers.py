"""Rows from files of every kind, and what is said of those that cannot be read."""

import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.files.damage import CELL_COUNT, QUOTING
from worker.files.rows import Reading, Row
from worker.files.source import Corrupt, Unreadable, elements


def read(tmp_path: Path, name: str, content: str | bytes, **how: Any) -> list[Row]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if name == "a.csv":
        how.setdefault("platform", "messenger")
    return list(Reading((str(path),), **how).rows())


def attributes(row: Row) -> dict[str, Any]:
    found = json.loads(row.body)["ottPlatformAttributes"]
    assert isinstance(found, dict)
    return found


def test_a_csv_row_becomes_the_json_object_of_the_api(tmp_path):
    (row,) = read(
        tmp_path, "a.csv", "ottPlatformName,pageId,pageName,isActive\nmessenger,17,Engineers,true\n"
    )
    assert json.loads(row.body) == {
        "ottPlatformName": "messenger",
        "ottPlatformAttributes": {"pageId": "17", "pageName": "Engineers", "isActive": True},
    }
    assert (row.place, row.platform, row.resource_id) == (1, "messenger", "17")


NAMED = {"pageId": "1", "pageName": "a,b;c"}
TEXTS: dict[str, tuple[str | bytes, list[dict[str, Any]]]] = {
    "text": ("pageId,pageName,applicationId\n007,,1\n", [{"pageId": "007", "applicationId": "1"}]),
    "names": ("Page ID,PAGENAME\n1,A\n", [{"pageId": "1", "pageName": "A"}]),
    "other names": ("page_id, Page-Name \n1,A\n", [{"pageId": "1", "pageName": "A"}]),
    "names with white space": (
        "\ufeffpageId,\u00a0page name\u200b\n1,A\n",
        [{"pageId": "1", "pageName": "A"}],
    ),
    "prefixes": ("ottPlatformAttributes.pageId,Owner\n1,a@example.com\n", [{"pageId": "1"}]),
    "comma": ('pageId,pageName\n1,"a,b;c"\n', [NAMED]),
    "semicolon": ('pageId;pageName\n1;"a,b;c"\n', [NAMED]),
    "apostrophes": ("pageId,pageName\n1,'a,b;c'\n", [NAMED]),
    "quotes after a backslash": (
        'pageId,pageName\n1,"say \\"hi\\", you"\n',
        [{"pageId": "1", "pageName": 'say "hi", you'}],
    ),
    "tab": ("pageId\tpageName\r\n1\ta,b;c\r\n", [NAMED]),
    "bar": ("pageId|pageName\n1|a,b;c", [NAMED]),
    "a space before quotes": ('pageId, pageName\n1, "a,b;c"\n', [NAMED]),
    "a mark": ('\ufeffpageId,pageName\n1,"a,b;c"\n', [NAMED]),
    "blank lines": ('\n\npageId,pageName\n\n1,"a,b;c"\n,\n', [NAMED]),
    "UTF-16 with a mark": ("pageId\tpageName\n1\ta,b;c\n".encode("utf-16"), [NAMED]),
    "UTF-16 of one order": ("\ufeffpageId\tpageName\n1\ta,b;c\n".encode("utf-16-le"), [NAMED]),
    "quotes and line ends in a cell": (
        'pageId,pageName\n1,"say ""hi""\r\nthere"\n2,b\n',
        [{"pageId": "1", "pageName": 'say "hi"\nthere'}, {"pageId": "2", "pageName": "b"}],
    ),
    **{
        f"the flag {cell}": (f"pageId,isActive\n1,{cell}\n", [{"pageId": "1", "isActive": value}])
        for cell, value in {"FALSE": False, "0": 0, " True ": True, "Yes": True, "n": False, "2": "2"}.items()
    },
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_comes_out_of_text(tmp_path, name):
    content, expected = TEXTS[name]
    found = [attributes(row) for row in read(tmp_path, "a.csv", content)]
    assert found == expected
    assert [list(map(type, row.values())) for row in found] == [
        list(map(type, row.values())) for row in expected
    ]


def test_a_csv_row_that_is_broken_spoils_no_other(tmp_path):
    rows = read(tmp_path, "a.csv", 'pageId,pageName\n1,a\n2,"b"c\n3,c,d\n4,d\n')
    assert [(row.line, *map(str, row.problems)) for row in rows] == [
        (2,),
        (3, f"The row {QUOTING.what}; allowed: {QUOTING.allowed}"),
        (4, f"The row {CELL_COUNT.what} (3 cells, the header 2); allowed: {CELL_COUNT.allowed}"),
        (5,),
    ]


def test_a_cell_that_has_swallowed_whole_rows_is_damage_and_one_with_a_line_end_is_none(tmp_path):
    text = 'pageId,pageName,isActive\n1,a,1\n2,"b,1\n3,c,1\n4,d",0\n5,"two\nlines, say",1\n'
    rows = read(tmp_path, "a.csv", text)
    found = [(row.line, row.shown_id, [problem.kind for problem in row.problems]) for row in rows]
    assert found == [(2, "1", []), (3, None, [QUOTING]), (6, "5", [])]


def test_json_rows_are_sent_byte_for_byte(tmp_path):
    bodies = [b'{"ottPlatformName" : "line",  "x": "\\u00e4"}', b'{"b": [1, {"c": "]}\\\\"}]}']
    as_lines = read(tmp_path, "a.jsonl", b"\r\n\n".join(bodies))
    as_array = read(tmp_path, "a.json", b" \n[ " + b" ,\n".join(bodies) + b"\n]\n")
    assert [row.body for row in as_lines] == [row.body for row in as_array] == bodies


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_json_row_that_is_broken_spoils_no_other(tmp_path, name):
    bodies = ['{"a": 1}', '{"a": NaN}', '{"a": 1, "a": 2}', "[]", '{"a": "a\tb"}', '{"b": 2}']
    bodies.insert(4, '{"a": ' + "9" * 5000 + "}")
    bodies[:0] = ["nonsense"] if name == "a.jsonl" else []
    content = "\n".join(bodies) if name == "a.jsonl" else f"[{','.join(bodies)}]"
    rows = read(tmp_path, name, content)
    assert [list(map(str, row.problems)) for row in rows] == [
        *([["The row is not valid JSON."]] if name == "a.jsonl" else []),
        [],
        ["The row holds NaN or Infinity, which are not JSON."],
        ["The row holds an object with a duplicate key."],
        ["The row is not a JSON object."],
        ["The row holds a number that is too long or too large."],
        ["The row is not valid JSON."],
        [],
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('[{"a": 1}, {"b": "', "after row 1: what follows is not JSON, or is after the array"),
        ('[{"a": 1}', "at its beginning: what follows is not JSON, or is after the array"),
        ('[{"a": 1}] {"b": 2}', "after row 1: what follows is not JSON, or is after the array"),
        ("[1}", "at its beginning: what follows is not JSON, or is after the array"),
        ('[{"a": 1}, nonsense, {"b": 2}]', "after row 1: what follows is not JSON"),
    ],
)
def test_json_that_cannot_be_read_on_is_told(tmp_path, content, why):
    with pytest.raises(Unreadable, match=why):
        read(tmp_path, "a.json", content)


def test_the_platform_given_for_all_rows_is_for_those_that_name_none(tmp_path):
    rows = read(tmp_path, "a.jsonl", '{"x": 1}\n{"ottPlatformName": "line"}\n', platform="messenger")
    assert [row.body for row in rows] == [
        b'{"ottPlatformName":"messenger","x":1}',
        b'{"ottPlatformName": "line"}',
    ]
    (row,) = read(tmp_path, "a.csv", "ottPlatformName,pageId\n,1\n", platform="messenger")
    assert row.platform == "messenger"


@pytest.mark.parametrize("at_once", [True, False])
def test_a_file_that_changes_while_a_job_reads_it_is_told(tmp_path, *, at_once):
    path = tmp_path / "a.csv"
    path.write_text("pageId,pageName\n1,a\n2,b")
    reading = Reading((str(path),), "messenger")
    rows = reading.rows()
    complete = [row.attributes["pageName"] for row in ([next(rows)] if at_once else rows)]
    with path.open("a") as file:
        file.write("cde\n3,f\n")
    os.utime(path, (1, 1))
    with pytest.raises(Corrupt, match=r"a.csv cannot be read .*: it changed while it was read"):
        list(rows if at_once else reading.rows())
    assert complete == ["a", "b"][: 2 - at_once]


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_has_no_rows(tmp_path, name, content):
    assert read(tmp_path, name, content) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def cut(content: bytes, size: int) -> Iterator[bytes]:
    return (content[at : at + size] for at in range(0, len(content), size))


@settings(max_examples=40)
@given(st.lists(json_values, max_size=6), st.integers(1, 20), st.booleans())
def test_an_array_is_cut_into_its_elements_wherever_the_chunks_end(values, size, pretty):
    content = json.dumps(values, indent=2 if pretty else None, ensure_ascii=False).encode()
    assert [json.loads(element) for _, element in elements(cut(content, size), "utf-8")] == values


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}{name}"
        row = '{"ottPlatformName": "line", "ottPlatformAttributes": {"channelName": "%s"}}' % ("x" * 100)
        if name == "a.csv":
            path.write_text("channelId,channelName\n" + f"1,{'x' * 100}\n" * rows)
        elif name == "a.jsonl":
            path.write_text(f"{row}\n" * rows)
        else:
            path.write_text("[" + ",".join([row] * rows) + "]")
        tracemalloc.start()
        try:
            assert sum(1 for _ in Reading((str(path),), "line").rows()) == rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    assert peak(4000) < 1.5 * peak(1000)
