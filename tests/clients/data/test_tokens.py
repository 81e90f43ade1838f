"""Documents as tokens: what is kept, on which side, and that every token of a text is predicted once."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sovfed.cli import cli
from sovfed.clients.data import load_records, natural_sites
from sovfed.clients.data.chosen import settled
from sovfed.clients.data.documents import Keys, documents_in, passed_over
from sovfed.clients.data.split import uniform
from sovfed.clients.data.token_store import SALT, Document, Rules, read_store, write_store
from sovfed.clients.data.tokens import Windows, cut, load
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ConfigError, DataError
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.declared import task_from_text
from sovfed.federation.tasks.tokenizer import Tokenizer, read_tokenizer, train_tokenizer

pytest.importorskip("tokenizers")
TEXTS = [f"第{number}条 この法律は、平成{number}年から施行する。Artikel {number}: Recht\n" * 8 for number in range(40)]
SIZE = 300


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(train_tokenizer(TEXTS, SIZE))
    return read_tokenizer(path)


@pytest.fixture(scope="module")
def task(tokenizer: Tokenizer) -> Task:
    return task_from_text(
        "name: law\ntitle: Law\nperson: document\n"
        f"columns: {{window: {{kind: tokens, shape: [17], high: {SIZE - 1}}}}}\n"
        f'target: {{kind: next_token, tokenizer: "{tokenizer.sha256}"}}\n'
        "model: {family: decoder, width: 16, blocks: 1, heads: 2, hidden: 32}\n"
    )


def windows(folder: Path, task: Task) -> Windows:
    records = load_records(task, DataConfig(source="tokens", path=str(folder)))
    assert isinstance(records, Windows)
    return records


def texts(records: Windows, tokenizer: Tokenizer, rows: np.ndarray) -> dict[int, bytes]:
    """What is predicted in the windows at `rows`, by person."""
    table, told = records.take(rows), dict[int, bytes]()
    for window, given, size, person in zip(
        table["window"], table["given"], table["bytes"], records.persons[rows], strict=True
    ):
        piece = tokenizer.decode(window[1 + int(given) :].tolist())
        assert len(piece) == size
        told[int(person)] = told.get(int(person), b"") + piece
    return told


def test_any_text_comes_back_byte_for_byte(tokenizer: Tokenizer) -> None:
    """Also the letters of the token that begins a document: in a text, or in a prompt, they begin none."""
    every = ["", "a", "\x00\x7f ÿ 𝕏 👩‍⚕️ \r\n\t  x", "".join(map(chr, range(1, 0x500))), *TEXTS[:3], "a<|document|>b"]
    for text, codes in zip(every, tokenizer.encode(every), strict=True):
        assert tokenizer.decode(codes) == text.encode() and 0 not in codes
    assert tokenizer.encode(["\ud83d"]) == tokenizer.encode(["?"])
    assert tokenizer.symbols == SIZE and tokenizer.pieces[0] == b""


def test_equal_texts_make_equal_tokenizers(tokenizer: Tokenizer) -> None:
    assert json.loads(train_tokenizer(iter(TEXTS), SIZE)) == json.loads(train_tokenizer(TEXTS, SIZE))


def test_a_file_that_is_no_such_tokenizer_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    other = json.loads(train_tokenizer(TEXTS, SIZE))
    for changed in ("{}", "x", json.dumps(other | {"normalizer": {"type": "Lowercase"}})):
        path.write_text(changed)
        with pytest.raises(ConfigError, match=r"other\.json"):
            read_tokenizer(path)
    path.write_text(json.dumps(other))
    with pytest.raises(ConfigError, match="SHA-256"):
        read_tokenizer(path, "0" * 64)


def test_every_token_is_predicted_once_and_a_window_is_of_one_document(
    tokenizer: Tokenizer, task: Task, tmp_path: Path
) -> None:
    sides = ["train", "test", "valid"]
    documents = [Document(str(row), text, side=sides[row % 3]) for row, text in enumerate([*TEXTS[:9], "x", "yz"])]
    write_store(tmp_path / "store", documents, tokenizer, Rules())
    records = windows(tmp_path / "store", task)
    for rows, side in ((records.train, "train"), (records.test, "test")):
        expected = {row: each.text.encode() for row, each in enumerate(documents) if each.side == side}
        assert texts(records, tokenizer, rows) == expected
    held_out = records.take(records.test)
    later = records.firsts[records.test] > records.store.starts[records.documents[records.test]]
    assert held_out["given"][later].min() >= 8  # half a window


@pytest.mark.parametrize("stride", [1, 3, 8, 16])
def test_windows_cover_documents_of_every_length(stride: int) -> None:
    lengths = np.arange(2, 70)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    of, firsts, given = cut(starts, np.arange(len(lengths)), 17, stride)
    predicted = np.concatenate(
        [np.arange(first + 1 + skip, first + 17) for first, skip in zip(firsts, given, strict=True)]
    )
    expected = np.concatenate([np.arange(start + 1, end) for start, end in pairwise(starts)])
    assert np.array_equal(np.sort(predicted), expected)
    assert (given >= 0).all() and (given < 16).all() and np.array_equal(np.unique(of), np.arange(len(lengths)))


def test_opted_out_repeated_and_empty_documents_are_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = [
        Document("1", "a" * 50, "ann"), Document("2", "a" * 50, "ann"), Document("3", "a" * 50, "bob"),
        Document("4", "no", "ann"), Document("5", "no", "Eve "), Document("6", "", "ann"),
    ]  # fmt: skip
    counts = write_store(tmp_path / "s", documents, tokenizer, Rules(frozenset({"4", "eve"})))
    assert (counts.documents, counts.opted_out, counts.repeated, counts.empty) == (2, 2, 1, 1)
    alone = [dataclasses.replace(each, person="") for each in documents[:3]]
    assert write_store(tmp_path / "alone", alone, tokenizer, Rules()).documents == 1


def test_who_comes_moves_nobody_elses_documents(tokenizer: Tokenizer, task: Task, tmp_path: Path) -> None:
    """As private training needs: the sides follow from a person's name alone, or from the text of one without."""
    for person in ("someone", ""):
        base = [Document(str(row), text, person and f"person {row % 20}") for row, text in enumerate(TEXTS)]
        more = [Document("x", TEXTS[7], person and "new"), Document("y", TEXTS[3] + "!", person and "new"), *base]
        sides = []
        for name, documents in ((f"a{person}", base), (f"b{person}", more)):
            write_store(tmp_path / name, documents, tokenizer, Rules(held_out=0.5))
            records = windows(tmp_path / name, task)
            assert records.not_private == "" and records.several_records
            train = texts(records, tokenizer, records.train)
            sides.append({text for text in train.values() if text != TEXTS[7].encode()})
        assert sides[0] <= sides[1] and len(sides[0]) > 3


def test_a_store_of_another_tokenizer_or_half_a_store_is_refused(
    tokenizer: Tokenizer, task: Task, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    write_store(
        folder, [Document("1", TEXTS[0], side="train"), Document("2", TEXTS[1], side="test")], tokenizer, Rules()
    )
    with pytest.raises(DataError, match="prepare it again"):
        read_store(folder, "0" * 64)
    with pytest.raises(ConfigError, match="there already"):
        write_store(folder, [], tokenizer, Rules())
    (folder / "tokens.bin").write_bytes((folder / "tokens.bin").read_bytes()[:-2])
    with pytest.raises(DataError, match="not whole"):
        load(task, DataConfig(source="tokens", path=str(folder)))
    with pytest.raises(ConfigError, match="no document"):
        write_store(tmp_path / "empty", [], tokenizer, Rules())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_files_and_folders_are_read_in_order_and_faults_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"id": 7, "text": "seven", "who": "ann"}\n{"text": "eight", "who": 8}\n')
    (tmp_path / "a.txt").write_text("plain")
    told = [(each.name, each.text, each.person) for each in documents_in([tmp_path], Keys(name="id"))]
    assert told == [("a.txt", "plain", ""), ("7", "seven", ""), ("b.jsonl:2", "eight", "")]
    file = tmp_path / "b.jsonl"
    assert [each.person for each in documents_in([file], Keys(person="who"))] == ["ann", "8"]
    for keys in (Keys(text="body"), Keys(side="who"), Keys(person="id")):
        with pytest.raises(DataError, match=r"b\.jsonl, line [12]") as caught:
            list(documents_in([file], keys))
        assert "seven" not in str(caught.value)


def test_half_a_character_in_one_document_ends_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = [{"id": "a\ud800", "text": "Recht\ud800", "who": "\udfff"}, {"id": "b", "text": "Artikel", "who": "ann"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    documents = documents_in([tmp_path / "x.jsonl"], Keys(person="who"))
    assert write_store(tmp_path / "store", documents, tokenizer, Rules()).documents == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "shift_jis"])
def test_a_text_is_read_as_it_was_written_or_refused(encoding: str, tmp_path: Path) -> None:
    text = "第一条 この法律は" if encoding == "shift_jis" else "Änderung der Gebühren, § 1"
    file = tmp_path / "a.TXT"
    file.write_bytes(f"{text}\r\n{text}".encode(encoding))
    declared = Keys(encoding="" if encoding in ("utf-8", "utf-8-sig", "utf-16") else encoding)
    assert [each.text for each in documents_in([tmp_path], declared)] == [f"{text}\n{text}"]
    if declared.encoding:
        with pytest.raises(DataError, match="--encoding says how") as caught:
            list(documents_in([tmp_path], Keys()))
        assert "Geb" not in str(caught.value)
    (tmp_path / "mixed.txt").write_text(text, encoding="utf-8")  # what is UTF-8 needs no word
    assert [each.text for each in documents_in([tmp_path / "mixed.txt"], declared)] == [text]


def test_lines_of_json_may_be_in_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes('{"text": "Gebühr"}\n'.encode("cp1252") + '{"text": "Maß"}\n'.encode())
    assert [each.text for each in documents_in([file], Keys(encoding="cp1252"))] == ["Gebühr", "Maß"]
    file.write_bytes('{"text": "Gebühr"}\n'.encode("utf-16"))
    with pytest.raises(DataError, match=r"line 1: UTF-16.*save it as UTF-8"):
        list(documents_in([file], Keys()))
    with pytest.raises(ConfigError, match="no text encoding"):
        Keys(encoding="windows-german")


def test_a_link_out_of_a_folder_is_refused_and_none_is_passed_over(tmp_path: Path) -> None:
    """A text of another place, or all of a folder's, was read as if it lay there; a linked folder was left out."""
    notes, elsewhere = tmp_path / "notes", tmp_path / "elsewhere"
    for folder in (notes, elsewhere):
        folder.mkdir()
        (folder / f"{folder.name}.txt").write_text(folder.name)
    for name, target in (("b.txt", elsewhere / "elsewhere.txt"), ("inner", elsewhere), ("c.txt", tmp_path / "nowhere")):
        (notes / name).symlink_to(target)
        with pytest.raises(DataError, match=rf"notes/{name}: a symbolic link.*name what it leads to beside"):
            list(documents_in([notes], Keys()))
        (notes / name).unlink()
    (tmp_path / "named").symlink_to(notes)
    (notes / "readme.pdf").symlink_to(elsewhere / "elsewhere.txt")  # no document by its name
    assert [each.text for each in documents_in([tmp_path / "named", elsewhere], Keys())] == ["notes", "elsewhere"]


@pytest.mark.parametrize("line", ['{"text": "cut', "[1, 2]", "plain words", '"text"'])
def test_a_line_that_is_no_object_is_not_passed_over(line: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"text": "whole"}}\n\n{line}\n')
    with pytest.raises(DataError, match="line 3: no object of JSON"):
        list(documents_in([file], Keys()))


def test_a_key_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"Inhalt": "geheim", "Nr": 7}\n')
    for keys, option in (
        (Keys(), "--text"),
        (Keys("Inhalt", named=True), "--id"),
        (Keys("Inhalt", person="x"), "--per"),
    ):
        with pytest.raises(DataError, match=f"it has 'Inhalt', 'Nr': say which with {option}") as caught:
            list(documents_in([file], keys))
        assert "geheim" not in str(caught.value)
    assert [each.name for each in documents_in([file], Keys("Inhalt", "Nr", named=True))] == ["7"]


def test_a_person_whose_name_is_written_in_several_ways_is_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Else each spelling would have a person's privacy of its own, and a side of its own."""
    names = ["Zoë", "Zoe\u0308", " Zoë", "Zoë\u00a0", "A  B", "A B"]
    lines = [json.dumps({"text": text, "who": name}) for text, name in zip(TEXTS, names, strict=False)]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    counts = write_store(tmp_path / "store", documents_in([path], Keys(person="who")), tokenizer, Rules())
    assert (counts.documents, counts.persons) == (6, 2)


@pytest.mark.parametrize("name", ["", "NaN", " ", "<NA>", "null"])
def test_a_text_of_nobody_is_refused_where_persons_are_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": "a text", "who": who}) + "\n" for who in ("ann", name)))
    with pytest.raises(DataError, match="line 2: 'who'"):
        list(documents_in([path], Keys(person="who")))


def test_a_table_is_no_document_and_what_a_folder_has_besides_is_counted(tmp_path: Path) -> None:
    """Its rows, with whose they are, would be one text."""
    table = tmp_path / "archive.csv"
    table.write_text("person,text\nann,seven\n")
    with pytest.raises(DataError, match="no document"):
        list(documents_in([table], Keys()))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.txt").write_text("seven")
    (tmp_path / "inner" / "notes.PDF").write_text("%PDF")
    assert [each.name for each in documents_in([tmp_path], Keys())] == ["a.txt"]
    assert passed_over([tmp_path, tmp_path / "inner" / "a.txt"]) == {".csv": 1, ".pdf": 1}


def test_text_files_say_neither_whose_they_are_nor_which_side(tmp_path: Path) -> None:
    """Else each file would be a person by itself, and a person's own would be promised less than was asked for."""
    (tmp_path / "a.txt").write_text("seven")
    for keys in (Keys(person="author"), Keys(side="split")):
        with pytest.raises(DataError, match=r"a \.txt file has no key"):
            list(documents_in([tmp_path], keys))


def test_halves_of_characters_and_nulls_are_prepared(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "cut \\ud83d"}\n{"text": null}\n{"text": " \\n "}\n{"text": "😀 \\ud83d\\ude00 שלום"}\n')
    counts = write_store(tmp_path / "s", documents_in([file], Keys()), tokenizer, Rules())
    assert (counts.documents, counts.empty) == (2, 2)
    tokens = np.fromfile(tmp_path / "s" / "tokens.bin", "<u2").tolist()
    assert tokenizer.decode(tokens).decode() == "cut ?😀 😀 שלום"


def test_who_opted_out_is_found_by_a_files_name_without_its_ending(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = [Document("Akte-17.TXT", "no"), Document("Akte-18.txt", "yes"), Document("x", "no", "Eve")]
    counts = write_store(tmp_path / "s", documents, tokenizer, Rules(frozenset({"akte-17", "eve", "nobody"})))
    assert (counts.documents, counts.opted_out, counts.found) == (1, 2, {"akte-17", "eve"})
    assert not any(b"eve" in path.read_bytes().lower() for path in (tmp_path / "s").glob("*.json"))


def prepare(tmp_path: Path, tokenizer: Tokenizer, lines: list[dict[str, object]], *options: str) -> tuple[int, str]:
    (tmp_path / "tokenizer.json").write_text(str(tokenizer.model.to_str()))
    (tmp_path / "law.yaml").write_text(
        "name: law\ntitle: Law\nperson: document\n"
        f"columns: {{window: {{kind: tokens, shape: [17], high: {SIZE - 1}}}}}\n"
        f'target: {{kind: next_token, tokenizer: "{tokenizer.sha256}"}}\n'
        "model: {family: decoder, width: 16, blocks: 1, heads: 2, hidden: 32}\n"
    )
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [str(tmp_path / "law.yaml"), str(file), "--tokenizer", str(tmp_path / "tokenizer.json"), *options]
    told = CliRunner().invoke(cli, ["client", "data", "prepare", *words, "--out", str(tmp_path / "store")])
    return told.exit_code, told.output + str(told.exception or "")


def test_prepare_tells_how_much_of_an_opt_out_list_it_found(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "no.txt").write_bytes(b"7\r\nann\r\nnobody\r\n\r\n")
    lines = [{"id": row, "text": text, "who": f"p{row % 3}"} for row, text in enumerate(TEXTS)]
    code, output = prepare(tmp_path, tokenizer, lines, "--opt-out", str(tmp_path / "no.txt"), "--held-out", "0")
    assert code == 0, output
    assert "1 that opted out" in output and "3 names, of which 1 stand in these documents" in output
    assert "persons: 39, each document by itself; 39 documents train" in output and "nothing is held out" in output
    assert "sovfed client join INVITATION --task" in output


def test_an_opt_out_list_needs_names_to_be_compared_with(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A list of names would else be compared with the numbers of lines, and leave nobody out."""
    (tmp_path / "no.txt").write_text("a-7\n")
    lines: list[dict[str, object]] = [{"Aktenzeichen": f"a-{row}", "text": text} for row, text in enumerate(TEXTS)]
    code, output = prepare(tmp_path, tokenizer, lines, "--opt-out", str(tmp_path / "no.txt"))
    assert code != 0 and "no key 'id'; it has 'Aktenzeichen', 'text': say which with --id" in output
    code, output = prepare(tmp_path, tokenizer, lines, "--opt-out", str(tmp_path / "no.txt"), "--id", "Aktenzeichen")
    assert code == 0 and "1 that opted out" in output


def test_prepare_warns_where_few_persons_leave_much_held_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Who is held out follows from a hash of the name, so of two persons it may be one."""
    names = [f"p{number}" for number in range(100)]
    drawn = uniform(SALT, [f"person/{name}" for name in names])
    pair = (names[int(drawn.argmin())], names[int(drawn.argmax())])
    lines: list[dict[str, object]] = [{"who": pair[row % 2], "text": text} for row, text in enumerate(TEXTS)]
    code, output = prepare(tmp_path, tokenizer, lines, "--person", "who")
    assert code == 0 and "50% of the documents are held out, not 10%" in output


def test_prepare_warns_of_documents_that_are_short_beside_the_context(tokenizer: Tokenizer, tmp_path: Path) -> None:
    code, output = prepare(tmp_path, tokenizer, [{"id": row, "text": f"§ {row}"} for row in range(30)])
    assert code == 0 and "of the places in windows predict nothing" in output


def test_a_store_is_told_from_its_task_as_a_table_is(tokenizer: Tokenizer, task: Task, tmp_path: Path) -> None:
    """So `client join --data STORE`, `client check-data` and `simulate data.path=STORES` need no further word."""
    write_store(tmp_path / "store", [Document(str(row), text) for row, text in enumerate(TEXTS)], tokenizer, Rules())
    config = settled(DataConfig(source="auto", path=str(tmp_path / "store")), task.schema)
    assert config.source == "tokens" and isinstance(load_records(task, config), Windows)


def test_a_folder_without_stores_is_told_as_that(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Seen: of a folder of documents, that one file was one institution, and four were asked for."""
    (tmp_path / "a.txt").write_text("no store")
    with pytest.raises(DataError, match="no token store, and none in it; `sovfed client data prepare`"):
        natural_sites(DataConfig(source="tokens", path=str(tmp_path)))
    write_store(tmp_path / "north", [Document("1", TEXTS[0])], tokenizer, Rules())
    assert natural_sites(DataConfig(source="tokens", path=str(tmp_path))) == ("north",)
    assert not natural_sites(DataConfig(source="tokens", path=str(tmp_path / "north")))


def test_the_commands_lead_from_texts_to_a_store(tmp_path: Path) -> None:
    source, tokens, law, store = (str(tmp_path / name) for name in ("t.jsonl", "tok.json", "law.yaml", "store"))
    Path(source).write_text(
        "".join(json.dumps({"id": str(row), "text": text}) + "\n" for row, text in enumerate(TEXTS))
    )
    for words in (
        ["task", "tokenizer", source, "--size", "300", "--out", tokens],
        ["task", "language", "law", "--tokenizer", tokens, "--context", "16", "--width", "16", "--output", law],
        ["task", "check", law],
        ["client", "data", "prepare", law, source, "--tokenizer", tokens, "--out", store, "--held-out", "0.3"],
    ):
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0, (words, result.output, result.exception)
    assert "40 documents" in result.output and "第" not in result.output
