#!/usr/bin/env bash
# Trains one multilingual student: a single Transformer for all pairs, told the target language by a token.
#
#   DATA=data/iwslt EXPERTS=results/iwslt/experts-0.1 TEMPERATURE=1 OUT=results/iwslt/student-0.1-T1 \
#       bash scripts/nmt/train_student.sh
#   ... TEACHER_OUTPUTS=results/iwslt/outputs-0.1 bash scripts/nmt/train_student.sh    # experts' predictions stored once
#   DATA=data/iwslt OUT=results/iwslt/student-labels bash scripts/nmt/train_student.sh         # on labels alone
#
# Writes OUT/checkpoint_best.pt, beside it the dictionaries and the sentencepiece model, so that OUT translates alone
# (scripts/nmt/translate.py), and train.log. A finished student is skipped, an unfinished one goes on from its last
# checkpoint. Further arguments go to fairseq-train as they are, such as --kd-strategy threshold.
#
# DATA      folder made by prepare.py                     OUT       folder for the student
# EXPERTS   folder made by train_experts.sh; none: the student learns from labels alone, by fairseq's own task
# TEACHERS  instead of EXPERTS: en-de=PATH,en-ru=PATH:PATH2 (several of one pair are an ensemble)
# TEACHER_OUTPUTS  folder of the experts' stored predictions, TEACHER_OUTPUTS/<src>-<tgt>: the student learns from these.
#           With EXPERTS or TEACHERS what is missing is stored first, TOP_K (8) entries for each word
# PAIRS     which pairs (all that DATA has)               DRY_RUN=1 prints the command and runs nothing
# CPU=1     train on the CPU although there is a GPU
# PAPER=1   other defaults, those of Tan et al.'s scripts: 2 + 2 layers of width 256, TEMPERATURE 0.6, TOP_K 4,
#           KD_TAIL drop (the tokenization stays ours)
# Hyper-parameters (default): TEMPERATURE (1) KD_WEIGHT (0.9) KD_LOSS (kl; dkd, dist, standardized, ttm, or your own)
#   KD_TAIL (uniform; drop, bucket: of what TEACHER_OUTPUTS left out) ARCH (transformer_iwslt_de_en) ENCODER_LAYERS (6)
#   DECODER_LAYERS (6) EMBED_DIM (512) FFN_DIM (1024) HEADS (4) DROPOUT (0.3) LABEL_SMOOTHING (0.1) LR (5e-4)
#   LR_SCHEDULER (inverse_sqrt) WARMUP_UPDATES (4000) WARMUP_INIT_LR (1e-7) MIN_LR (1e-9)
#   ADAM_BETAS ("(0.9, 0.98)") CLIP_NORM (0) MAX_TOKENS (4096) UPDATE_FREQ (1) MAX_EPOCH (50) MAX_UPDATE (none)
#   SEED (1) LOG_INTERVAL (20) KEEP_CHECKPOINTS (none; N: the last N epochs' too, for evaluate_bleu.py --average N)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
help_if_asked "$@"
exec python "$root/scripts/nmt/lib/recipe.py" student "$@"
