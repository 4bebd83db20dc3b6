"""The picture of the method."""

from helpers.tool_loader import load_tool


def test_the_picture_of_the_method_is_drawn(tmp_path, monkeypatch):
    drawing = load_tool("draw_method")
    monkeypatch.setattr("sys.argv", ["draw_method.py", str(tmp_path / "fma.png")])
    drawing.main()
    assert (tmp_path / "fma.png").stat().st_size > 10000
