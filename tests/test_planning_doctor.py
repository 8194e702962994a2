"""The doctor: never faints, never tells a secret."""

from __future__ import annotations

import os

from kit.planning import doctor
from kit.planning.doctor import examine


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_every_finding_is_complete():
    findings = examine()
    assert len(findings) >= 6
    for finding in findings:
        assert finding.name and finding.found
        assert finding.ok is not False or finding.what_to_do, finding


def test_a_token_is_seen_and_never_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    assert by_name(examine())["hub log-in"].ok is None
    (tmp_path / "token").write_text("hf_secretfile")
    assert by_name(examine())["hub log-in"].ok is True
    monkeypatch.setenv("HF_TOKEN", "hf_secretvariable")
    findings = examine()
    assert by_name(findings)["hub log-in"].found == "a token in $HF_TOKEN"
    assert "secret" not in repr(findings)


def test_offline_is_said(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert by_name(examine())["hub network"].ok is None


def test_nltk_files_that_it_would_refuse(monkeypatch, tmp_path):
    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text("x")
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    assert by_name(examine())["NLTK data"].ok is True
    os.chmod(folder / "data.txt", 0o666)
    finding = by_name(examine())["NLTK data"]
    assert finding.ok is False and "chmod" in finding.what_to_do


def test_a_bare_environment_is_no_crash(monkeypatch, tmp_path):
    for name in ("PATH", "HF_HOME", "XDG_CACHE_HOME", "HF_TOKEN", "NLTK_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    assert examine()


def test_a_check_that_fails_is_a_finding(monkeypatch):
    def broken():
        raise OSError("no such disk")

    monkeypatch.setattr(doctor, "_disk", broken)
    finding = by_name(examine())["disk"]
    assert finding.ok is None and "no such disk" in finding.found


def test_ranges_are_compared(monkeypatch):
    ranges = ["numpy>=1,<99", "pydantic>=99", "no-such-thing>=1", "rich; extra == 'x'"]
    monkeypatch.setattr(doctor, "_requirements", lambda: ranges)
    found = by_name(examine())
    assert found["numpy"].ok is True
    assert found["pydantic"].ok is False and found["no-such-thing"].ok is False
    assert found["no-such-thing"].what_to_do == 'pip install "no-such-thing>=1"'
    assert "rich" not in found


def test_torch_build_is_read_as_text(monkeypatch, tmp_path):
    package = tmp_path / "torch"
    package.mkdir()
    monkeypatch.setattr(doctor, "_package_folder", lambda name: package)
    cases = {
        "cuda: Optional[str] = '12.8'\n": "12.8",
        "__version__ = '2'\ncuda = '13.0'\n": "13.0",
        "cuda: Optional[str] = None\nhip = '6.4'\n": None,
        "": None,
    }
    for text, expected in cases.items():
        (package / "version.py").write_text(text)
        assert doctor.torch_cuda() == expected
