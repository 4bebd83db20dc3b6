"""Bytes as text and back: nothing is lost, and fairseq gets a token for each."""

import hashlib
import io
from functools import partial

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fma_tools.command import CommandError
from fma_tools.prepare import byte_text
from fma_tools.prepare.archives import Member
from fma_tools.prepare.byte_text import EncodedBytes, decode, encode, split_members, split_sizes, text_problems


def fairseq_tokens(text):
    """Number of tokens that ``fairseq-preprocess --only-source`` makes of a text: words, and the end of each line."""
    return sum(len(line.split()) + 1 for line in io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))


def members_of(text):
    return split_members(Member("x.zip", "x", len(text), partial(io.BytesIO, text)))


def test_the_format():
    assert b"".join(encode([b"a\n\nb \xff"])) == b"97\n\n98 32 255\n"
    assert b"".join(encode([b"a\n"])) == b"97\n\n"
    assert b"".join(encode([])) == b"\n"


@given(st.lists(st.binary(min_size=1)))
@example([bytes(range(256))])
@example([b"\n", b"\n\n", b"a", b"\n", b"a"])
def test_round_trip(chunks):
    """Whatever the bytes are, and wherever they are cut into chunks."""
    text, encoded = b"".join(chunks), b"".join(encode(chunks))
    assert b"".join(decode(io.BytesIO(encoded))) == text
    assert fairseq_tokens(encoded) == len(text) + 1
    assert encoded == b"".join(encode([text] if text else []))


@given(text=st.binary(max_size=300), piece=st.integers(1, 7), data=st.data())
def test_splits_are_the_text(text, piece, data):
    """Read in any steps, and encoded in any pieces, the splits are parts of the text, one after the other."""
    decoded = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_text, "PIECE", piece)
        patch.setattr(byte_text, "CHUNK", piece)
        for member, size in zip(members_of(text), split_sizes(len(text)).values(), strict=True):
            encoded = b""
            with member.open() as stream:
                while part := stream.read(data.draw(st.integers(1, 50))):
                    encoded += part
            assert len(encoded) == member.size
            assert fairseq_tokens(encoded) == size + 1
            decoded.append(b"".join(decode(io.BytesIO(encoded))))
    assert [len(part) for part in decoded] == list(split_sizes(len(text)).values())
    assert b"".join(decoded) == text


def test_more_than_a_piece():
    text = bytes(range(256)) * 1024
    encoded = {}
    for member in members_of(text):
        with member.open() as stream:
            encoded[member.path] = stream.read()
    assert list(encoded) == ["train.txt", "valid.txt", "test.txt"]
    assert b"".join(chunk for part in encoded.values() for chunk in decode(io.BytesIO(part))) == text


def test_the_file_is_closed_with_its_text():
    source = io.BytesIO(b"abc")
    with EncodedBytes(source, 1, 1) as text:
        assert text.read() == b"98\n" and not source.closed
    assert source.closed


@pytest.mark.parametrize("words", [b"256", b"10", b"-1", b"007", b"a", b"1,2", "٣".encode(), b"\0"])
def test_other_words_are_refused(words):
    """10 is the newline, which is no word."""
    with pytest.raises(CommandError, match="decimal values of bytes, joined by spaces"):
        list(decode(io.BytesIO(b"1 2\n3 " + words + b"\n")))


def test_problems(tmp_path):
    text = b"One line.\nAnother line,\nand no end of the last" * 10
    problems = partial(text_problems, tmp_path, len(text), hashlib.sha256(text).hexdigest())
    assert list(problems()) == [f"{tmp_path}/{split}.txt: no such file" for split in ("train", "valid", "test")]
    for member in members_of(text):
        with member.open() as stream:
            (tmp_path / member.path).write_bytes(stream.read())
    assert not list(problems())

    valid, test = tmp_path / "valid.txt", tmp_path / "test.txt"
    good = valid.read_bytes()
    valid.write_bytes(good.replace(b"101", b"102", 1))  # an e becomes an f
    (problem,) = problems()
    assert problem.startswith(f"{tmp_path}: another text, with SHA-256 ")
    valid.write_bytes(b"97 " + good)
    test.write_bytes(b"text")
    size = split_sizes(len(text))["valid"]
    assert list(problems()) == [
        f"{valid}: {size + 1} bytes as text, expected {size}",
        f"{test}: expected the decimal values of bytes, joined by spaces",
    ]
