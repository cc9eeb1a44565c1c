"""The one-way rule of imports, and that importing does no work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Imports every module of a package and prints which of the modules that others own came along.
PROBE = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""

FORBIDDEN = {
    "alignment": {"torch", "e4e_core", "editing", "gradio", "app"},
    "e4e_core": {"alignment", "editing", "gradio", "app", "dlib"},
    "editing": {"gradio", "app"},
}


def _python(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package: str):
    imported = set(json.loads(_python("-c", PROBE, package)))
    assert package in imported
    assert not imported & FORBIDDEN[package]


def test_models_know_nothing_of_training_and_no_device_is_touched():
    probe = """
import sys, e4e_core
assert "torch" not in sys.modules, "import e4e_core alone must stay cheap"
from e4e_core import E4E, load_model
import torch
assert not torch.cuda.is_initialized()
assert not [name for name in sys.modules if name.startswith(("e4e_core.training", "huggingface_hub"))]
"""
    _python("-c", probe)
