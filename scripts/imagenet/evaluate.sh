#!/usr/bin/env bash
# Exact accuracy of ImageNet-1K teachers and students, as the paper's alpha x T table with its numbers beside ours.
#
#   DATA=/data/imagenet bash scripts/imagenet/evaluate.sh
#   STUDENT_WEIGHTS='authors/{student}_{alpha}_T{temperature}.pth.tar' bash scripts/imagenet/evaluate.sh
#
# Settings of this recipe: STUDENTS ("resnet18 resnet50"), TEACHER_WEIGHTS, STUDENT_WEIGHTS (files with {student},
# {alpha}, {temperature} in their names; what the training recipes leave). What is not there stays empty in the table.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/lib/recipe.sh
own_settings STUDENTS TEACHER_WEIGHTS STUDENT_WEIGHTS
recipe_settings data/imagenet results/imagenet 8 "0.0 0.1" "1 2 3 64" "$@"
share_batch 2048 8 # 8 GPUs with 256 images each
: "${TEACHER_WEIGHTS:=$OUTPUT/teacher_resnet50_alpha{alpha\}/$CHECKPOINT}"
: "${STUDENT_WEIGHTS:=$OUTPUT/student_{student\}_alpha{alpha\}_T{temperature\}/$CHECKPOINT}"
: "${STUDENTS:=resnet18 resnet50}"

evaluate_all resnet50 imagenet --preset imagenet "$@"
