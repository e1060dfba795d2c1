#!/bin/bash
# The same grid on one machine, so many cells at once, each in a process of its own:
#   JOBS=4 examples/grid_here.sh
set -euo pipefail
here=$(dirname "$0") cells=${CELLS:-84}
seq 0 $((cells - 1)) | xargs -P "${JOBS:-2}" -I '{}' "$here/grid.sh" --share "{}/$cells" --threads "${THREADS:-1}"
"$here/grid.sh"
