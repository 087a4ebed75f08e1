"""Facts about rows of numbers in text: fast or careful, every number is what float() says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.kaldi.text_rows import parse_rows
from utils.system.errors import InputError

tokens = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-1e30, 1e30).map(lambda x: f"{x:.17g}"),
    st.integers(-(10**25), 10**25).map(str),
    st.sampled_from(["-0", "0", "1e-50", "-0.0", "00", "1.", ".5", "+3", "1E5", "-0e0", "9007199254740993"]),
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(tokens, min_size=n, max_size=n), min_size=1, max_size=4)))
def test_every_number_is_what_float_says(rows):
    expected = np.array([[float(token) for token in row] for row in rows]).astype(np.float32)
    parsed = parse_rows("\n".join(" ".join(row) for row in rows).encode(), "f", 1)
    assert parsed.dtype == np.float32 and parsed.shape == expected.shape
    assert parsed.tobytes() == expected.tobytes()


json_words = ["true", "null", '""', "{}", "[1]"]  # which a JSON parser takes


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from([*'0123456789.-+eE \n\t\r\0[]{}:,"tnxé_', *json_words]), max_size=40).map("".join))
def test_text_is_read_as_a_plain_loop_reads_it_or_refused(text):
    try:
        rows = [[float(token) for token in line.split()] for line in text.encode().split(b"\n")]
        fits = rows[0] and len({len(row) for row in rows}) == 1 and "_" not in text
        with np.errstate(over="ignore"):
            expected = np.array(rows).astype(np.float32) if fits else None
    except ValueError:
        expected = None
    if expected is None or not np.isfinite(expected).all():
        with pytest.raises(InputError, match=r"f:[0-9]+: "):
            parse_rows(text.encode(), "f", 1)
    else:
        assert parse_rows(text.encode(), "f", 1).tobytes() == expected.tobytes()
