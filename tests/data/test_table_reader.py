"""Reading tables from files: every format gives the same table, every fault one clear error."""

from __future__ import annotations

import io
import json
import logging
import re
import resource
import zipfile

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from mmlm.base.errors import DataError
from mmlm.data.table_reader import read_table

FRAME = pd.DataFrame(
    {
        "price": [1.5, -2.0, None, 3e-7],
        "city": ["Oslo", "K\u00f6ln, West", None, 'the "old" town'],
        "rooms": [1, 2, 3, 4],
        "sold": [True, False, True, True],
        "day": pd.to_datetime(["2024-01-31", "2024-02-29", None, "1960-05-05"]),
    }
)
TEXTS = {
    "price": ["1.5", "-2", None, "3e-07"],
    "city": ["Oslo", "K\u00f6ln, West", None, 'the "old" town'],
    "rooms": ["1", "2", "3", "4"],
    "sold": ["True", "False", "True", "True"],
    "day": ["2024-01-31", "2024-02-29", None, "1960-05-05"],
}
KINDS = ["number", "category", "number", "category", "date"]


def write(folder, kind: str):
    path = folder / f"table.{kind.split()[0]}"
    match kind:
        case "csv":
            FRAME.to_csv(path, index=False)
        case "csv semicolon":
            FRAME.to_csv(path, index=False, sep=";")
        case "csv bar utf-16":
            FRAME.to_csv(path, index=False, sep="|", encoding="utf-16")
        case "csv utf-8-sig":
            FRAME.to_csv(path, index=False, encoding="utf-8-sig")
        case "csv latin-1":
            FRAME.to_csv(path, index=False, encoding="latin-1", lineterminator="\r\n")
        case "tsv":
            FRAME.to_csv(path, index=False, sep="\t", na_rep="NA")
        case "jsonl":
            FRAME.assign(day=FRAME.day.dt.strftime("%Y-%m-%d")).to_json(path, orient="records", lines=True, double_precision=15)
        case "parquet":
            FRAME.to_parquet(path, index=False)
        case "xlsx":
            FRAME.to_excel(path, index=False)
        case "hf":
            import datasets

            datasets.Dataset.from_pandas(FRAME, preserve_index=False).save_to_disk(str(path))
    return path


FORMATS = ["csv", "csv semicolon", "csv bar utf-16", "csv utf-8-sig", "csv latin-1", "tsv", "jsonl", "parquet", "xlsx", "hf"]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_table(tmp_path, kind):
    path = write(tmp_path, kind)
    table = read_table(path, target="sold")
    assert table.target == "sold" and table.names == list(TEXTS)
    assert {name: table.texts(name) for name in table.names} == TEXTS
    assert [column.kind for column in table.columns] == KINDS
    assert read_table(path, limit_rows=2).texts("city") == TEXTS["city"][:2]
    assert read_table(path, limit_rows=99).num_rows == 4


def test_reading_latin_1_is_said_in_a_log_line(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        read_table(write(tmp_path, "csv latin-1"))
    assert "table.csv, line 3: byte 0xf6 is not UTF-8; the file is read as latin-1" in caplog.text
    (tmp_path / "windows.csv").write_bytes("a,b\n1,\u201cx\u201d\n".encode("cp1252"))
    assert read_table(tmp_path / "windows.csv").texts("b") == ["\u201cx\u201d"]


CSV_FAULTS = [
    (b"", "t.csv: is empty"),
    (b"\n\n", "t.csv: is empty"),
    (b"a,b\n", "has a header (2 columns), but no row"),
    (b"a,b\n1,2\n\n3\n4,5,6\n", "line 4: has 1 cells, fewer than the 2 columns"),
    (b'a,b\n"x\ny",2\n4,5,6\n', "line 4: has 3 cells, more than the 2 columns"),
    (b"a,b, a\n1,2,3\n", "line 1: columns 1 and 3 have the same name 'a'"),
    (b"a,b\n1,2\n1,\xff\x81\n", "line 3: byte 0x81 is no text"),
    (b"a,b\n1,\x002\n", "line 2: holds a NUL character"),
    (b"\xff\xfea\x00,\x00b\x00\n\x00\x00\xd8", "is not utf-16"),
    (b"\xef\xbb\xbfa,b\n1,\xff\n", "line 2: is not utf-8-sig"),
    (b'a,b\n1,"2\n', "never closed"),
    (b'a,b\n1,"2"x\n', "line 2: ',' expected after '\"'"),
    (b'a,b\n1,"' + b"x" * 200_000 + b'"\n', "line 2: field larger than field limit"),
    (b"a,b\n1,2\n\n5,inf\n", "column 'b', line 4: the value is infinite"),
    (b"a,b\n1,2\n1,1e999\n", "column 'b', line 3: the value is infinite"),
]


@pytest.mark.parametrize(("content", "said"), CSV_FAULTS, ids=range(len(CSV_FAULTS)))
def test_a_faulty_csv_is_one_error_with_file_and_line(tmp_path, content, said):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_table(path)
    assert said in str(error.value) and str(path) in str(error.value)


JSON_FAULTS = [
    (b"\n", "holds no record"),
    (b'{"a": 1}\n{"a": \n', "line 2: is not a JSON record"),
    (b'{"a": 1}\n\n[1]\n', "line 3: must be a JSON object, but is a list"),
    (b'{"a": 1, "a": 2}\n', "line 1: is not a JSON record: the key 'a' occurs twice"),
    (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "line 1: is not a JSON record: nested too deeply"),
    (b'{"a": 1}\n{"a": Infinity}\n', "column 'a', line 2: the value is infinite"),
    (b'{"a": ' + b"9" * 10_000 + b"}\n", "line 1: is not a JSON record"),
    (json.dumps({str(key): 1 for key in range(20_001)}).encode(), "has 20001 columns, but at most 20000"),
]


@pytest.mark.parametrize(("content", "said"), JSON_FAULTS, ids=range(len(JSON_FAULTS)))
def test_a_faulty_jsonl_is_one_error_with_file_and_line(tmp_path, content, said):
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_table(path)
    assert said in str(error.value) and str(path) in str(error.value)


def test_records_with_different_keys_share_one_table(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1}\n{"b": [1, 2], "a": null}\n{"c": NaN, "a": "x"}\n')
    table = read_table(path)
    assert {name: table.texts(name) for name in table.names} == {
        "a": ["1", None, "x"],
        "b": [None, "[1, 2]", None],
        "c": [None] * 3,
    }


def test_cells_of_text_files_are_read_as_people_write_them(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("n, when,code, empty,,gone\n+1, 2020-01-02,NA,x,1,\n.5,2020-01-02 10:00,None, N/A,2,nan\n1e3,,null,y,3,NA\n")
    table = read_table(path)
    assert table.names == ["n", "when", "code", "empty", "Unnamed: 4", "gone"]
    assert table.texts("n") == ["1", "0.5", "1000"] and table.texts("when") == ["2020-01-02", "2020-01-02T10:00:00", None]
    assert table.texts("code") == [None, "None", None] and table.texts("empty") == ["x", None, "y"]
    assert table.column("gone").missing.all()
    (tmp_path / "one.csv").write_text("only\n1\n2\n")
    assert read_table(tmp_path / "one.csv").texts("only") == ["1", "2"]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("prise", "target: unknown column 'prise'. Did you mean 'price'?"),
        ("gone", "target 'gone' has no value: all 3 cells are missing"),
        ("same", "target 'same' has one class only, 'a'"),
    ],
)
def test_a_target_that_cannot_be_predicted_is_refused(tmp_path, target, said):
    path = tmp_path / "t.csv"
    path.write_text("price,gone,same\n1,,a\n2,,a\n3,,NA\n")
    with pytest.raises(DataError) as error:
        read_table(path, target=target)
    assert said in str(error.value) and str(path) in str(error.value)


def test_files_that_are_no_tables_are_named(tmp_path):
    (tmp_path / "prices.csv").write_text("a,b\n1,2\n")
    for name, said in [("price.csv", "no such file. Did you mean 'prices.csv'"), ("", "is a folder"), ("t.doc", "no such file")]:
        with pytest.raises(DataError, match=said):
            read_table(tmp_path / name)
    for name, said in [
        ("t.doc", "unknown kind of table file '.doc'"),
        ("t.xls", "old binary kind"),
        ("t.parquet", "not a readable Parquet"),
    ]:
        (tmp_path / name).write_text("x")
        with pytest.raises(DataError, match=said):
            read_table(tmp_path / name)
    with pytest.raises(DataError, match="limit_rows must be at least 1"):
        read_table(tmp_path / "prices.csv", limit_rows=0)


def test_a_million_columns_are_refused_before_they_are_allocated(tmp_path):
    path = tmp_path / "wide.csv"
    path.write_text(",".join(f"c{at}" for at in range(10**6)) + "\n" + ",".join("1" * 10**6) + "\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="line 1: has 1000000 columns, but at most 20000 can be read"):
        read_table(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "KiB"


def test_a_parquet_file_with_too_many_columns_is_refused(tmp_path):
    path = tmp_path / "wide.parquet"
    pyarrow.parquet.write_table(pyarrow.table({f"c{at}": [1] for at in range(20_001)}), path)
    with pytest.raises(DataError, match="has 20001 columns, but at most 20000 can be read"):
        read_table(path)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("a;b;c\n1,5;2,5;x, y\n3,5;4,5;z\n", ["a", "b", "c"]),
        ("name, first;age\nx;3\nz, u;4\n", ["name, first", "age"]),
        ("a|b\n1|x,y\n2|z\n", ["a", "b"]),
        ("a\tb\n1\t2\n", ["a", "b"]),
        ("a,b;c\n1,2\n3,4\n", ["a", "b;c"]),
    ],
)
def test_the_separator_is_the_one_that_cuts_all_rows_alike(tmp_path, text, columns):
    path = tmp_path / "t.csv"
    path.write_text(text)
    assert read_table(path).names == columns


def test_sheets_are_chosen_and_faults_name_their_line(tmp_path):
    path = tmp_path / "book.xlsx"
    with pd.ExcelWriter(path) as writer:
        FRAME.to_excel(writer, sheet_name="first", index=False)
        pd.DataFrame({"x": [1, 2], "y": ["#DIV/0!", "b"]}).to_excel(writer, sheet_name="second", index=False)
        pd.DataFrame([["a", "b", None], [1, 2, None], [1, 2, 3]]).to_excel(writer, sheet_name="ragged", index=False, header=False)
        pd.DataFrame([["a", "a"], [1, 2]]).to_excel(writer, sheet_name="twice", index=False, header=False)
        pd.DataFrame([["a", "b"]]).to_excel(writer, sheet_name="header", index=False, header=False)
        pd.DataFrame().to_excel(writer, sheet_name="empty", index=False, header=False)
    assert read_table(path, sheet="second").texts("y") == [None, "b"] == read_table(path, sheet=1).texts("y")
    for sheet, said in [
        ("secnd", "unknown sheet 'secnd'. Did you mean 'second'"), (9, "has no sheet number 9"), ("ragged", "line 3: has 3 cel"),
        ("twice", "line 1: columns 1 and 2 have the same name"), ("header", "but no row"), ("empty", "has no header"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=said):
            read_table(path, sheet=sheet)


def test_a_workbook_that_would_unpack_to_far_more_than_its_size_is_refused(tmp_path):
    path = tmp_path / "bomb.xlsx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/sharedStrings.xml", b" " * (60 << 20))
    with pytest.raises(DataError, match="unpacks to 62,914,560 bytes"):
        read_table(path)


def test_splits_and_class_names_of_a_data_set_on_disk(tmp_path):
    import datasets

    features = datasets.Features({"x": datasets.Value("int64"), "y": datasets.ClassLabel(names=["no", "yes"])})
    part = datasets.Dataset.from_dict({"x": [1, 2, 3], "y": [0, 1, -1]}, features=features)
    datasets.DatasetDict({"test": part, "train": part.select([1, 0])}).save_to_disk(str(tmp_path / "both"))
    assert read_table(tmp_path / "both").texts("y") == ["yes", "no"]
    assert read_table(tmp_path / "both", sheet="test").texts("y") == ["no", "yes", None]
    with pytest.raises(DataError, match="unknown split 'tset'. Did you mean 'test'"):
        read_table(tmp_path / "both", sheet="tset")


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with some bytes changed, cut out, doubled or put in, or cut short."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(0, max(1, len(data))))
        length = int(rng.integers(1, 40))
        match int(rng.integers(0, 6)):
            case 0:
                data[at : at + 1] = bytes([int(rng.integers(0, 256))])
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                data[at:at] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
            case 4:
                data[at:at] = rng.choice([b",", b'"', b"\n", b"\t", b"{", b"}", b"\xff\xfe", b"\0", b"1e999", b"-", b"NaN"])
            case 5:
                del data[at:]
    return bytes(data)


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with one to three bytes changed: what gets past the checks of a binary format's frame."""
    data = bytearray(content)
    for at in rng.integers(0, len(data), int(rng.integers(1, 4))):
        data[at] = int(rng.integers(0, 256))
    return bytes(data)


def numbers_changed(content: bytes, rng: np.random.Generator) -> bytes:
    """The workbook with some number or reference inside a sheet changed, packed anew."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(packed, "w") as after:
        for name in before.namelist():
            data = bytearray(before.read(name))
            if name.endswith("sheet1.xml"):
                spots = [match.start() for match in re.finditer(rb"[0-9A-Z]", data)]
                for at in rng.choice(spots, 2):
                    data[at : at + 1] = rng.choice([b"999999999", b"ZZZZZZ9", b"-1", b"1e99", b"5", b"<", b"\xff"])
            after.writestr(name, bytes(data))
    return packed.getvalue()


DAMAGE = [
    ("csv", mutated), ("csv bar utf-16", mutated), ("tsv", mutated), ("jsonl", mutated), ("parquet", mutated), ("parquet", flipped),
    ("xlsx", mutated), ("xlsx", numbers_changed), ("hf", flipped),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning:openpyxl.*")
@pytest.mark.parametrize(("kind", "damage"), DAMAGE, ids=[f"{kind}-{damage.__name__}" for kind, damage in DAMAGE])
def test_damaged_files_give_a_table_or_a_data_error(tmp_path, kind, damage):
    path = write(tmp_path, kind)
    victim = next(path.glob("*.arrow")) if kind == "hf" else path
    content = victim.read_bytes()
    rng = np.random.default_rng(len(kind))
    seen = {"read": 0, "refused": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(150):
        victim.write_bytes(damage(content, rng))
        try:
            assert read_table(path, target="sold").num_rows > 0
            seen["read"] += 1
        except DataError as error:
            assert str(path) in str(error)
            seen["refused"] += 1
    assert seen["refused"] > 10 and (damage is mutated or seen["read"] > 5), seen
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000, "KiB"
