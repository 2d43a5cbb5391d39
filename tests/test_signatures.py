"The enforcement of signatures, which other tests rely on, is at work."

import numpy as np
import pytest
import torch
from jaxtyping import Float
from signatures import SignatureError, enforced, fits
from torch import Tensor

from vidcourse.metrics import acd, frame_change
from vidcourse.video import to_uint8


@enforced
def transpose(x: Float[Tensor, "a b"], n: int = 1) -> Float[Tensor, "b a"]:
    if x.ndim == 1:
        raise ValueError("two axes are needed")
    return x.T if n else x


def test_arrays_are_checked_and_own_errors_pass():
    assert transpose(torch.ones(2, 3)).shape == (3, 2)
    with pytest.raises(ValueError, match="two axes"):
        transpose(torch.ones(2))
    with pytest.raises(SignatureError, match="accepted x"):
        transpose(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(SignatureError, match="returned"):
        transpose(torch.ones(2, 3), 0)


def test_unions_tuples_and_numbers():
    either = Float[Tensor, "n"] | Float[np.ndarray, "n"] | None
    assert fits(np.ones(2), either) and fits(None, either) and not fits(np.ones((2, 2)), either)
    assert fits((1, torch.ones(2)), tuple[int, Float[Tensor, "n"]]) and not fits(
        (1, torch.ones(2, 2)), tuple[int, Float[Tensor, "n"]]
    )
    assert fits([1, 2], Float[Tensor, "n"]), "a list is no array: functions may convert it"


def test_package_is_loaded_with_enforcement():
    assert acd(torch.rand(2, 3, 4)) > 0
    with pytest.raises(SignatureError):
        frame_change(torch.rand(1, 3, 4, 8, 8, 1))
    with pytest.raises(ValueError):
        to_uint8(torch.rand(3))
