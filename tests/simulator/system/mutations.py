"""Search for a seed that finds each bug of the whole system: python -m tests.simulator.system.mutations [SEEDS]"""

import sys

from tests.simulator.mutations import main
from tests.simulator.system.bugs import SYSTEM_BUGS
from tests.simulator.system.schedule import run_seed

if __name__ == "__main__":
    sys.exit(main(SYSTEM_BUGS, run_seed))
