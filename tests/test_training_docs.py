"""The code in the docs of training, as it is there."""

import os
import re
import subprocess
import sys
from pathlib import Path


_root = Path(__file__).parents[1]
_text = (_root / "docs" / "training.md").read_text()


def test_code_runs(tmp_path):
    """In a process of its own, as a user would: in float32 and without type checks."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", _text, re.DOTALL))
    code += "\nassert state.step == 40 and not (jnp.isnan(dynamics.total))"
    code += "\nprint(sorted(p.name for p in checkpoints.folder.iterdir()))"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=os.environ | dict(PYTHONPATH=str(_root)),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    loss, hyperparameters, names = result.stdout.splitlines()
    assert re.fullmatch(r"loss 0\.\d+, remainders \S+", loss)
    expected = dict(seed=0, width=16, samples=256, batch_size=64)
    assert hyperparameters == str(expected)
    assert names == "['step-0000000040.ckpt']"


def test_own_loop_is_short():
    _, section = _text.split("## A loop of your own")
    (code, *_) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert "dynamics_step" in code and "remainder_step" in code
    assert len(code.splitlines()) < 40
