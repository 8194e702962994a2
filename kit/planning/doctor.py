"""Look at a machine before a run: versions, GPU, libraries, disk, log-in. Loads no torch.

Nothing here raises: a finding that cannot be made says so.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from kit.planning.cards import nvidia_gpus
from kit.units import GIB, show_bytes

DISTRIBUTION = "lora-kit"
LEAST_PYTHON = (3, 11)
LEAST_FREE_BYTES = 5 * GIB
"""Of disk: a 1B pair in 16 bit takes 5 GiB."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool | None
    """True: good. False: a run would fail or be wrong. None: cannot be said, or is optional."""
    found: str
    what_to_do: str = ""


def examine() -> list[Finding]:
    """Every finding about this machine, in the order in which to mend them."""
    findings: list[Finding] = []
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("python", _python),
        ("dependencies", _dependencies),
        ("GPU", _gpu),
        ("bitsandbytes", _bitsandbytes),
        ("disk", _disk),
        ("hub", _hub),
        ("NLTK data", _nltk_data),
    ]
    for name, check in checks:
        try:
            findings += check()
        except Exception as error:  # a doctor who faints helps nobody; the finding names the error
            findings.append(Finding(name=name, ok=None, found=f"could not be looked at: {error!r}"))
    return findings


def hub_folder() -> Path:
    """The hub's folder, by the rules of huggingface_hub: HF_HOME, or ~/.cache/huggingface."""
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "huggingface"


def hub_cache() -> Path:
    """Where downloaded checkpoints are: HF_HUB_CACHE, or `hub` in the hub's folder."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(named).expanduser() if named else hub_folder() / "hub"


def _python() -> list[Finding]:
    version = platform.python_version()
    good = sys.version_info[:2] >= LEAST_PYTHON
    return [
        Finding(
            name="python",
            ok=good,
            found=f"{version} on {platform.system()} {platform.machine()}",
            what_to_do="" if good else "install Python 3.11 or later",
        )
    ]


def _dependencies() -> list[Finding]:
    """Every required distribution against the range in the kit's own metadata."""
    requirements = _requirements()
    if not requirements:
        return [
            Finding(
                name="dependencies",
                ok=None,
                found=f"{DISTRIBUTION} is not installed, so its ranges are not known",
                what_to_do="pip install -e . in the repository",
            )
        ]
    from packaging.requirements import InvalidRequirement, Requirement

    findings = []
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _version(requirement.name)
        allowed = str(requirement.specifier) or "any version"
        good = found is not None and requirement.specifier.contains(found, prereleases=True)
        findings.append(
            Finding(
                name=requirement.name,
                ok=good,
                found=f"{found or 'not installed'} (range {allowed})",
                what_to_do="" if good else f'pip install "{requirement.name}{allowed}"',
            )
        )
    return findings


def _requirements() -> list[str]:
    try:
        return metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _gpu() -> list[Finding]:
    gpus, build = nvidia_gpus(), torch_cuda()
    if gpus:
        listed = "; ".join(gpus)
        findings = [Finding(name="GPU", ok=True, found=listed)]
    else:
        findings = [
            Finding(
                name="GPU",
                ok=None,
                found="none that nvidia-smi lists",
                what_to_do="runs on the CPU work, slowly; take a recipe that ends in -cpu",
            )
        ]
    if _version("torch") is None:
        return findings  # the dependency's own finding says it
    matches = build is not None or not gpus
    findings.append(
        Finding(
            name="torch build",
            ok=matches,
            found=f"for CUDA {build}" if build else "for CPUs alone",
            what_to_do=""
            if matches
            else "this torch cannot use the GPU: install one built for CUDA (pytorch.org)",
        )
    )
    return findings


def torch_cuda() -> str | None:
    """The CUDA version that torch was built for, read from its version file as text."""
    folder = _package_folder("torch")
    if folder is None:
        return None
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    match = re.search(r"^cuda\b[^=\n]*=\s*['\"]([0-9.]+)['\"]", text, re.M)
    return match[1] if match else None


def _bitsandbytes() -> list[Finding]:
    """The compiled library for this torch build must be in the package."""
    folder = _package_folder("bitsandbytes")
    if folder is None:
        return []  # the dependency's own finding says it
    cuda = torch_cuda()
    wanted = "cpu" if cuda is None else f"cuda{cuda.replace('.', '')}"
    present = sorted({p.stem.removeprefix("lib") for p in folder.glob("*bitsandbytes_*")})
    good = f"bitsandbytes_{wanted}" in present
    if not good and cuda is not None:
        # a minor version that is missing is served by another one of the same major version
        major = cuda.split(".")[0]
        good = any(name.startswith(f"bitsandbytes_cuda{major}") for name in present)
    return [
        Finding(
            name="bitsandbytes library",
            ok=good,
            found=f"for {wanted}: {'there' if good else 'not among ' + ', '.join(present)}",
            what_to_do="" if good else "install a bitsandbytes release that supports this CUDA",
        )
    ]


def _package_folder(name: str) -> Path | None:
    """Folder of an installed package, found without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


def _disk() -> list[Finding]:
    findings = []
    for name, folder in (("disk, here", Path.cwd()), ("disk, hub cache", hub_cache())):
        there = folder
        while not there.exists() and there != there.parent:
            there = there.parent
        free = shutil.disk_usage(there).free
        good = free >= LEAST_FREE_BYTES
        findings.append(
            Finding(
                name=name,
                ok=True if good else None,
                found=f"{show_bytes(free)} free at {folder}",
                what_to_do="" if good else "a pair of 1B models in 16 bit takes 5 GiB; make room",
            )
        )
        if not os.access(there, os.W_OK):
            fix = "choose a folder of your own" + (
                ", with HF_HOME for the cache" if "cache" in name else ""
            )
            findings.append(
                Finding(name=name, ok=False, found=f"{there} is not writable", what_to_do=fix)
            )
    return findings


def _hub() -> list[Finding]:
    """Whether a token is there; it is never read further than that, and never shown."""
    variables = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    named = next((v for v in variables if os.environ.get(v)), None)
    file = Path(os.environ.get("HF_TOKEN_PATH") or hub_folder() / "token").expanduser()
    if named:
        login = Finding(name="hub log-in", ok=True, found=f"a token in ${named}")
    elif file.is_file():
        login = Finding(name="hub log-in", ok=True, found=f"a token in {file}")
    else:
        login = Finding(
            name="hub log-in",
            ok=None,
            found="no token",
            what_to_do="only for gated models (Llama, Gemma): `hf auth login`",
        )
    offline = [
        f"{name}={os.environ[name]}"
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
        if os.environ.get(name)
    ]
    if not offline:
        return [login]
    is_on = any(item.partition("=")[2].lower() in ("1", "true", "yes", "on") for item in offline)
    network = Finding(
        name="hub network",
        ok=None if is_on else True,
        found=", ".join(offline),
        what_to_do="nothing is downloaded: what a recipe names must be on this machine",
    )
    return [login, network]


def _nltk_data() -> list[Finding]:
    """IFEval counts sentences with NLTK's punkt_tab, which refuses shared and hard-linked files."""
    for root in _nltk_roots():
        folder = root / "tokenizers" / "punkt_tab" / "english"
        if not folder.is_dir():
            continue
        refused = [f for f in folder.iterdir() if f.is_file() and _nltk_refuses(f)]
        if not refused:
            return [Finding(name="NLTK data", ok=True, found=f"punkt_tab in {root}")]
        return [
            Finding(
                name="NLTK data",
                ok=False,
                found=f"punkt_tab in {root} is hard-linked or writable by others; NLTK refuses it",
                what_to_do="copy it (cp -r, then chmod -R go-w) and set NLTK_DATA to the copy",
            )
        ]
    return [
        Finding(
            name="NLTK data",
            ok=None,
            found="punkt_tab is not here",
            what_to_do="only for IFEval, which fetches it: `python -m nltk.downloader punkt_tab`",
        )
    ]


def _nltk_roots() -> list[Path]:
    """Where NLTK looks, in its order."""
    named = [Path(p) for p in os.environ.get("NLTK_DATA", "").split(os.pathsep) if p]
    homes = [Path.home() / "nltk_data"]
    prefixes = [Path(sys.prefix) / part for part in ("nltk_data", "share/nltk_data")]
    prefixes.append(Path(sys.prefix) / "lib" / "nltk_data")
    system = [Path("/usr/share/nltk_data"), Path("/usr/local/share/nltk_data")]
    system += [Path("/usr/lib/nltk_data"), Path("/usr/local/lib/nltk_data")]
    return [*named, *homes, *prefixes, *system]


def _nltk_refuses(file: Path) -> bool:
    if os.name != "posix":
        return False
    status = file.stat()
    return status.st_nlink > 1 or bool(status.st_mode & 0o022)
