import os
import subprocess
import sys

CODE = """
import os, resource
from inat_ft_startup.memory import keep_memory
if {kept}: keep_memory()
import numpy as np
def take():
    block = np.empty(2**26, np.uint8)
    block[::4096] = 1
take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(kept: bool, **environment: str) -> int:
    command = [sys.executable, "-c", CODE.format(kept=kept)]
    environment = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), **environment}
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(ran.stdout)


def test_what_is_freed_is_taken_again_without_asking_the_system_unless_the_user_wants_otherwise() -> None:
    asked = faults(kept=False)
    assert faults(kept=True) < asked / 5
    assert faults(kept=True, MALLOC_ARENA_MAX="4") > asked / 5


API = """
import inat_ft, resource, numpy as np
from inat_ft_startup.memory import keep_memory_during

def pages():
    return int(open("/proc/self/statm").read().split()[1])

@keep_memory_during
def work():
    faults = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = np.empty(2**26, np.uint8)
        block[::4096] = 1
        del block
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return faults, pages()

before = pages()
faults, inside = work()
print(faults[-1] < faults[0] / 5, inside - before > 2**13, pages() - before < 2**13)
print(all(hasattr(getattr(inat_ft, name), "__wrapped__") for name in ("split", "train", "evaluate", "predict", "audit")))
"""


def test_functions_of_the_api_keep_memory_until_they_end() -> None:
    ran = subprocess.run([sys.executable, "-c", API], capture_output=True, text=True, check=True)
    assert ran.stdout == "True True True\nTrue\n"


AT_EXIT = """
import atexit, gc, sys, types
from inat_ft_startup.startup import collect_less_often
atexit.register(lambda: print(gc.get_freeze_count() > 1000))
collect_less_often()
if sys.argv[1:]: sys.modules[sys.argv[1]] = types.ModuleType(sys.argv[1])
"""


def test_cycles_are_not_searched_at_exit_unless_triton_would_report_them() -> None:
    shown = [
        subprocess.run([sys.executable, "-c", AT_EXIT, *words], capture_output=True, text=True, check=True).stdout
        for words in ([], ["triton"])
    ]
    assert shown == ["True\n", "False\n"]
