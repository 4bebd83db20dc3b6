import pytest

from fma_mm.datasets.in_memory import InMemoryDataset


class Numbers(InMemoryDataset):
    """Items that are in place before the pipeline."""

    def load_data_list(self):
        return [dict(img=i) for i in range(3)]


def double(item: dict) -> dict:
    return item | dict(img=2 * item["img"])


@pytest.mark.parametrize("pipeline", [[double], [dict(type="LoadImageFromFile"), double]])
def test_loading_is_left_out_and_other_steps_stay(pipeline):
    assert [item["img"] for item in Numbers(pipeline=pipeline)] == [0, 2, 4]
    assert [item["img"] for item in Numbers()] == [0, 1, 2]
