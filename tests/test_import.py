"""Tests of what importing costs and of the public face."""

import importlib
import json
import subprocess
import sys

import pytest

import raremix

HEAVY = ("faiss", "torchvision", "sklearn", "PIL", "jinja2")


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after a statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_next_to_nothing() -> None:
    loaded = loaded_by("import raremix; dir(raremix); raremix.__version__")
    assert not loaded & {*HEAVY, "torch", "numpy"}


@pytest.mark.parametrize("name", ["OODDetector", "KNNDistance", "FlagRate", "RareMemoryBuffer"])
def test_a_part_is_loaded_without_what_it_does_not_use(name: str) -> None:
    loaded = loaded_by(f"import raremix; raremix.{name}")
    assert not loaded & set(HEAVY)
    assert "raremix.views" not in loaded


@pytest.mark.parametrize("name", raremix.__all__)
def test_every_public_name_resolves_to_what_its_module_calls_so(name: str) -> None:
    value = getattr(raremix, name)
    if name != "__version__":
        assert value is getattr(importlib.import_module(value.__module__), name)
        assert value.__module__.startswith("raremix.")
        assert value.__doc__


def test_dir_lists_every_public_name() -> None:
    assert set(raremix.__all__) <= set(dir(raremix))
    assert len(dir(raremix)) == len(set(dir(raremix)))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'raremix' has no attribute 'Detector'"):
        raremix.Detector  # noqa: B018  # the access itself is the test


def test_the_version_is_one_that_packagers_understand() -> None:
    numbers = raremix.__version__.split(".")
    assert len(numbers) == 3
    assert all(number.isdigit() for number in numbers[:2])


def test_importing_touches_neither_logging_nor_random_numbers_nor_threads() -> None:
    loaded_by(
        "import logging, random, torch, warnings\n"
        "before = (torch.get_rng_state().sum(), random.getstate(), torch.get_num_threads(),"
        " logging.getLogger().handlers[:], warnings.filters[:], torch.get_default_dtype())\n"
        "import raremix\n"
        "raremix.OODDetector, raremix.BufferedMixSampler\n"
        "after = (torch.get_rng_state().sum(), random.getstate(), torch.get_num_threads(),"
        " logging.getLogger().handlers[:], warnings.filters[:], torch.get_default_dtype())\n"
        "assert before == after"
    )
