#!/usr/bin/env bash
# Trains one bilingual expert (teacher) per language pair by fairseq's own task, after the recipe of Tan et al. (2019).
#
#   DATA=data/iwslt OUT=results/iwslt/experts-0.1 bash scripts/nmt/train_experts.sh
#   LABEL_SMOOTHING=0.0 DATA=data/iwslt OUT=results/iwslt/experts-0.0 bash scripts/nmt/train_experts.sh
#
# Writes OUT/<src>-<tgt>/checkpoint_best.pt, beside it the dictionaries and the sentencepiece model, so that the folder
# translates alone (scripts/nmt/translate.py), and train.log. A finished expert is skipped, an unfinished one goes on
# from its last checkpoint. Further arguments go to fairseq-train as they are.
#
# DATA      folder made by prepare.py                     OUT       folder for the experts
# PAIRS     which pairs (all that DATA has)               DRY_RUN=1 prints the commands and runs nothing
# JOBS      runs side by side (CPU: all cores; GPU: 1, each on all GPUs)
# CPU=1     train on the CPU although there is a GPU
# PAPER=1   other defaults, those of Tan et al.'s scripts: 2 + 2 layers of width 256 (the tokenization stays ours)
# Hyper-parameters (default): ARCH (transformer_iwslt_de_en) ENCODER_LAYERS (6) DECODER_LAYERS (6) EMBED_DIM (512)
#   FFN_DIM (1024) HEADS (4) DROPOUT (0.3) LABEL_SMOOTHING (0.1) LR (5e-4) LR_SCHEDULER (inverse_sqrt)
#   WARMUP_UPDATES (4000) WARMUP_INIT_LR (1e-7) MIN_LR (1e-9) ADAM_BETAS ("(0.9, 0.98)") CLIP_NORM (0)
#   MAX_TOKENS (4096) UPDATE_FREQ (1) MAX_EPOCH (50) MAX_UPDATE (none) SEED (1) LOG_INTERVAL (20)
#   KEEP_CHECKPOINTS (none; N: the last N epochs' too, for evaluate_bleu.py --average N)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
help_if_asked "$@"
exec python "$root/scripts/nmt/lib/recipe.py" experts "$@"
