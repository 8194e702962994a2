"""The low-rank residual against dense SVD, against the full model, and against another library."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from adapter_tools import load, logits
from conftest import pico_model, save_pico
from peft import PeftModel
from safetensors.torch import load_file, save_file

from kit.adapters.algebra import dense_delta
from kit.adapters.attach import mounted
from kit.adapters.residual import extract_residual, residual_tensors
from kit.adapters.tensors import read_adapter, read_sidecar
from kit.errors import AdapterError, PairError
from kit.models.weights import Checkpoint, weights_fingerprint


@pytest.fixture(scope="module")
def extracted(pico_pair, tmp_path_factory):
    root = tmp_path_factory.mktemp("residual")
    seen = []
    report = extract_residual(
        pico_pair.base,
        pico_pair.instruct,
        ranks=[64, 4, 8],
        out=lambda rank: root / f"r{rank}",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (20, 20)
    return root, report


def linear_deltas(pair):
    return {
        name.removesuffix(".weight"): value
        for name, value in residual_tensors(pair.base, pair.instruct)
        if "_proj" in name
    }


def test_full_rank_is_the_difference_of_every_linear_layer(pico_pair, extracted):
    adapter = read_adapter(extracted[0] / "r64")
    deltas = linear_deltas(pico_pair)
    assert set(adapter.deltas) == set(deltas)
    for module, value in deltas.items():
        assert torch.allclose(dense_delta(adapter.deltas[module]), value, atol=1e-7)
    model = load(pico_pair.base)
    instruct = Checkpoint(pico_pair.instruct)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_proj" not in name:
                parameter.copy_(instruct.tensor(name))
    with mounted(model, adapter):
        assert torch.allclose(logits(model), logits(load(pico_pair.instruct)), atol=1e-5)


@pytest.mark.parametrize("rank", [4, 8])
def test_a_rank_is_the_dense_svd_cut_there(pico_pair, extracted, rank):
    adapter = read_adapter(extracted[0] / f"r{rank}")
    for module, value in linear_deltas(pico_pair).items():
        u, s, vh = torch.linalg.svd(value.double(), full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ vh[:rank]
        assert torch.allclose(dense_delta(adapter.deltas[module]).double(), best, atol=1e-7)


def test_the_energy_report_equals_the_dense_svd(pico_pair, extracted):
    report = extracted[1]
    values = {m: torch.linalg.svdvals(v.double()) for m, v in linear_deltas(pico_pair).items()}
    for row in report.modules:
        squares = values[row.module].square()
        assert row.known_ranks == len(squares)
        assert row.energy == pytest.approx(float(squares.sum()), rel=1e-6)
        for rank in (4, 8, 64):
            share = float(squares[:rank].sum() / squares.sum())
            assert row.kept[rank] == pytest.approx(share, rel=1e-6)
        for share, rank in row.rank_for.items():
            assert float(squares[:rank].sum()) >= share * float(squares.sum()) * (1 - 1e-9)
            assert float(squares[: rank - 1].sum()) < share * float(squares.sum())
    linear = sum(float(s.square().sum()) for s in values.values())
    whole = sum(
        float(v.double().square().sum())
        for _, v in residual_tensors(pico_pair.base, pico_pair.instruct)
    )
    assert report.energy == pytest.approx(whole, rel=1e-6)
    assert report.linear_share == pytest.approx(linear / whole, rel=1e-6)
    assert report.linear_share + sum(report.elsewhere.values()) == pytest.approx(1.0)
    assert set(report.elsewhere) == {"embedding", "norm"}
    kept = sum(float(s[:8].square().sum()) for s in values.values())
    assert report.kept[8] == pytest.approx(kept / whole, rel=1e-6)
    assert report.kept_of_linear[64] == pytest.approx(1.0)
    assert report.kept[64] == pytest.approx(report.linear_share)
    rank = report.rank_for[0.9]
    assert sum(float(s[:rank].square().sum()) for s in values.values()) >= 0.9 * linear


def test_peft_loads_it_and_the_folder_explains_itself(pico_pair, extracted):
    folder = extracted[0] / "r8"
    theirs = logits(PeftModel.from_pretrained(load(pico_pair.base), folder))
    with mounted(load(pico_pair.base), read_adapter(folder)) as model:
        assert torch.allclose(logits(model), theirs, atol=1e-5)
    sidecar = read_sidecar(folder)
    assert sidecar.init == "residual"
    assert sidecar.base_fingerprint == weights_fingerprint(pico_pair.base)
    about = json.loads((folder / "kit_residual.json").read_text())
    assert about["rank"] == 8 and about["kept"]["8"] == pytest.approx(extracted[1].kept[8])


def test_the_randomized_way_says_what_it_does_not_know(pico_pair, tmp_path, extracted):
    def run(name):
        return extract_residual(
            pico_pair.base,
            pico_pair.instruct,
            ranks=[4],
            out=lambda rank: tmp_path / name,
            target_modules=["q_proj", "up_proj"],
            exact_up_to=16,
            seed=3,
        )

    report = run("a")
    assert {row.module.split(".")[-1] for row in report.modules} == {"q_proj", "up_proj"}
    deltas = linear_deltas(pico_pair)
    adapter = read_adapter(tmp_path / "a")
    for row in report.modules:
        left = float((deltas[row.module] - dense_delta(adapter.deltas[row.module])).square().sum())
        assert 1 - row.kept[4] == pytest.approx(left / row.energy, abs=1e-5)
        assert row.known_ranks == 20
        squares = torch.linalg.svdvals(deltas[row.module].double()).square()
        truth = int((squares.cumsum(0) < 0.9 * squares.sum()).sum()) + 1
        assert row.rank_for[0.9] == pytest.approx(truth, rel=0.1)
    assert not report.exact and extracted[1].exact
    assert {"attention", "mlp"} <= set(report.elsewhere)
    run("b")
    first = load_file(tmp_path / "a" / "adapter_model.safetensors")
    second = load_file(tmp_path / "b" / "adapter_model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_parity_with_the_package_residuals(pico_pair):
    from residuals import Residuals

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own use of a deprecated argument
        theirs = Residuals.from_models(
            load(pico_pair.base), load(pico_pair.instruct), normalize_embeddings=False
        ).state_dict
    ours = dict(residual_tensors(pico_pair.base, pico_pair.instruct))
    assert set(theirs) - set(ours) == {"lm_head.weight"}
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_sixteen_bit_checkpoints_are_subtracted_in_float32(tmp_path):
    model = pico_model().to(torch.bfloat16)
    base = save_pico(tmp_path / "b", model, chat=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    instruct = save_pico(tmp_path / "i", model, chat=True)
    first, second = (load_file(f / "model.safetensors") for f in (base, instruct))
    for name, value in residual_tensors(base, instruct):
        assert value.dtype == torch.float32
        assert torch.equal(value, second[name].float() - first[name].float())


def test_refusals(pico_pair, tmp_path):
    def run(base=pico_pair.base, instruct=pico_pair.instruct, ranks=(4,), targets="all-linear"):
        out = tmp_path / "out"
        extract_residual(base, instruct, ranks=ranks, out=lambda r: out, target_modules=targets)

    for ranks in ((), (0,)):
        with pytest.raises(AdapterError, match="ranks"):
            run(ranks=ranks)
    with pytest.raises(AdapterError, match="q_prj"):
        run(targets=["q_prj"])
    wide = save_pico(tmp_path / "wide", pico_model(hidden_size=32), chat=True)
    with pytest.raises(PairError):
        run(instruct=wide)
    packed = save_pico(tmp_path / "packed", pico_model(), chat=True)
    tensors = load_file(packed / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(4096, 1, dtype=torch.uint8)
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(PairError, match="quantised"):
        run(instruct=packed)
    assert not (tmp_path / "out").exists()
