"""Tables of text."""

from mujax.columns import align


def test_columns_are_as_wide_as_their_widest_cell():
    table = [("study", "width", "note"), ("mup", "128", ""), ("sp", "2048", "at the edge")]
    assert align(table) == ["study  width  note", "mup    128", "sp     2048   at the edge"]
    assert align(table, "<><") == [
        "study  width  note",
        "mup      128",
        "sp      2048  at the edge",
    ]
    assert align(table, ">")[1:] == ["  mup    128", "   sp   2048  at the edge"]
