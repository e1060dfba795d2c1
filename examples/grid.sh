#!/bin/bash
# A grid of 4 tasks x 7 methods x 3 seeds = 84 cells, named once for all jobs that share it. Arguments are added, such as
# --share 5/84. The variables are for those who try it on something smaller.
set -euo pipefail
exec pruning-adapter reproduce --model "${MODEL:-google-bert/bert-base-uncased}" ${GLUE_DIR:+--data-dir "$GLUE_DIR"} \
    --tasks "${TASKS:-rte,mrpc,sst2,qnli}" --methods "${METHODS:-full,lora,prune-lora,random,reversed,magnitude,uniform-rank}" \
    --seeds "${SEEDS:-0,1,2}" --output-dir "${GRID:-grid}" "$@"
