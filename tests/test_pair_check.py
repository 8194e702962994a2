"""Is it a pair? The numbers against dense formulas, and each refusal."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import pico_model, save_pico

from kit.errors import PairError
from kit.models.pair_check import check_pair, special_tokens, text_tokens
from kit.models.spectrum import Spectrum, factors
from kit.models.weights import Checkpoint


def test_the_report_against_dense_formulas(pico_pair):
    report = check_pair(pico_pair.base, pico_pair.instruct)
    base, instruct = Checkpoint(pico_pair.base), Checkpoint(pico_pair.instruct)
    pairs = {n: (base.tensor(n).double(), instruct.tensor(n).double()) for n in base.names()}
    moved = sum((i - b).abs().sum() for b, i in pairs.values())
    sizes = sum(i.abs().sum() + b.abs().sum() for b, i in pairs.values())
    assert report.sigma == pytest.approx(float(moved / sizes), rel=1e-6)
    assert report.padded_vocab_size == report.vocab_size == 262
    assert sum(group.parameters for group in report.groups) == sum(
        parameter.numel() for parameter in pico_model().parameters()
    )
    assert {group.group for group in report.groups} == {"attention", "embedding", "mlp", "norm"}
    layer = [(i - b) for n, (b, i) in pairs.items() if ".layers.1." in n and b.ndim == 2]
    values = [torch.linalg.svdvals(delta) for delta in layer]
    energy = sum(float(s.square().sum()) for s in values)
    total = sum(float((i - b).square().sum()) for b, i in pairs.values())
    row = report.layers[1]
    assert row.layer == 1
    assert row.energy_share == pytest.approx(energy / total, rel=1e-4)
    assert row.top_share == pytest.approx(sum(float(s[0] ** 2) for s in values) / energy, rel=1e-4)
    stable = sum(float(s.square().sum()) ** 2 / float(s[0] ** 2) for s in values) / energy
    assert row.stable_rank == pytest.approx(stable, rel=1e-4)
    json.dumps(report.to_dict())


def test_warnings_say_small_far_and_equal(pico_pair, tmp_path):
    near = check_pair(pico_pair.base, pico_pair.instruct).warnings
    assert len(near) == 1 and "1.5B" in near[0]
    other = save_pico(tmp_path / "other", pico_model(seed=7), chat=True)
    assert any("ancestor" in line for line in check_pair(pico_pair.base, other).warnings)
    same = check_pair(pico_pair.base, pico_pair.base).warnings
    assert any("nothing to transfer" in line for line in same)


def test_a_changed_rope_is_said(pico_pair, tmp_path):
    shutil.copytree(pico_pair.instruct, tmp_path / "i")
    config = json.loads((tmp_path / "i" / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5e5
    (tmp_path / "i" / "config.json").write_text(json.dumps(config))
    warnings = check_pair(pico_pair.base, tmp_path / "i").warnings
    assert len(warnings) == 2
    assert any("rope theta" in line for line in warnings)


def test_an_older_spelling_of_rope_is_no_difference(pico_pair, tmp_path):
    shutil.copytree(pico_pair.instruct, tmp_path / "i")
    config = json.loads((tmp_path / "i" / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "i" / "config.json").write_text(json.dumps({**config, "rope_theta": 1e4}))
    assert len(check_pair(pico_pair.base, tmp_path / "i").warnings) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 270}, "vocab_size"),
        ({"num_hidden_layers": 3}, "only instruct has model.layers.2"),
        ({"intermediate_size": 96}, "mlp.up_proj"),
        ({"tie_word_embeddings": False}, "tied head"),
    ],
)
def test_no_pair_is_refused_with_every_mismatch(pico_pair, tmp_path, changes, said):
    other = save_pico(tmp_path / "other", pico_model(**changes), chat=True)
    with pytest.raises(PairError, match="no base and instruct pair") as caught:
        check_pair(pico_pair.base, other)
    assert said in str(caught.value) or "more" in str(caught.value)


def test_special_tokens_that_differ_are_named(pico_pair, tmp_path):
    assert special_tokens(pico_pair.instruct)["<|end|>"] == 260
    assert text_tokens(pico_pair.base) == {"<|endoftext|>"}
    shutil.copytree(pico_pair.instruct, tmp_path / "i")
    tokenizer = json.loads((tmp_path / "i" / "tokenizer.json").read_text())
    tokenizer["added_tokens"][4]["content"] = "<|stop|>"
    (tmp_path / "i" / "tokenizer.json").write_text(json.dumps(tokenizer))
    report = check_pair(pico_pair.base, tmp_path / "i")
    assert report.specials_of_base == ("<|end|>",)
    assert report.specials_of_instruct == ("<|stop|>",)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32)])
def test_factors_are_the_best_approximation(shape):
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(shape, generator=generator)
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    b, a, known = factors(matrix, rank=10, seed=0)
    assert known.exact
    assert torch.allclose(known.energies_N, s.square(), rtol=1e-9)
    for rank in (1, 4, 10):
        best = (u[:, :rank] * s[:rank]) @ vh[:rank]
        assert torch.allclose((b[:, :rank] @ a[:rank]).double(), best, atol=1e-5)
        left = float((matrix - b[:, :rank] @ a[:rank]).square().sum())
        assert 1 - known.kept(rank) == pytest.approx(left / known.total, abs=1e-6)


@pytest.mark.parametrize("shape", [(90, 120), (120, 90)])
def test_randomized_factors_keep_what_they_say(shape):
    generator = torch.Generator().manual_seed(3)
    low = torch.randn(shape[0], 12, generator=generator)
    matrix = low @ torch.randn(12, shape[1], generator=generator)
    matrix = matrix + 0.1 * torch.randn(shape, generator=generator)
    exact = factors(matrix, rank=8, seed=0)[2]
    state = torch.get_rng_state()
    b, a, known = factors(matrix, rank=8, seed=5, exact_up_to=16)
    assert torch.equal(state, torch.get_rng_state())
    assert not known.exact
    left = float((matrix - b @ a).double().square().sum())
    assert 1 - known.kept(8) == pytest.approx(left / known.total, abs=1e-6)
    assert known.kept(8) == pytest.approx(exact.kept(8), abs=1e-3)
    assert known.rank_for(0.5) == exact.rank_for(0.5)
    assert float(known.energies_N.sum()) == pytest.approx(known.total, rel=1e-2)
    again = factors(matrix, rank=8, seed=5, exact_up_to=16)
    assert torch.equal(again[0], b) and torch.equal(again[1], a)


@pytest.mark.parametrize("shape", [(300, 400), (400, 300)])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_the_estimated_tail_is_near_the_truth(shape, decay):
    generator = torch.Generator().manual_seed(4)
    u = torch.linalg.qr(torch.randn(shape[0], 300, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(shape[1], 300, generator=generator))[0]
    values = torch.arange(1, 301) ** -decay
    matrix = (u * values) @ v.T
    exact = factors(matrix, rank=8, seed=0)[2]
    guessed = factors(matrix, rank=8, seed=0, exact_up_to=64)[2]
    assert exact.known == 300 and guessed.known == 8 + 16
    for share in (0.5, 0.9, 0.99):
        assert guessed.rank_for(share) == pytest.approx(exact.rank_for(share), rel=0.1, abs=1)


def test_ranks_by_hand():
    known = Spectrum(
        energies_N=torch.tensor([5.0, 4.0, 1.0], dtype=torch.float64), total=10.0, known=3
    )
    assert [known.rank_for(share) for share in (0.5, 0.9, 0.99)] == [1, 2, 3]
    assert known.kept(2) == pytest.approx(0.9)
    assert known.stable_rank == pytest.approx(2.0)
    nothing = Spectrum(energies_N=torch.zeros(3), total=0.0, known=3)
    assert nothing.rank_for(0.9) == 0 and nothing.kept(1) == 1.0
