from argparse import Namespace

from fairseq.data.encoders import build_tokenizer
from hypothesis import given
from hypothesis import strategies as st

TOKENIZER = build_tokenizer(Namespace(tokenizer="byte_values"))


@given(st.text())
def test_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_values_are_those_of_bytes():
    assert TOKENIZER.encode("Aé\n") == "65 195 169 10"


def test_end_of_a_sentence_is_the_newline():
    assert TOKENIZER.decode("65 </s> 66") == "A\nB"


def test_other_words_are_left_out():
    assert TOKENIZER.decode("65 <unk> 256 madeupword0001 -3 66") == "AB"


def test_cut_characters_do_not_stop_it():
    assert TOKENIZER.decode("195 65 255") == "�A�"
