"""What a store loses of a teacher, against the divergences in float64."""

import numpy as np
import pytest
import torch

from vision_reference.analysis.stored_error import REPORTED, error_rows, error_sums, error_table
from vision_reference.soft_labels.codec import decode, encode


def expected(z, k, temperature, tail):
    """The k most probable classes as they are, the others evenly or not at all, in float64."""
    p = torch.softmax(z.double() / temperature, dim=1)
    kept = p >= p.sort(dim=1, descending=True).values[:, k - 1 : k]
    if tail == "drop":
        p = torch.where(kept, p, 0)
        return p / p.sum(dim=1, keepdim=True)
    return torch.where(kept, p, torch.where(kept, 0, p).sum(dim=1, keepdim=True) / (p.shape[1] - k))


def rebuilt(z, k, temperature, tail):
    parts = encode(z.double(), k, [temperature])
    parts["rest"] = parts["rest"][:, 0]
    return torch.softmax(decode(**parts, classes=z.shape[1], temperature=temperature, tail=tail) / temperature, dim=1)


@pytest.mark.parametrize("top_k", [None, 7])
def test_reported_errors_are_the_divergences_between_teacher_and_store(top_k):
    z = 4 * torch.randn(5, 60, generator=torch.Generator().manual_seed(5)) + 7
    names, sums = error_rows(60, top_k), error_sums(z, top_k)
    assert sums.shape == (len(names), len(REPORTED))
    rows = dict(zip(names, sums.tolist(), strict=True))
    for number, temperature in enumerate(REPORTED):
        p = torch.softmax(z.double() / temperature, dim=1)

        def kl(first, second):
            return (torch.xlogy(first, first) - torch.xlogy(first, second)).sum().item()

        for k in (5, 20, 50):
            even, cut = (expected(z, k, temperature, tail) for tail in ("uniform", "drop"))
            # but for the rounding to float16
            assert rows[f"top-{k} uniform"][number] == pytest.approx(kl(p, even), rel=0.05, abs=1e-4)
            assert rows[f"top-{k} drop"][number] == pytest.approx(kl(cut, p), rel=0.05, abs=1e-4)
        if top_k:
            even, cut = (rebuilt(z, 7, temperature, tail) for tail in ("uniform", "drop"))
            assert rows["stored uniform"][number] == pytest.approx(kl(p, even), rel=1e-9, abs=1e-12)
            assert rows["stored drop"][number] == pytest.approx(kl(cut, p), rel=1e-9, abs=1e-12)
            assert rows["stored uniform"][number] == pytest.approx(
                kl(p, expected(z, 7, temperature, "uniform")), rel=0.05, abs=1e-4
            )
        else:
            assert 0 <= rows["stored"][number] < 1e-4


def test_the_table_names_every_row_and_temperature():
    rows = dict(zip(error_rows(10, 4), np.arange(16.0).reshape(4, 4), strict=True))
    text = error_table(rows, 99)
    assert "99 views" in text
    for piece in ("T = 1 ", "T = 64", "stored uniform", "stored drop", "top-5 uniform", "top-5 drop"):
        assert piece in text
