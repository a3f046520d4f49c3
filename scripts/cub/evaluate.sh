#!/usr/bin/env bash
# Exact accuracy of CUB-200-2011 teachers and students on the 5,794 test images, as the paper's alpha x T table.
#
#   DATA=/data bash scripts/cub/evaluate.sh
#   STUDENTS=mobilenet_v2 bash scripts/cub/evaluate.sh
#
# Settings of this recipe: STUDENTS ("resnet18 resnet50 convnext_tiny"), TEACHER_WEIGHTS, STUDENT_WEIGHTS (files with
# {student}, {alpha}, {temperature} in their names; what the training recipes leave). What is not there stays empty in
# the table.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/lib/recipe.sh
own_settings STUDENTS TEACHER_WEIGHTS STUDENT_WEIGHTS
recipe_settings data/cub results/cub 1 "0.0 0.1" "1 2 3 64" "$@"
share_batch 256 1
: "${TEACHER_WEIGHTS:=$OUTPUT/teacher_resnet50_alpha{alpha\}/$CHECKPOINT}"
: "${STUDENT_WEIGHTS:=$OUTPUT/student_{student\}_alpha{alpha\}_T{temperature\}/$CHECKPOINT}"
: "${STUDENTS:=resnet18 resnet50 convnext_tiny}"

evaluate_all resnet50 cub --dataset cub200 --preset cub "$@"
