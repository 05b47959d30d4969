from pathlib import Path
import pytest
from tunesmith.core.errors import UserError
from tunesmith.recipe import read_recipe
GOLDEN = Path(__file__).parent / "golden"
def golden_overrides(path):
    first = path.read_text("utf-8").partition("\n")[0]
    return first.removeprefix("# overrides: ").split(" | ") if first.startswith("# overrides: ") else []
if __name__ == "__main__":
    import os
    os.chdir(GOLDEN)
    for path in sorted(Path(".").glob("*.yaml")):
        try:
            read_recipe(path, golden_overrides(path)); text="NO ERROR"
        except UserError as error:
            text = str(error)
        path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
        print("=====", path); print(text)
