import pytest
import torch

from simmim_ext.remembered import Remembered


@pytest.mark.parametrize(("most", "made"), [(24, 1), (23, 3)])
def test_what_fits_into_memory_is_made_once(most, made):
    begun = []

    def make():
        begun.append(True)
        for i in range(3):
            yield {"rows": torch.full((2,), float(i)), "of": "two"}

    numbers = Remembered(make, most)
    for _ in range(3):
        assert [item["rows"].tolist() for item in numbers] == [[0, 0], [1, 1], [2, 2]]
    assert len(begun) == made


def test_what_was_not_made_to_its_end_is_begun_anew():
    numbers = Remembered(lambda: iter([torch.zeros(1), torch.ones(1)]), 100)
    assert next(iter(numbers)) == 0
    assert [float(x) for x in numbers] == [0, 1]
