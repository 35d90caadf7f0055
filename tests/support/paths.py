"""Folders of the repository."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "model" / "demo"  # the bundled checkpoint
FAKE_ENGINE_SERVER = ROOT / "tests" / "support" / "servers" / "serve_with_fake_engine.py"
